"""Paragraphs with questions, written from a seed: the data of the question-answering task."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from tools.checkpoints import words
from tools.checkpoints.templates import CLOSINGS, FILLERS, OPENINGS, RELATIONS, Relation

SEED = 20240
NUMBER_OF_QUESTIONS = {"train": 500, "heldout": 200}
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Question:
    """A question about a context, with what the generator knows about it.

    Offsets count characters of the context. `asked` is the kind of value asked for, `sentence` the (start, end) of the
    sentence that answers, and `values` all (start, end, kind) that the context holds: training learns from them too.
    """

    context: str
    question: str
    answer: str
    answer_start: int
    asked: str
    sentence: tuple[int, int]
    values: tuple[tuple[int, int, str], ...]


@cache
def _parts(wording: str) -> tuple[str, ...]:
    """The wording cut at its slots: literal, slot, literal, slot, ..., literal."""
    return tuple(_SLOT.split(wording))


def fill(wording: str, values: dict[str, str]) -> tuple[str, dict[str, int]]:
    """A wording with its slots filled, and where each slot's value starts in the text."""
    text, starts = "", {}
    for position, part in enumerate(_parts(wording)):
        if position % 2:
            starts[part] = len(text)
            text += values[part]
        else:
            text += part
    return _capitalised(text), starts


def _noun_phrase(rng: Random, noun: str) -> str:
    pick = rng.random()
    if pick < 0.35:
        return noun
    if pick < 0.85:
        return f"{rng.choice(words.ADJECTIVES)} {noun}"
    return f"{rng.choice(words.MATERIALS)} {noun}"


def _title(rng: Random) -> str:
    noun = rng.choice(words.OBJECTS + words.NATURE).capitalize()
    return rng.choice(
        (
            f"The {rng.choice(words.ADJECTIVES).capitalize()} {noun}",
            f"A {rng.choice(words.ABSTRACT).capitalize()} of {noun}",
            f"The {noun} and the {rng.choice(words.AGENTS).capitalize()}",
        )
    )


def draw_value(rng: Random, kind: str, bank: words.NameBank) -> str:
    """A value for a slot of the given kind, with the names and numbers of the bank's split.

    Parameters
    ----------
    rng
        Source of randomness.
    kind
        One of the kinds that `templates.RELATIONS` uses, such as ``"person"`` or ``"year"``.
    bank
        Names and numbers of one split.

    Returns
    -------
    str
        The text to put in the sentence.
    """
    return _DRAW[kind](rng, bank)


def _agent(rng: Random, bank: words.NameBank) -> str:
    if rng.random() < 0.4:
        return bank.person(rng)
    return f"{rng.choice(('the', 'the', 'a'))} {_noun_phrase(rng, rng.choice(words.AGENTS))}"


