"""Sentence and question wordings for the question-answering task.

A relation is a family of facts of one kind. Its slots name what a fact holds; ``{x}`` in a wording is replaced by the
fact's value. A wording is either for training or for the held-out file only, so that the held-out score also tells
whether sentences and questions put in another way are understood.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Relation:
    """One kind of fact.

    Parameters
    ----------
    slots
        Slot name to the kind of value it holds (see ``question_answering.draw_value``).
    say, say_heldout
        Sentence wordings for training, and those seen in the held-out file only.
    ask, ask_heldout
        For each slot that can be asked for, question wordings of each split.
    """

    slots: dict[str, str]
    say: list[str]
    say_heldout: list[str]
    ask: dict[str, list[str]]
    ask_heldout: dict[str, list[str]] = field(default_factory=dict)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def _asks(text: str) -> dict[str, list[str]]:
    """Lines of "slot: wording" collected by slot."""
    found: dict[str, list[str]] = {}
    for line in _lines(text):
        slot, wording = line.split(": ", 1)
        found.setdefault(slot, []).append(wording)
    return found


def _relation(slots: str, say: str, say_heldout: str, ask: str, ask_heldout: str = "") -> Relation:
    pairs = dict(pair.split("=") for pair in slots.split())
    return Relation(pairs, _lines(say), _lines(say_heldout), _asks(ask), _asks(ask_heldout) if ask_heldout else {})


RELATIONS = [
    _relation(
        "p=person c=city y=year d=date",
        """
        {p} was born in {c} in {y}.
        {p} was born on {d} {y} in {c}.
        Born in {c} in {y}, {p} grew up near the harbour.
        {c} is the birthplace of {p}, who was born there in {y}.
        In {y} {p} was born in {c}, the youngest of seven children.
        {p} (born {d} {y} in {c}) left school early.
        The family of {p} lived in {c}, where the child was born in {y}.""",
        """
        It was in {c} that {p} came into the world in {y}.
        {p}, a native of {c}, was born in {y}.""",
        """
        c: Where was {p} born?
        c: In which city was {p} born?
        c: What is the birthplace of {p}?
        c: What town was {p} born in?
        y: When was {p} born?
        y: In what year was {p} born?
        y: What year was {p} born?
        p: Who was born in {c}?
        p: Who was born in {c} in {y}?
        p: Which person was born in {y}?
        d: On what day was {p} born?""",
        """
        c: Which town did {p} come from at birth?
        y: What is the year of birth of {p}?
        p: Which famous person was born in {c}?""",
    ),
    _relation(
        "p=person c=city y=year",
        """
        {p} died in {c} in {y}.
        In {y} {p} died in {c} after a long illness.
        {p} lived in {c} until {y}, the year of a sudden death.
        After a fall from a horse, {p} died at {c} in {y}.
        {y} was the year in which {p} died in {c}.""",
        """
        Death came to {p} in {c} in {y}.
        {p} passed away in {y} at a house in {c}.""",
        """
        c: Where did {p} die?
        c: In which city did {p} die?
        c: What was the place of death of {p}?
        y: When did {p} die?
        y: In what year did {p} die?
        p: Who died in {c}?
        p: Who died in {c} in {y}?""",
        """
        y: What was the year of the death of {p}?
        c: In what town did the life of {p} end?""",
    ),
    _relation(
        "o=org p=person y=year c=city",
        """
        The {o} was founded in {y} by {p} in {c}.
        {p} founded the {o} in {c} in {y}.
        Founded by {p} in {y}, the {o} has its offices in {c}.
        In {y}, {p} set up the {o} in a small house in {c}.
        The {o}, established in {c} in {y}, was the idea of {p}.
        It was {p} who started the {o} in {c} in {y}.
        The {o} was created in {y}; its founder, {p}, came from {c}.
        {p} is remembered as the founder of the {o}, which opened in {c} in {y}.""",
        """
        In {c} the {o} owes its existence to {p}, who established it in {y}.
        The founder of the {o}, {p}, began with two rooms in {c} in {y}.
        Since {y} the {o} has worked from {c}, where {p} created it.""",
        """
        p: Who founded the {o}?
        p: Who was the founder of the {o}?
        p: Who established the {o} in {y}?
        p: Who set up the {o}?
        p: Which person started the {o} in {c}?
        p: By whom was the {o} founded?
        y: When was the {o} founded?
        y: In what year was the {o} established?
        y: What year did {p} found the {o}?
        c: Where was the {o} founded?
        c: In which city did {p} found the {o}?
        c: What city is the {o} based in?
        o: What did {p} found in {y}?
        o: Which organisation was founded by {p}?
        o: What was founded in {c} in {y}?""",
        """
        p: Who created the {o}?
        y: In which year did the {o} begin?
        c: In what town does the {o} have its home?
        o: What organisation did {p} start?""",
    ),
    _relation(
        "p=person o=org c=city y=year n=amount j=job",
        """
        {p} joined the {o} in {y} as a {j}.
        In {y} the {o} hired {p} as a {j}.
        {p} worked for the {o} in {c} as a {j} from {y}.
        The {o} in {c} made {p} its {j} in {y}.
        As a {j} at the {o}, {p} earned {n} crowns.
        From {y} {p} was employed by the {o} as a {j}.""",
        """
        {p} became {j} of the {o} in {y}.
        A post as {j} took {p} to the {o} in {y}.""",
        """
        o: Who did {p} work for?
        o: Which organisation hired {p}?
        o: Where did {p} work as a {j}?
        o: What did {p} join in {y}?
        y: When did {p} join the {o}?
        y: In what year was {p} hired by the {o}?
        j: What was the job of {p} at the {o}?
        j: What did {p} work as?
        p: Who worked for the {o}?
        p: Who joined the {o} as a {j}?
        p: Who did the {o} hire as a {j}?
        n: How much did {p} earn?""",
        """
        o: Who employed {p}?
        p: Which {j} did the {o} employ?
        j: What position did {p} hold at the {o}?""",
    ),
    _relation(
        "t=thing p=person y=year c=city",
        """
        The {t} was invented by {p} in {y}.
        {p} invented the {t} in {c} in {y}.
        In {y}, while living in {c}, {p} built the first {t}.
        The first {t} was built in {c} by {p}.
        {p} received a patent for the {t} in {y}.
        It was {p} who designed the {t} in {y}.
        The inventor of the {t}, {p}, worked in {c}.
        The idea of the {t} came to {p} in {y}.""",
        """
        To {p} of {c} we owe the {t}, first shown in {y}.
        Credit for the {t} of {y} goes to {p}.""",
        """
        p: Who invented the {t}?
        p: Who built the first {t}?
        p: Who was the inventor of the {t}?
        p: Who designed the {t} in {y}?
        p: Who came up with the idea of the {t}?
        p: Whose invention was the {t}?
        y: When was the {t} invented?
        y: In what year was the {t} designed?
        y: When did {p} build the {t}?
        t: What did {p} invent?
        t: What was invented by {p} in {y}?
        t: What did {p} design?
        c: Where was the {t} invented?
        c: In which city did {p} build the {t}?""",
        """
        p: Who is given the credit for the {t}?
        t: Which invention do we owe to {p}?
        y: In which year was the {t} first shown?""",
    ),
    _relation(
        "w=title p=person y=year n=amount",
        """
        {p} wrote {w} in {y}.
        The novel {w} by {p} was published in {y}.
        {w}, a book of {n} pages by {p}, appeared in {y}.
        In {y} {p} finished {w}, which sold {n} copies.
        {p} is the author of {w}, first printed in {y}.
        Written by {p}, {w} sold {n} copies in a month.""",
        """
        Readers know {p} best for {w}, which came out in {y}.
        {w} made {p} famous in {y}.""",
        """
        p: Who wrote {w}?
        p: Who is the author of {w}?
        p: By whom was {w} written?
        p: Which author published {w} in {y}?
        w: What did {p} write?
        w: What is the title of the book by {p}?
        w: Which novel by {p} was published in {y}?
        y: When was {w} published?
        y: In what year did {w} appear?
        y: When did {p} write {w}?
        n: How many copies of {w} were sold?
        n: How many pages does {w} have?
        n: How many copies did {w} sell?""",
        """
        w: What book is {p} known for?
        y: When did {w} come out?""",
    ),
    _relation(
        "b=bridge r=river n=amount u=length y=year p=person",
        """
        The {b} crosses the {r} and is {n} {u} long.
        Completed in {y}, the {b} is {n} {u} long and {p} designed it.
        The {b} over the {r} was designed by {p} and opened in {y}.
        With a length of {n} {u}, the {b} is the longest on the {r}.
        {p} planned the {b}, which has spanned the {r} since {y}.
        Work on the {b} ended in {y}; it measures {n} {u} from end to end.
        Construction of the {b} was completed in {y} under {p}.""",
        """
        Travellers have crossed the {r} on the {b} since {y}.
        The {b}, {n} {u} from bank to bank, is the work of {p}.""",
        """
        n: How long is the {b}?
        n: What is the length of the {b}?
        n: How many {u} long is the {b}?
        r: What river does the {b} cross?
        r: Which river does the {b} span?
        r: What does the {b} cross?
        y: When was the {b} opened?
        y: When was the {b} completed?
        y: In what year was the {b} finished?
        p: Who designed the {b}?
        p: Who planned the {b}?
        p: Which engineer designed the {b}?
        b: What crosses the {r}?
        b: Which bridge is {n} {u} long?""",
        """
        p: Who was the architect of the {b}?
        n: How many {u} does the {b} measure?
        y: Since when has the {b} been open?""",
    ),
    _relation(
        "m=mountain n=amount u=length c=country p=person y=year",
        """
        {m} in {c} is {n} {u} high.
        {m} rises to {n} {u} above sea level.
        At {n} {u}, {m} is the highest peak in {c}.
        {m}, the tallest mountain of {c}, was first climbed by {p} in {y}.
        {p} reached the top of {m} in {y}.
        The first ascent of {m} was made in {y} by {p}.
        The height of {m} was measured as {n} {u} in {y}.
        {m} stands in the north of {c}.""",
        """
        The summit of {m}, {n} {u} up, was first reached by {p} in {y}.
        Nobody had stood on {m} before {p} did so in {y}.""",
        """
        n: How high is {m}?
        n: How tall is {m}?
        n: What is the height of {m}?
        n: How many {u} high is {m}?
        c: In which country is {m}?
        c: Where is {m} located?
        c: Where does {m} stand?
        p: Who first climbed {m}?
        p: Who was the first to reach the top of {m}?
        p: Who climbed {m} in {y}?
        y: When was {m} first climbed?
        y: In what year did {p} climb {m}?
        m: What is the highest mountain in {c}?
        m: Which mountain is {n} {u} high?
        m: Which peak did {p} climb?""",
        """
        p: Who made the first ascent of {m}?
        n: What is the elevation of {m}?
        m: What mountain did {p} reach the top of?""",
    ),
    _relation(
        "c=city n=count k=country r=river y=year",
        """
        {c} is a town of {n} people on the {r}.
        {c}, a city in {k}, has {n} inhabitants.
        In {y} {c} had a population of {n}.
        {c} lies on the {r} in {k}.
        About {n} people live in {c}, which lies in the south of {k}.
        The {r} flows through {c}, the second largest city in {k}.
        {c} became the capital of {k} in {y}.
        The capital of {k} is {c}, on the {r}.""",
        """
        Home to {n} people, {c} grew up where the {r} meets the sea.
        {c} was chosen as the capital of {k} in {y}.""",
        """
        n: How many people live in {c}?
        n: What is the population of {c}?
        n: How many inhabitants does {c} have?
        n: What was the population of {c} in {y}?
        r: On which river does {c} lie?
        r: What river flows through {c}?
        k: In which country is {c}?
        k: What country is {c} in?
        k: Where is {c} located?
        c: What is the capital of {k}?
        c: Which city lies on the {r}?
        c: Which town has {n} inhabitants?
        c: What is the second largest city in {k}?
        y: When did {c} become the capital of {k}?""",
        """
        n: How large is the population of {c}?
        c: Which town is home to {n} people?
        y: In which year was {c} made the capital of {k}?""",
    ),
    _relation(
        "t=thing m=material n=amount w=weight l=length",
        """
        The {t} is made of {m} and weighs {n} {w}.
        Made of {m}, the {t} weighs {n} {w}.
        The {t}, which weighs about {n} {w}, was cast from {m}.
        The {t} is {n} {l} wide and its frame is {m}.
        Builders used {m} for the {t}, which is {n} {l} tall.
        The {t} was carved out of {m}.
        The {t} consists of {m}.
        The weight of the {t} is {n} {w}.
        The {t} has a diameter of {n} {l} and is covered with {m}.""",
        """
        For the {t} the workers chose {m}.
        On the scales the {t} comes to {n} {w}.""",
        """
        m: What is the {t} made of?
        m: What material is the {t} made from?
        m: Of what material is the {t}?
        m: What was the {t} carved out of?
        m: What was used for the {t}?
        m: What does the {t} consist of?
        n: How much does the {t} weigh?
        n: What is the weight of the {t}?
        n: How heavy is the {t}?
        n: How wide is the {t}?
        n: How tall is the {t}?
        n: What is the diameter of the {t}?
        t: What is made of {m}?
        t: What weighs {n} {w}?""",
        """
        m: Which material did the workers choose for the {t}?
        m: Out of which material was the {t} made?
        n: What does the {t} weigh?""",
    ),
    _relation(
        "t=thing n=amount q=money c=city y=year p=person",
        """
        The {t} was sold in {c} for {n} {q} in {y}.
        {p} bought the {t} for {n} {q}.
        In {y} {p} paid {n} {q} for the {t}.
        The {t} cost {n} {q} and was paid for by {p}.
        {p} sold the {t} to a dealer in {c} in {y}.
        Since {y} the {t} has belonged to {p}.
        {p} gave the {t} to the museum in {c}, where it has been on show since {y}.""",
        """
        For the {t}, a buyer from {c} offered {n} {q} in {y}.
        The price of the {t} was {n} {q}, a sum that {p} could afford.""",
        """
        n: How much did the {t} cost?
        n: How much was the {t} sold for?
        n: How much did {p} pay for the {t}?
        n: What was the price of the {t}?
        p: Who bought the {t}?
        p: Who paid for the {t}?
        p: Who sold the {t}?
        p: Who owns the {t}?
        p: Who does the {t} belong to?
        c: Where was the {t} sold?
        c: In which city is the {t} on show?
        y: When was the {t} sold?
        t: What did {p} buy?
        t: What was sold in {c}?
        t: What did {p} give to the museum?""",
        """
        n: How many {q} was the {t} worth?
        p: Who was the buyer of the {t}?""",
    ),
    _relation(
        "t=thing n=amount u=duration p=person r=reason",
        """
        It took {p} {n} {u} to finish the {t}.
        Work on the {t} lasted {n} {u}.
        {p} spent {n} {u} on the {t} because {r}.
        The {t} took {n} {u} to build.
        After {n} {u}, {p} gave up the {t} because {r}.
        The {t} was closed for {n} {u} because {r}.
        For {n} {u} the {t} could not be used, since {r}.
        The {t} needs {n} {u} to cool.""",
        """
        {n} {u} went by before {p} completed the {t}.
        As {r}, the {t} stayed shut for {n} {u}.""",
        """
        n: How long did it take to finish the {t}?
        n: How long did it take {p} to finish the {t}?
        n: How many {u} did {p} spend on the {t}?
        n: How long did work on the {t} last?
        n: How long was the {t} closed?
        n: How long did the {t} take to build?
        n: For how long could the {t} not be used?
        n: How many {u} does the {t} need to cool?
        r: Why was the {t} closed?
        r: Why did {p} give up the {t}?
        r: Why could the {t} not be used?
        r: Why did {p} spend so long on the {t}?
        p: Who spent {n} {u} on the {t}?
        p: Who gave up the {t}?""",
        """
        n: How much time did the {t} take?
        r: For what reason was the {t} shut?""",
    ),
    _relation(
        "t=thing a=called c=city f=nature",
        """
        The {t}, known as the {a}, stands in {c}.
        The {t} is called the {a} by the people of {c}.
        In {c} the {t} was nicknamed the {a}.
        People in {c} call the {t} the {a}.
        A {t} with a {f} inside is known as a {a}.
        The part of the {t} that holds the {f} is called the {a}.
        The word {a} means a {f} in the language of {c}.""",
        """
        The {t} goes by the name of the {a} in {c}.
        They named the {t} the {a}.""",
        """
        a: What is the {t} called?
        a: What is the {t} known as?
        a: What is the nickname of the {t}?
        a: What do people in {c} call the {t}?
        a: What is the name of the {t}?
        a: What name was given to the {t}?
        a: What is the part of the {t} that holds the {f} called?
        c: Where does the {t} stand?
        t: What is called the {a}?
        t: What is known as the {a}?
        f: What does the word {a} mean?""",
        """
        a: By what name does the {t} go?
        t: What did they name the {a}?""",
    ),
    _relation(
        "t=abstract p=person y=year s=abstract o=org",
        """
        {p} studied the {t} of the {s} in {y}.
        In {y} {p} showed that the {t} depends on the {s}.
        The {t} of the {s} was first described by {p} in {y}.
        {p} of the {o} discovered the {t} of the {s} in {y}.
        According to {p}, the {t} depends on the {s}.
        {p} won a prize from the {o} for a theory of the {t} in {y}.
        The prize of the {o} went to {p} in {y} for work on the {t}.""",
        """
        The first account of the {t} of the {s} was given by {p} in {y}.
        For explaining the {t} {p} was honoured by the {o} in {y}.""",
        """
        p: Who studied the {t} of the {s}?
        p: Who first described the {t} of the {s}?
        p: Who discovered the {t} of the {s}?
        p: Who won the prize of the {o}?
        p: According to whom does the {t} depend on the {s}?
        p: Who showed that the {t} depends on the {s}?
        s: What does the {t} depend on?
        s: On what does the {t} depend according to {p}?
        t: What did {p} discover in {y}?
        t: What did {p} study?
        t: For what did {p} win a prize?
        y: When did {p} study the {t}?
        y: When was the {t} of the {s} discovered?
        o: Which organisation gave {p} a prize?""",
        """
        p: Who gave the first account of the {t}?
        p: Who explained the {t}?""",
    ),
    _relation(
        "t=nature s=nature n=amount u=length g=nature w=process",
        """
        The {t} {w} the {s}.
        A {t} can be up to {n} {u} long.
        The {t} {w} {s} and {g}.
        A {t} lives on {s} and {g}.
        The largest {t} reached {n} {u}.
        Unlike the {g}, the {t} {w} the {s}.
        Most of the {t} consists of {s}.
        The {t} is covered with {s} so that it {w} the {g}.
        When the {s} meets the {t}, it {w} the {g}.
        The {g} of the {t} {w} {s}.""",
        """
        What {w} the {s} is the {t}.
        Some {n} {u} is the greatest length of a {t}.""",
        """
        s: What does the {t} {w_base}?
        s: What is it that the {t} {w}?
        s: What does a {t} live on?
        s: What does most of the {t} consist of?
        s: What is the {t} covered with?
        t: What {w} the {s}?
        t: What is covered with {s}?
        t: By what is the {s} {w_part}?
        n: How long can a {t} be?
        n: How large was the largest {t}?
        n: How many {u} can a {t} reach?
        g: Which part of the {t} {w} {s}?""",
        """
        t: Which thing {w} the {s}?
        s: What gets {w_part} by the {t}?""",
    ),
    _relation(
        "n=percent t=nature a=abstract s=nature k=country",
        """
        {n} percent of the {t} in {k} is {s}.
        In {k}, {n} percent of the {t} comes from the {s}.
        The {s} holds {n} percent of the {t}.
        The {a} of the {t} rose by {n} percent.
        About {n} percent of {t} is made up of {s}.
        Only {n} percent of the {t} reaches the {s}.
        The {a} of the {t} fell from {n} percent in {k}.""",
        """
        In {k} the {t} is {n} percent {s}.
        The {a} of the {t} grew by {n} percent.""",
        """
        n: What percentage of the {t} is {s}?
        n: How much of the {t} is {s}?
        n: What share of the {t} comes from the {s}?
        n: How much of the {t} does the {s} hold?
        n: What percentage of the {t} reaches the {s}?
        n: By how much did the {a} of the {t} rise?
        n: What percent of the {t} is made up of {s}?
        k: In which country does {n} percent of the {t} come from the {s}?
        s: What holds {n} percent of the {t}?
        a: What rose by {n} percent?""",
        """
        n: How large a part of the {t} is {s}?
        n: How much did the {a} of the {t} grow?""",
    ),
    _relation(
        "n=degrees m=material v=nature t=thing g=role r=reason",
        """
        {m} melts at {n} degrees.
        The {g} heats the {m} to {n} degrees.
        At {n} degrees the {m} turns into {v}.
        {m} is used for the {t} because {r}.
        A {g} prefers {m} for the {t} because {r}.
        The {m} is mixed with {v} to make the {t}.
        The {t} is heated to {n} degrees so that the {m} melts.
        To make a {t}, the {g} mixes {m} with {v}.
        First the {g} melts the {m}, then {v} is added.""",
        """
        The {m} must be brought to {n} degrees by the {g}.
        Because {r}, {m} serves for the {t}.""",
        """
        n: At what temperature does {m} melt?
        n: To what temperature does the {g} heat the {m}?
        n: How hot does the {m} get?
        n: At how many degrees does the {m} turn into {v}?
        v: What does the {m} turn into?
        v: What is the {m} mixed with?
        v: What does the {g} mix with {m}?
        v: What is added to the {m}?
        m: What melts at {n} degrees?
        m: What material is used for the {t}?
        m: Which material does a {g} prefer for the {t}?
        m: What does the {g} melt?
        r: Why is {m} used for the {t}?
        r: Why does a {g} prefer {m}?
        t: What is {m} used for?
        g: Who heats the {m}?""",
        """
        n: How hot must the {m} be?
        r: For what reason does {m} serve for the {t}?""",
    ),
    _relation(
        "n=small t=thing a=thing b=thing c=thing k=role",
        """
        The {t} has {n} parts, among them a {a}, a {b} and a {c}.
        There are {n} kinds of {t}.
        The {t} consists of a {a}, a {b} and a {c}.
        A {k} needs {n} tools for the {t}: the {a}, the {b} and the {c}.
        Each {t} was worked by {n} people.
        The {k} owned {n} {t} models and one {a}.
        Every {t} carried {n} of them.
        The {k} made {n} copies of the {t}.""",
        """
        In all the {k} built {n} of the {t}.
        {n} people are needed to work the {t}.""",
        """
        n: How many parts does the {t} have?
        n: How many kinds of {t} are there?
        n: How many tools does a {k} need for the {t}?
        n: How many people worked each {t}?
        n: How many copies of the {t} did the {k} make?
        n: How many {t} models did the {k} own?
        k: Who made {n} copies of the {t}?
        k: Who needs {n} tools for the {t}?""",
        """
        n: How many of the {t} were built?
        n: How many people does the {t} need?""",
    ),
    _relation(
        "e=event y=year c=city p=person n=count d=date",
        """
        The {e} began in {y} in {c}.
        The {e} of {y} killed {n} people in {c}.
        {n} people came to {c} for the {e} of {y}.
        The {e} took place in {c} on {d} {y}.
        {p} led the {e} in {c}.
        The {e} ended on {d} {y} when {p} arrived in {c}.
        During the {e}, {p} lost {n} men near {c}.
        The leader of the {e} was {p}, who had come from {c}.""",
        """
        {c} saw the {e} in {y}.
        {p} was in command when the {e} reached {c}.""",
        """
        y: When did the {e} begin?
        y: In what year did the {e} take place?
        y: What year did the {e} end?
        d: On what date did the {e} take place?
        d: On which day did the {e} end?
        n: How many people did the {e} kill?
        n: How many people came for the {e}?
        n: How many men did {p} lose during the {e}?
        c: Where did the {e} begin?
        c: Where did the {e} take place?
        c: In which city was the {e}?
        p: Who led the {e}?
        p: Who was the leader of the {e}?
        e: What took place in {c}?
        e: What began in {y}?
        e: What did {p} lead?""",
        """
        p: Who was in command of the {e}?
        c: Which town saw the {e}?""",
    ),
    _relation(
        "p=person q=person c=city y=year j=job",
        """
        {p} was the teacher of {q} in {c}.
        In {y} {p} married {q} in {c}.
        {p} was succeeded by {q} in {y}.
        {p}, a {j} from {c}, was the brother of {q}.
        {q} learned the craft from {p} in {c}.
        In {c} {p} met {q}, a young {j}.
        {p} was followed as {j} by {q}.
        {p} hired {q} as a {j} in {y}.""",
        """
        {q} took over from {p} as {j} in {y}.
        In {c} {q} was a pupil of {p}.""",
        """
        q: Who did {p} marry?
        q: Who succeeded {p}?
        q: Who learned from {p}?
        q: Who did {p} meet in {c}?
        q: Who did {p} hire?
        q: Who followed {p}?
        q: Who was the brother of {p}?
        p: Who was the teacher of {q}?
        p: Who did {q} learn the craft from?
        p: From whom did {q} learn?
        p: Who married {q}?
        p: Who hired {q}?
        p: Who met {q}?
        y: When did {p} marry {q}?
        c: Where did {p} meet {q}?
        c: Where did {p} teach {q}?""",
        """
        q: Who took over from {p}?
        p: Who taught {q}?""",
    ),
    # What someone did: the verb is a slot too, so that no question can be answered from the wording alone.
    _relation(
        "g=agent v=verb t=thing s=spot w=when c=city i=purpose",
        """
        {g} {v_past} {t} {s} {w}.
        {w_cap}, {g} {v_past} {t} {s}.
        {t} was {v_part} by {g} {w}.
        {t} that {g} {v_past} {s} is now in {c}.
        {g} {v_past} {t} in {c} to {i}.
        To {i}, {g} {v_past} {t} {s}.
        {w_cap} {t} was {v_part} {s} by {g}.
        {g} had {v_part} {t} {s} before coming to {c}.
        {g}, who lived in {c}, {v_past} {t} {w}.
        {t}, {v_part} by {g} {w}, can be seen {s}.
        {g} {v_past} {t} {w} in order to {i}.""",
        """
        It was {g} who {v_past} {t} {s}.
        Having {v_part} {t} {w}, {g} moved to {c}.
        {s_cap} {g} {v_past} {t} so as to {i}.""",
        """
        g: Who {v_past} {t}?
        g: Who {v_past} {t} {w}?
        g: By whom was {t} {v_part}?
        g: Who was it that {v_past} {t}?
        t: What did {g} {v} {s}?
        t: What did {g} {v}?
        t: What was {v_part} by {g}?
        t: Which thing was {v_part} {s}?
        s: Where did {g} {v} {t}?
        s: Where was {t} {v_part}?
        w: When did {g} {v} {t}?
        w: When was {t} {v_part}?
        i: Why did {g} {v} {t}?
        i: Why was {t} {v_part}?
        i: What did {g} {v} {t} for?
        c: Where did {g} live?
        c: In which city is the {t_bare} that {g} {v_past}?
        c: In what town did {g} {v} {t}?""",
        """
        g: Which person {v_past} {t}?
        t: What is it that {g} {v_past}?
        i: For what purpose did {g} {v} {t}?""",
    ),
    _relation(
        "g=agent v=verb t=thing r=reason m=material n=amount y=year",
        """
        {g} {v_past} {t} because {r}.
        Because {r}, {g} {v_past} {t} with {m}.
        {g} {v_past} {t} with {m} in {y}.
        In {y} {g} {v_past} {n} of them and {t}.
        {g} {v_past} {t} by means of {m}, since {r}.
        {t} had to be {v_part} in {y} because {r}.
        {g} used {m} and {v_past} {t}.
        By using {m}, {g} {v_past} {t} in {y}.
        Only in {y} was {t} {v_part} by {g}.
        {r_cap}, so {g} {v_past} {t}.
        As {r}, {t} was {v_part} in {y}.""",
        """
        The reason why {g} {v_past} {t} was that {r}.
        With the help of {m}, {t} was {v_part} by {g} in {y}.""",
        """
        r: Why did {g} {v} {t}?
        r: Why was {t} {v_part}?
        r: Why did {t} have to be {v_part}?
        r: What made {g} {v} {t}?
        r: For what reason did {g} {v} {t}?
        m: With what did {g} {v} {t}?
        m: What did {g} {v} {t} with?
        m: What did {g} use to {v} {t}?
        m: How did {g} {v} {t}?
        y: When did {g} {v} {t}?
        y: In what year was {t} {v_part}?
        y: In which year did {g} {v} {t}?
        g: Who {v_past} {t} because {r}?
        g: Who {v_past} {t} in {y}?
        t: What did {g} {v} in {y}?
        t: What was {v_part} with {m}?""",
        """
        r: What was the reason why {g} {v_past} {t}?
        m: By means of what was {t} {v_part}?""",
    ),
    _relation(
        "t=nature w=process s=nature r=reason l=spot g=nature a=abstract",
        """
        {t} {w} the {s} because {r}.
        {l_cap}, {t} {w} the {s}.
        By {w_ing} the {s}, {t} changes the {g}.
        {t} {w} the {s}, which causes the {a} to change.
        The {a} of {t} is the reason that it {w} the {s}.
        Because {t} {w} the {s}, the {g} stays dry.
        {t} {w} {s} {l}, while {g} does not.
        Without {g}, {t} could not be found {l}.
        {t} is found {l}, where it {w} the {s}.
        The {s} is {w_part} by {t} when the {a} is low.
        The {g} keeps {t} warm and {w} the {s}.""",
        """
        What {t} does is that it {w} the {s}.
        {l_cap} the {s} is {w_part} by {t}.""",
        """
        s: What does {t} {w_base}?
        s: What is {w_part} by {t}?
        t: What {w} the {s}?
        t: What {w} the {s} {l}?
        t: What is found {l}?
        t: What changes the {g} by {w_ing} the {s}?
        r: Why does {t} {w_base} the {s}?
        l: Where is {t} found?
        l: Where does {t} {w_base} the {s}?
        g: What keeps {t} warm?
        g: What does {t} change by {w_ing} the {s}?
        g: What stays dry because {t} {w} the {s}?
        a: What is the reason that {t} {w} the {s}?""",
        """
        t: Which thing does {w_base} the {s}?
        l: In what place is {t} found?""",
    ),
    # Homogeneous families: any of the questions fits any of the sentences that hold its slots.
    _relation(
        "p=person c=city j=job",
        """
        {p}, a native of {c}, was famous as a {j}.
        {p}, a famous {j}, came from {c}.
        {p} was a {j} who came from {c}.
        The {j} {p} came from {c}.
        A {j} by trade, {p} was a native of {c}.
        {c} was the home of {p}, the famous {j}.""",
        """
        The famous {p}, {j} by trade, had come from {c}.
        From {c} came {p}, a {j}.""",
        """
        c: Where did {p} come from?
        c: Which town did {p} come from?
        c: What town was the home of {p}?
        j: What was the trade of {p}?
        j: What was {p}?
        j: What did {p} do for a living?
        p: Which {j} came from {c}?
        p: Who was the famous {j}?
        p: Which famous {j} was a native of {c}?""",
        """
        c: Of which town was {p} a native?
        j: What trade did {p} have?""",
    ),
    _relation(
        "p=person t=thing y=year c=city",
        """
        Credit for the {t} is given to {p}, who completed it in {y}.
        The {t} was the work of {p} and came out in {y}.
        We owe the {t} to {p}, who created it in {c}.
        The creator of the {t} was {p}, a native of {c}.
        {p} created the {t} in {y}.
        {p} was the architect of the {t}, begun in {y}.
        The {t} made {p} famous in {c}.
        The architect {p} completed the {t} in {y}.
        The {t} owes its existence to {p} of {c}.
        {p} engineered the {t} in {y}.
        The {t} was devised by {p} and first shown in {c}.""",
        """
        The {t} by {p} came out in {y}.
        In {c} {p} devised the {t}.""",
        """
        p: Who created the {t}?
        p: Who was the creator of the {t}?
        p: Who is given the credit for the {t}?
        p: To whom do we owe the {t}?
        p: Who was the architect of the {t}?
        p: Who came up with the {t}?
        p: Who engineered the {t}?
        p: Who thought of the {t}?
        p: Who built the {t}?
        p: Who made the {t}?
        t: What was created by {p}?
        t: Which work made {p} famous?
        t: For what is {p} given the credit?
        t: What did {p} create?
        y: When did the {t} come out?
        y: In what year was the {t} completed?
        c: Where was the {t} created?""",
        """
        p: Whose work was the {t}?
        p: Who devised the {t}?""",
    ),
    _relation(
        "p=person q=person y=year o=org j=job",
        """
        {p} taught {q} how to work.
        {q} was a pupil of {p}.
        {q}, taught by {p}, later took over the {o}.
        {p} passed the {o} on to {q} in {y}.
        {q} took over the {o} from {p} in {y}.
        {p} was employed by {q} until {y}.
        {q} was the {j} of the {o}, and {p} its head.
        {p} was in command, with {q} as {j}.
        {p} employed {q} as {j} from {y}.""",
        """
        A pupil of {p}, {q} took over in {y}.
        {q} learned from {p}.""",
        """
        p: Who came before {q}?
        p: Who was above {q}?
        q: Who came after {p}?
        q: Who worked under {p}?
        q: What was the name of the other person besides {p}?
        p: Who besides {q} is named?
        o: What did {q} take over from {p}?
        y: In what year did {q} come after {p}?""",
        "",
    ),
    _relation(
        "t=thing n=amount u=length s=spot",
        """
        The elevation of the {t} is {n} {u}.
        The {t} has a width of {n} {u}.
        The {t} measures {n} {u} across.
        The {t} is {n} {u} wide.
        The {t}, {n} {u} in diameter, stands {s}.
        With a depth of {n} {u} the {t} is the largest of its kind.
        The {t} lies {n} {u} below the ground {s}.
        The {t} stands {n} {u} from the sea.
        The {t} {s} reaches a height of {n} {u}.
        The {t} runs for {n} {u} {s}.
        The {t} is about {n} {u} deep.
        The {t} lies {n} {u} apart from the next.""",
        """
        Some {n} {u} is what the {t} measures.
        {s_cap} the {t} reaches {n} {u}.""",
        """
        n: How wide is the {t}?
        n: How far does the {t} reach?
        n: How deep is the {t}?
        n: How large is the {t}?
        n: How big is the {t}?
        n: How high is the {t}?
        n: How long is the {t}?
        n: How far is the {t}?
        n: What is the size of the {t}?
        n: What does the {t} measure?
        n: How many {u} does the {t} measure?
        n: How far apart is the {t}?
        s: Where does the {t} stand?
        s: Where is the {t}?
        s: In what place is the {t}?
        t: What measures {n} {u}?
        t: Which thing reaches {n} {u}?""",
        """
        n: How many {u} wide is the {t}?
        t: What is {n} {u} wide?""",
    ),
    _relation(
        "t=thing n=amount q=money p=person y=year",
        """
        The {t} was worth {n} {q}.
        {p} offered {n} {q} for the {t}.
        The {t} brought {p} a sum of {n} {q}.
        {p} could afford the {t} because it was worth only {n} {q}.
        For {n} {q} {p} became the owner of the {t}.
        The buyer of the {t} was {p}, who offered {n} {q}.
        The {t} was valued at {n} {q} in {y}.
        {p} spent {n} {q} on the {t}.""",
        """
        {n} {q} was the sum offered for the {t}.
        {p} valued the {t} at {n} {q}.""",
        """
        n: How much was the {t} worth?
        n: How much was offered for the {t}?
        n: What was the value of the {t}?
        n: How many {q} did {p} offer?
        n: How many {q} was the {t} worth?
        n: What sum was the {t} worth?
        p: Who was the buyer of the {t}?
        p: Who became the owner of the {t}?
        p: Who wanted to have the {t}?
        t: What was worth {n} {q}?
        t: What did {p} want to have?""",
        "",
    ),
    _relation(
        "t=thing n=amount u=duration y=year r=reason",
        """
        The {t} lasted for {n} {u}.
        The {t} stood for {n} {u}.
        The {t} lasted {n} {u} and was shut in {y}.
        The {t} was {n} {u} old when it was shut.
        {n} {u} went by before the {t} was ready.
        The {t} stayed shut for {n} {u} because {r}.
        The {t} was shut in {y}, since {r}.
        The {t} had served for {n} {u} when it was given up because {r}.
        The {t} came to an end in {y} because {r}.
        The {t} must be kept for {n} {u}, because otherwise it is spoiled.
        The {t} was taken down in {y} because {r}.
        What brought the {t} to an end in {y} was that {r}.""",
        """
        The {t} served for {n} {u} until {y}.
        The {t} went on for {n} {u}.""",
        """
        n: How long did the {t} last?
        n: How much time did the {t} take?
        n: How old was the {t}?
        n: How long did the {t} stand?
        n: For how long did the {t} serve?
        n: How many {u} did the {t} last?
        n: How long was the {t} shut?
        r: Why was the {t} shut?
        r: For what reason was the {t} given up?
        r: Why did the {t} come to an end?
        r: Why was the {t} taken down?
        r: What was the reason for the end of the {t}?
        y: When was the {t} shut?
        y: When did the {t} come to an end?
        y: In what year was the {t} taken down?""",
        """
        n: How many {u} did the {t} stand?
        r: For what reason did the {t} come to an end?""",
    ),
    _relation(
        "t=nature s=nature v=nature a=abstract j=thing",
        """
        {t} comes from {s} and not from {v}.
        The {a} of {t} comes from the {s}, while the {v} gives it its shape.
        The {s} causes the {a} of {t}.
        The {a} of the {t} depends on the {s}.
        The {a} of {t} is set by the {s}.
        {t} is protected from {v} by the {s}.
        The {s} protects the {t} from {v}.
        {t}, a relative of the {s}, needs no {v}.
        The {t} is kept alive by {s}.
        What makes the {a} of {t} is the {s}.
        The {t} prefers {s} to {v}.
        The {a} of the {t} equals that of the {s}.
        The {t} owes its {a} to the {s}.""",
        """
        It is the {s} that gives the {t} its {a}.
        To the {s} the {t} owes its {a}.""",
        """
        s: Where does the {a} of {t} come from?
        s: Where does {t} come from?
        s: What causes the {a} of {t}?
        s: What determines the {a} of the {t}?
        s: To what does the {t} owe its {a}?
        s: What protects the {t} from {v}?
        s: What is {t} related to?
        s: What does the {t} need?
        s: On what does the {a} of {t} depend?
        s: What sets the {a} of {t}?
        t: What comes from {s}?
        t: What does the {s} protect?
        a: What does the {t} owe to the {s}?
        a: Which property of {t} comes from the {s}?""",
        """
        s: From where does the {t} take its {a}?
        t: What owes its {a} to the {s}?""",
    ),
    _relation(
        "t=called k=thing g=agent p=person s=abstract",
        """
        This {k} is known as {t}.
        A {k} of this kind, called {t}, was new to {g}.
        {g} speaks of {t} when a {k} is meant.
        The usual name of the {k} is {t}.
        The local word for the {k} is {t}.
        The {k} was given the name {t} by {g}.
        A technique called {t} helps with the {k}.
        The {k} is a problem known as {t}.
        {g} named the {k} after {p}.
        The word {t}, coined by {p}, stands for a {k}.
        The {k}, named after {p}, is also called {t}.""",
        """
        By {t} is meant a {k}.
        {t} is the term of {g} for the {k}.""",
        """
        t: What is the {k} called?
        t: What is the word for the {k}?
        t: What is the name of the {k}?
        t: By what name is the {k} known?
        t: What term is used for the {k}?
        t: What is a {k} of this kind known as?
        t: Which technique helps with the {k}?
        k: What is meant by {t}?
        k: What is {t}?
        g: Who gave the {k} its name?
        g: Who speaks of {t}?
        p: After whom is the {k} named?
        p: Who coined the word {t}?""",
        """
        t: What do they call the {k}?
        p: Who thought of the word {t}?""",
    ),
    _relation(
        "n=small t=nature s=thing u=agent",
        """
        The {t} has {n} of them, and {s} has none.
        There are {n} {t} in the {s}.
        The {s} holds {n} {t}.
        {n} {t} were kept in the {s}.
        A {u} counted {n} {t} on the {s}.
        About {n} {t} can be found near the {s}.
        {n} {t} went into the {s}, a {u} says.
        The {u} carried {n} {t} to the {s}.
        The {s} was made for {n} {t}.""",
        """
        Up to {n} {t} fit into the {s}.
        In the {s} the {u} had {n} {t}.""",
        """
        n: How many {t} are in the {s}?
        n: How many {t} does the {s} hold?
        n: How many {t} were there?
        n: How many {t} were kept in the {s}?
        n: How many {t} did the {u} carry to the {s}?
        n: What number of {t} is named?
        t: Of what are there {n}?
        s: Where are the {n} {t}?
        s: What holds {n} {t}?
        u: Who counted the {t}?""",
        "",
    ),
    _relation(
        "l=city m=city n=amount u=length o=org y=year p=person",
        """
        The road from {l} to {m} is {n} {u} long.
        {l} lies {n} {u} south of {m}.
        {p} travelled from {l} to {m} in {y}.
        The {o} moved from {l} to {m} in {y}.
        In {y} {p} sent the {o} from {l} to {m}.
        {p} left {l} in {y} and reached {m}, {n} {u} away.
        A railway of {n} {u} joins {l} and {m}.
        {n} {u} from {l} stands the town of {m}.""",
        """
        Between {l} and {m} there are {n} {u}.
        {p} went to {m} from {l} in {y}.""",
        """
        n: How far is it from {l} to {m}?
        n: How far from {l} is {m}?
        n: How many {u} away from {l} is {m}?
        n: What is the distance between {l} and {m}?
        m: Where did {p} go from {l}?
        m: To which town did {p} travel?
        m: Where did the {o} move?
        l: From where did {p} go to {m}?
        l: Where did {p} start?
        y: When did {p} reach {m}?
        y: When did the {o} move to {m}?
        p: Who went from {l} to {m}?
        p: Who sent the {o} to {m}?""",
        """
        n: What distance is it from {l} to {m}?
        m: To what town did {p} go?""",
    ),
]

# Sentences that answer nothing: the reader has to leave them aside.
FILLERS = _lines("""
    The {a} {t} of the {g} is still a matter of {s}.
    Visitors often ask about the {a} {t}, but few stay for long.
    Nobody knows how the {g} came by the {t}.
    The {s} of the {t} is described in an old {b}.
    A {t} without a {b} is of little use to a {g}.
    Today the {t} and the {b} stand side by side.
    It is often said that every {g} has a {a} {t}.
    There was much {s} about the {t} in those years.
    The {g} and the {n} have little to do with each other.
    Seen from a distance, the {n} looks {a}.
    This {s} was not new, and it did not last.
    Even so, the {s} of the {n} surprised many people.
    In other words, the {s} matters more than the {s2}.
    The same can be said of the {a} {b} and its {s}.
    Later writers repeated the story of the {g} and the {t}.
    The {s} has changed little since then.
    Most people had never seen a {a} {t} before.
    The {n} and the {s} are discussed at length elsewhere.""")

OPENINGS = [
    "According to the town records, ",
    "As far as we know, ",
    "It is said that ",
    "Records show that ",
    "However, ",
    "In fact, ",
    "At the same time, ",
    "As a result, ",
    "For example, ",
    "Even today people recall that ",
    "Meanwhile, ",
    "Long afterwards it turned out that ",
    "Oddly enough, ",
]
CLOSINGS = [
    ", although few people noticed",
    ", as the guide explains",
    ", and the news spread quickly",
    ", which surprised everyone",
    ", while the neighbours watched",
    ", much to the joy of the town",
    ", as we have seen",
    ", even if some doubt it",
    ", together with a {b} and a {t}",
    ", in spite of the {s}",
    ", like the {a} {b} before it",
]