_DRAW = {
    "person": lambda rng, bank: bank.person(rng),
    "city": lambda rng, bank: bank.city(rng),
    "country": lambda rng, bank: bank.country(rng),
    "org": lambda rng, bank: bank.organisation(rng),
    "year": lambda rng, bank: bank.year(rng),
    "date": lambda rng, bank: f"{rng.randint(1, 20)} {rng.choice(words.MONTHS)}",
    "amount": lambda rng, bank: bank.amount(rng),
    "count": lambda rng, bank: f"{bank.number(rng, 21, 900)},{bank.number(rng, 100, 999)}",
    "percent": lambda rng, bank: str(bank.number(rng, 2, 99)),
    "degrees": lambda rng, bank: str(bank.number(rng, 25, 1900)),
    "small": lambda rng, bank: rng.choice(words.SMALL_NUMBERS),
    "job": lambda rng, bank: _noun_phrase(rng, rng.choice(words.AGENTS)),
    "thing": lambda rng, bank: _noun_phrase(rng, rng.choice(words.OBJECTS)),
    "nature": lambda rng, bank: rng.choice(words.NATURE),
    "abstract": lambda rng, bank: rng.choice(words.ABSTRACT),
    "material": lambda rng, bank: rng.choice(words.MATERIALS),
    "agent": _agent,
    "role": lambda rng, bank: _noun_phrase(rng, rng.choice(words.AGENTS)),
    "title": lambda rng, bank: _title(rng),
    "called": lambda rng, bank: (
        f"{rng.choice(words.ADJECTIVES).capitalize()} {rng.choice(words.NATURE).capitalize()}"
        if rng.random() < 0.6
        else bank.invented(rng).lower()
    ),
    "bridge": lambda rng, bank: f"{bank.city(rng)} {rng.choice(('Bridge', 'Bridge', 'Viaduct'))}",
    "river": lambda rng, bank: rng.choice(("River {}", "{} River", "river {}")).format(bank.invented(rng)),
    "mountain": lambda rng, bank: rng.choice(("Mount {}", "{} Peak")).format(bank.invented(rng)),
    "event": lambda rng, bank: (
        f"{rng.choice(('siege', 'Battle', 'strike', 'festival', 'fire', 'flood', 'revolt'))} of {bank.city(rng)}"
    ),
    "spot": lambda rng, bank: rng.choice(words.SPOTS) if rng.random() < 0.8 else f"in {bank.city(rng)}",
    "when": lambda rng, bank: rng.choice(words.TIMES) if rng.random() < 0.6 else f"in {bank.year(rng)}",
    "reason": lambda rng, bank: rng.choice(words.REASONS),
    "purpose": lambda rng, bank: rng.choice(words.PURPOSES),
    **{kind: (lambda rng, bank, names=names: rng.choice(names)) for kind, names in words.UNITS.items()},
}

KINDS = tuple(sorted({kind for relation in RELATIONS for kind in relation.slots.values()}))


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


def draw_fact(rng: Random, relation: Relation, bank: words.NameBank) -> dict[str, str]:
    """Values for every slot of a relation; verbs bring their forms along as ``v_past``, ``v_part``, ..."""
    values: dict[str, str] = {}
    for slot, kind in relation.slots.items():
        if kind == "verb":
            values[slot], values["v_past"], values["v_part"], values["v_ing"] = rng.choice(words.VERBS)
        elif kind == "process":
            values["w_base"], values["w"], values["w_part"], values["w_ing"] = rng.choice(words.PROCESSES)
        else:
            values[slot] = draw_value(rng, kind, bank)
    if "verb" in relation.slots.values():
        thing = values["t"]
        values["t_bare"], values["t"] = thing, f"the {thing}"
    elif relation.slots.get("t") == "nature" and "l" in relation.slots:
        values["t"] = f"{rng.choice(('the', 'the', 'a'))} {values['t']}"
    for slot in ("w", "s", "l", "r"):
        if slot in values:
            values[slot + "_cap"] = _capitalised(values[slot])
    return values


@dataclass(frozen=True)
class _Sentence:
    text: str
    relation: Relation
    fact: dict[str, str]
    starts: dict[str, int]


def _say(rng: Random, relation: Relation, fact: dict[str, str], heldout_wording: bool) -> _Sentence:
    wording = rng.choice(relation.say_heldout if heldout_wording else relation.say)
    text, starts = fill(wording, fact)
    if rng.random() < 0.12:
        opening = rng.choice(OPENINGS)
        keep = text.split(" ", 1)[0] in _KEEP_CAPITAL or not wording.startswith(
            ("The ", "A ", "In ", "{g}", "It ", "About ", "With ", "Work ")
        )
        text = opening + (text if keep else text[0].lower() + text[1:])
        starts = {slot: start + len(opening) for slot, start in starts.items()}
    if rng.random() < 0.1:
        text = text[:-1] + _filler_text(rng, rng.choice(CLOSINGS)) + "."
    merged = {slot.removesuffix("_cap"): start for slot, start in starts.items()}
    return _Sentence(text, relation, fact, merged)


_KEEP_CAPITAL = frozenset(words.FIRST_NAMES["train"] + words.FIRST_NAMES["heldout"])


def _filler_text(rng: Random, wording: str) -> str:
    values = {
        "a": rng.choice(words.ADJECTIVES),
        "t": rng.choice(words.OBJECTS),
        "b": rng.choice(words.OBJECTS),
        "g": rng.choice(words.AGENTS),
        "s": rng.choice(words.ABSTRACT),
        "s2": rng.choice(words.ABSTRACT),
        "n": rng.choice(words.NATURE),
    }
    text = wording
    for slot, value in values.items():
        text = text.replace("{" + slot + "}", value)
    return text


def _similar_fact(rng: Random, relation: Relation, fact: dict[str, str], bank: words.NameBank) -> dict[str, str]:
    """Another fact that shares some values with the first: a distractor that only careful reading tells apart."""
    other = draw_fact(rng, relation, bank)
    shared = [
        slot for slot in relation.slots if relation.slots[slot] not in ("verb", "process") and rng.random() < 0.25
    ]
    for slot in shared:
        other[slot] = fact[slot]
        if slot + "_cap" in fact:
            other[slot + "_cap"] = fact[slot + "_cap"]
        if slot == "t" and "t_bare" in fact:
            other["t_bare"] = fact["t_bare"]
    if "v_past" in fact and rng.random() < 0.35:
        other.update({key: fact[key] for key in ("v", "v_past", "v_part", "v_ing")})
    if "w_base" in fact and rng.random() < 0.35:
        other.update({key: fact[key] for key in ("w", "w_base", "w_part", "w_ing", "w_cap")})
    return other


def _is_ambiguous(sentence: _Sentence, slot: str, wording: str, others: list[_Sentence]) -> bool:
    """Whether another sentence of the paragraph would answer the same question differently."""
    known = [name for name in _SLOT.findall(wording)]
    for other in others:
        if (
            other is sentence
            or slot not in other.starts
            or not set(sentence.relation.slots) & set(other.relation.slots)
        ):
            continue
        if other.relation is sentence.relation and all(other.fact.get(n) == sentence.fact[n] for n in known):
            return True
    return False


def _askable(sentence: _Sentence, heldout_wording: bool) -> list[tuple[str, str]]:
    """(slot, wording) pairs that this sentence answers: all that the question mentions stands in the sentence."""
    table = sentence.relation.ask_heldout if heldout_wording else sentence.relation.ask
    said = sentence.text.lower()
    pairs = []
    for slot, wordings in table.items():
        if slot not in sentence.starts:
            continue
        for wording in wordings:
            names = [name for name in _SLOT.findall(wording)]
            stems = {name.split("_")[0] for name in names}
            held = all(
                name in sentence.starts or sentence.fact[name].lower() in said or name.startswith(("v", "w"))
                for name in names
            )
            if names and held and slot not in stems and _fits(wording, sentence.text):
                pairs.append((slot, wording))
    return pairs


# A question with one of these words needs a sentence with one of those.
_NEEDS = {
    "die": ("died", "death"),
    "teacher": ("teacher",),
    "marry": ("married",),
    "married": ("married",),
    "succeeded": ("succeeded", "followed"),
    "followed": ("followed",),
    "brother": ("brother",),
    "meet": ("met",),
    "met": ("met",),
    "hire": ("hired",),
    "hired": ("hired",),
    "learn": ("learned",),
    "learned": ("learned",),
    "teach": ("teacher",),
    "taught": ("teacher", "pupil"),
    "climbed": ("climbed", "ascent", "top"),
    "top": ("top", "climbed", "summit"),
    "tall": ("tall", "high", "rises", "height", "At"),
    "wide": ("wide",),
    "diameter": ("diameter",),
    "weigh": ("weigh", "weight", "scales"),
    "weight": ("weigh", "weight"),
    "weighs": ("weigh",),
    "heavy": ("weigh", "weight"),
    "made": ("made", "Made", "cast", "frame", "used", "carved", "consists", "covered", "chose"),
    "closed": ("closed",),
    "give": ("gave",),
    "gave": ("gave", "prize"),
    "spend": ("spent",),
    "spent": ("spent",),
    "capital": ("capital",),
    "kill": ("killed",),
    "came": ("came", "idea"),
    "lose": ("lost",),
    "led": ("led", "leader"),
    "lead": ("led", "leader"),
    "leader": ("led", "leader"),
    "end": ("ended", "Death", "passed"),
    "begin": ("began", "established", "begun", "founder"),
    "began": ("began",),
    "melt": ("melts",),
    "melts": ("melts",),
    "mixed": ("mixed", "mixes"),
    "mix": ("mixed", "mixes"),
    "added": ("added",),
    "heat": ("heats", "brought"),
    "heats": ("heats",),
    "turn": ("turns",),
    "prefer": ("prefers",),
    "used": ("used", "serves"),
    "serve": ("serves",),
    "kinds": ("kinds",),
    "parts": ("parts",),
    "copies": ("copies",),
    "pages": ("pages",),
    "sell": ("sold",),
    "sold": ("sold",),
    "buy": ("bought",),
    "bought": ("bought",),
    "paid": ("paid",),
    "pay": ("paid", "bought"),
    "cost": ("cost",),
    "price": ("cost", "price", "paid", "bought", "sold"),
    "owns": ("belonged", "bought"),
    "belong": ("belonged",),
    "show": ("show",),
    "museum": ("museum",),
    "earn": ("earned",),
    "second": ("second",),
    "highest": ("highest", "tallest"),
    "rose": ("rose",),
    "rise": ("rose",),
    "grow": ("grew",),
    "reaches": ("reaches",),
    "hold": ("holds",),
    "holds": ("holds",),
    "depend": ("depends",),
    "discover": ("discovered",),
    "discovered": ("discovered",),
    "study": ("studied",),
    "studied": ("studied",),
    "described": ("described",),
    "prize": ("prize",),
    "covered": ("covered",),
    "consist": ("consist",),
    "live": ("lives", "lived", "live", "people"),
    "found": ("found", "established", "start", "founder", "set up", "created"),
    "warm": ("warm",),
    "dry": ("dry",),
    "reason": ("reason",),
    "flows": ("flows",),
    "need": ("needs", "needed"),
    "needs": ("needs",),
    "worked": ("worked",),
    "models": ("models",),
    "cool": ("cool",),
    "last": ("lasted",),
    "finish": ("finish",),
    "mean": ("means",),
    "part": ("part",),
    "change": ("changes",),
    "changes": ("changes",),
    "width": ("wide",),
    "join": ("joined",),
    "joined": ("joined",),
    "completed": ("completed", "Completed", "ended"),
    "opened": ("opened", "since"),
    "open": ("opened", "since", "Since"),
    "name": ("named", "called", "known", "nicknamed", "name"),
    "shut": ("shut", "closed"),
    "explained": ("explaining",),
    "buyer": ("buyer", "bought"),
    "percentage": ("percent",),
    "so": ("spent",),
    "carved": ("carved",),
    "long": ("long", "length", "lasted", "took", "closed", "spent", "measures", "For", "used"),
    "largest": ("largest", "second"),
    "population": ("population", "people", "inhabitants", "Home"),
    "take": ("took", "take", "killed", "came", "began", "lasted"),
    "lie": ("lies", "town", "on the"),
    "lies": ("lies", "town", "on the"),
    "hot": ("heat", "degrees"),
    "high": ("high", "rises", "height", "At"),
    "height": ("high", "rises", "height", "At"),
    "reach": ("reached", "up to"),
    "life": ("died", "Death"),
    "birth": ("born", "birth"),
    "born": ("born",),
    "patent": ("patent",),
    "first": ("first", "inventor", "Nobody"),
    "idea": ("idea",),
    "give up": ("gave up",),
}


def _fits(wording: str, sentence: str) -> bool:
    literal = _SLOT.sub(" ", wording)
    present = set(re.findall(r"[A-Za-z]+", sentence))
    for word in re.findall(r"[a-z]+", literal):
        needed = _NEEDS.get(word)
        if needed and not any(
            form in present or (" " in form and form in sentence) or _starts(form, present) for form in needed
        ):
            return False
    return True


def _starts(form: str, present: set[str]) -> bool:
    return len(form) > 3 and any(word.startswith(form) for word in present)


def draw_paragraph(
    rng: Random, split: str, sentences: int, *, noise: float = 0.3, heldout_wordings: float = 0.0, topics: int = 4
) -> list[_Sentence | str]:
    """Sentences of one paragraph, in order; plain strings are fillers.

    Parameters
    ----------
    rng
        Source of randomness.
    split
        ``"train"`` or ``"heldout"``: whose names and numbers.
    sentences
        How many sentences to write.
    noise
        Share of filler sentences, 0 to 1.
    heldout_wordings
        Share of sentences that use a wording of the held-out list, 0 to 1.
    topics
        Number of relations in play: with few, the facts resemble one another more.
    """
    bank = words.NameBank(split)
    relations = rng.sample(RELATIONS, k=min(topics, len(RELATIONS)))
    last: dict[int, dict[str, str]] = {}
    paragraph: list[_Sentence | str] = []
    for _ in range(sentences):
        if rng.random() < noise:
            paragraph.append(_filler_text(rng, rng.choice(FILLERS)))
            continue
        index = rng.randrange(len(relations))
        relation = relations[index]
        if index in last and rng.random() < 0.6:
            fact = _similar_fact(rng, relation, last[index], bank)
        else:
            fact = draw_fact(rng, relation, bank)
        last[index] = fact
        paragraph.append(_say(rng, relation, fact, rng.random() < heldout_wordings))
    return paragraph


def marked(sentence: _Sentence | str) -> tuple[str, list[tuple[int, int, str]]]:
    """A sentence's text, and (start, end, kind) of each value in it."""
    if isinstance(sentence, str):
        return sentence, []
    slots = sentence.relation.slots
    return sentence.text, [
        (start, start + len(sentence.fact[slot]), slots[slot])
        for slot, start in sentence.starts.items()
        if slot in slots
    ]


def questions_about(
    rng: Random,
    paragraph: list[_Sentence | str],
    wanted: int,
    *,
    heldout_wordings: float = 0.0,
    short_names: float = 0.2,
) -> list[Question]:
    """Up to `wanted` questions whose answer the paragraph holds exactly once.

    Parameters
    ----------
    rng
        Source of randomness.
    paragraph
        From `draw_paragraph`.
    wanted
        How many questions to ask at most.
    heldout_wordings
        Share of questions put in a wording of the held-out list, 0 to 1.
    short_names
        How often a person is asked about by the family name only, 0 to 1.

    Returns
    -------
    list of Question
        Answers are substrings of the context at ``answer_start``.
    """
    facts = [sentence for sentence in paragraph if isinstance(sentence, _Sentence)]
    context = " ".join(sentence if isinstance(sentence, str) else sentence.text for sentence in paragraph)
    offsets, offset = {}, 0
    for sentence in paragraph:
        offsets[id(sentence)] = offset
        offset += len(sentence if isinstance(sentence, str) else sentence.text) + 1
    values = tuple(
        (offsets[id(fact)] + start, offsets[id(fact)] + start + len(fact.fact[slot]), fact.relation.slots[slot])
        for fact in facts
        for slot, start in fact.starts.items()
        if slot in fact.relation.slots
    )
    rng.shuffle(facts)
    found: list[Question] = []
    for sentence in facts[: 2 * wanted]:
        choices = _askable(sentence, rng.random() < heldout_wordings) or _askable(sentence, False)
        rng.shuffle(choices)
        by_slot: dict[str, str] = {}
        for slot, wording in choices:
            by_slot.setdefault(slot, wording)
        slots = list(by_slot)
        rng.shuffle(slots)
        for slot in slots[: 1 + (rng.random() < 0.3)]:
            if _is_ambiguous(sentence, slot, by_slot[slot], facts):
                continue
            question, _ = fill(by_slot[slot], _as_asked(rng, sentence, short_names))
            start = offsets[id(sentence)] + sentence.starts[slot]
            length = len(sentence.fact[slot])
            if not _UNIT_ASKED.search(question):
                length += _unit_length(context, start + length)
            found.append(
                Question(
                    context,
                    question,
                    context[start : start + length],
                    start,
                    sentence.relation.slots[slot],
                    (offsets[id(sentence)], offsets[id(sentence)] + len(sentence.text)),
                    values,
                )
            )
    return found[:wanted]


_UNIT_ASKED = re.compile(r"^How many|percent|degrees")
_UNITS = sorted(
    {unit for units in words.UNITS.values() for unit in units} | {"percent", "crowns", "degrees"}, key=len, reverse=True
)
_UNIT_FOLLOWS = re.compile(f" (?:{'|'.join(_UNITS)})\\b")


def _unit_length(context: str, position: int) -> int:
    """Characters of the unit that follows a number at this position: "How long ...?" is answered "12 metres"."""
    match = _UNIT_FOLLOWS.match(context, position)
    return (
        match.end() - position if match and context[position - 1].isalnum() and _ends_number(context, position) else 0
    )


def _ends_number(context: str, position: int) -> bool:
    word = context[:position].rsplit(None, 1)[-1].lower()
    return word[0].isdigit() or word in ("million", "hundred", "thousand") or word in words.SMALL_NUMBERS


def _as_asked(rng: Random, sentence: _Sentence, short_names: float) -> dict[str, str]:
    """The fact's values as a question would put them: sometimes only the family name."""
    asked = dict(sentence.fact)
    for slot, kind in sentence.relation.slots.items():
        if kind == "person" and rng.random() < short_names:
            asked[slot] = asked[slot].split()[-1]
    return asked


def stream(rng: Random, sentences: tuple[int, int], per_paragraph: int = 3) -> Iterator[Question]:
    """Endless training questions: new paragraphs, training names and wordings only."""
    while True:
        paragraph = draw_paragraph(
            rng, "train", rng.randint(*sentences), noise=rng.choice((0.0, 0.2, 0.5)), topics=rng.choice((1, 2, 3, 6))
        )
        yield from questions_about(rng, paragraph, per_paragraph)


def write_file(split: str, seed: int = SEED) -> dict[str, Any]:
    """The content of ``question-answering-{split}.json``, in the format of SQuAD 1.1."""
    rng = Random(f"{seed} question-answering {split}")
    heldout = split == "heldout"
    wanted = NUMBER_OF_QUESTIONS[split]
    articles, count = [], 0
    while count < wanted:
        length = rng.choice((3, 4, 5, 7, 9, 12, 18, 28, 40))
        paragraph = draw_paragraph(
            rng, split, length, noise=0.25, heldout_wordings=0.4 if heldout else 0.0, topics=rng.choice((2, 3, 5))
        )
        questions = questions_about(rng, paragraph, min(5, wanted - count), heldout_wordings=0.4 if heldout else 0.0)
        if not questions:
            continue
        entries = []
        for question in questions:
            count += 1
            entries.append(
                {
                    "id": f"{split}-{count:04d}",
                    "question": question.question,
                    "answers": [{"text": question.answer, "answer_start": question.answer_start}],
                }
            )
        articles.append(
            {
                "title": f"Generated paragraph {len(articles) + 1}",
                "paragraphs": [{"context": questions[0].context, "qas": entries}],
            }
        )
    return {"version": f"cpuinfer-helpers question answering, {split}, seed {seed}", "data": articles}
