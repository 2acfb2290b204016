"""Sentences with people, organisations and places marked, written from a seed: the data of the token-classification task."""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random

from tools.checkpoints import question_answering, words

SEED = 20242
LABELS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")
NUMBER_OF_EXAMPLES = {"train": 600, "heldout": 300}

# {p} {q}: people, {o} {u}: organisations, {l} {m}: places. The same invented word may be any of the three: what
# stands around it decides.
WORDINGS = {
    "train": """{p} was born in {l} and died in {m} .|{p} works for {o} in {l} .|The {o} hired {p} last {month} .
        {o} opened an office in {l} , said {p} .|The mayor of {l} , {p} , met {q} on Monday .|{p} and {q} left {l} for {m} .
        Shares of {o} fell after {u} sold its plant in {l} .|The {role} {p} moved from {l} to {m} in {year} .
        In {l} , {p} gave a talk at the {o} .|{p} told the {o} that the {thing} was lost .|Trains from {l} to {m} were late .
        The river near {l} is {n} metres wide .|{p} , a {role} , bought a {thing} .|Nobody at {o} would talk to {p} .
        The {o} and the {u} will share the {thing} .|" We are leaving {l} , " said {p} of {o} .|{p} beat {q} in the final in {l} .
        {l} has {n} people and a {thing} .|The {role} asked {p} about the {thing} .|{p} 's {thing} was found in {l} .
        Mr {p1} and Mrs {q1} live near {l} .|Dr {p1} joined the {o} in {year} .|The {thing} of {p} stands in {l} .
        The {role} carried the {thing} to the {thing2} .|In {year} the {adj} {thing} was sold for {n} pounds .
        The {adj} {role} of {l} wrote to {p} .|{o} of {l} paid {p} {n} dollars .|{p} played for {o} before going to {l} .
        A spokesman for {o} said {p1} would return to {l} .|According to {p} , {o} will build a {thing} in {m} .
        Police in {l} arrested {p} on {day} .|{l} beat {m} by three goals .|{p1} was chairman of the {o} until {year} .
        Born in {l} , {p} studied at the {o} .|Rain fell in {l} , {m} and the hills .|It was {p} who led {o} .
        {p} , {q} and a {role} of the {o} met in {l} .|The people of {l} remember {p} .|The company {o} makes {thing} parts .
        Near {l} the {role} met {p1} .|Many {adj} {nature} live in the hills of {l} .|They travelled through {l} in {month} .
        {p} sent the {thing} to {q} .|The {o} published a book by {p} .|His boss at {o} , {p} , comes from {l} .
        The sun set over {l} .|{p} founded {o} in {year} .|The {thing} was made by {o} .|A letter from {p1} reached {l} .
        {p} reached {l} in {year} .|After {p} had reached {l} , {q} followed .|The {thing} was found by {p} .|{p} and {o} share a {thing} .
        The {thing} was found by {o} near {l} .|{o} owns land near {l} .|{p} owns land in {l} .|{p} paid a visit to {l} .
        On a visit to {l} , {p1} met {q1} .|{o} and {p} met .|{p} went to {l} with {q} .|From {l} to {m} it is {n} miles .
        From {l} , {p} wrote to {q} .|{p} , head of {o} , left .|{q} became head of the {o} of {l} .|When {o} closed , {p} went to {m} .
        {p} , who had left {l} , joined {o} .|{p} had left {o} for {l} .|The {thing} of {l} made {o} famous .|The {thing} made {p} famous .
        {l} is famous for its {thing} .|Without {o} , {l} would be poor .|Without {p} and {q} , {o} would not be here .
        When {p1} came to {l} , it rained .|Neither {p} nor {q} knew {l} .|Friends of {p} in {l} wrote to {o} .|The {o} had closed .
        Members of {o} went to {l} .|Both {l} and {m} have a {thing} .|Both {p} and {q} came from {l} .|Both {o} and {u} closed .
        {o} in {l} lost the {thing} .|In {year} {p} came from {l} to {m} .|{l} , {m} and the {o} want a {thing} .|{l} made {p} its mayor .
        Some of the people at {o} live in {l} .|To reach {l} , {p} left {m} at night .|The road to {l} is closed .|She went to {l} .
        He works at {o} .|There is snow in {l} .|The {thing} that {o} made was sold in {l} .|The {role} that {p} met came from {m} .
        The {thing} was lost by {o} .|Later {p} was head of the {u} .|From the {thing} of {o} one sees {l} .|Made by {p} , sold by {o} .""",
    "heldout": """From {l} came the {role} {p} , later head of {o} .|Critics of {o} in {l} wrote to {p} .
        When {p} reached {l} , the {o} had closed .|Both {p} and {o} own land near {m} .|A visit to {l} made {p} famous .
        The {thing} that {p} lost was found by {o} .|{q} , who had left {o} , went to {l} with {p} .
        Without {p} , the {u} of {l} would not exist .""",
}
_SLOT = re.compile(r"\{(\w+)\}")


def _wordings(split: str) -> list[str]:
    return [part.strip() for line in WORDINGS[split].splitlines() for part in line.split("|")]


PARSED = {split: _wordings(split) for split in WORDINGS}


def _person(rng: Random, bank: words.NameBank) -> str:
    first = rng.choice((bank.first_name(rng), bank.first_name(rng), f"{rng.choice('ABCDEFGHJKLMNPRSTVW')}."))
    last = bank.city(rng) if rng.random() < 0.08 else bank.last_name(rng)
    if rng.random() < 0.08:
        return f"{first} {bank.first_name(rng)} {last}"
    return f"{first} {last}"


def _place(rng: Random, bank: words.NameBank) -> str:
    pick = rng.random()
    if pick < 0.6:
        return bank.city(rng)
    if pick < 0.78:
        return bank.country(rng)
    if pick < 0.86:
        return f"{rng.choice(('New', 'Port', 'Upper', 'East', 'Fort', 'Saint'))} {rng.choice((bank.last_name, bank.first_name))(rng)}"
    return f"{rng.choice(('Lake', 'Mount', 'Cape'))} {rng.choice((bank.invented, bank.last_name))(rng)}"


def _organisation(rng: Random, bank: words.NameBank) -> str:
    pick = rng.random()
    if pick < 0.65:
        return bank.organisation(rng)
    if pick < 0.8:
        return f"{rng.choice((bank.last_name, bank.city, bank.country))(rng)} {rng.choice(('United', 'City', 'Motors', 'Airways', 'Steel', 'Rovers'))}"
    if pick < 0.9:
        return f"{bank.last_name(rng)} and {bank.last_name(rng)}"
    return f"{rng.choice(('Radio', 'Bank of', 'Council of', 'Ministry of'))} {bank.country(rng)}"


def write_sentence(rng: Random, split: str) -> tuple[list[str], list[str]]:
    """Tokens and BIO tags of one sentence.

    Parameters
    ----------
    rng
        Source of randomness.
    split
        ``"train"`` or ``"heldout"``. Held-out sentences hold other names, and half of them are put in wordings that
        training never shows.
    """
    bank = words.NameBank(split, invented_share=0.5)
    wording = rng.choice(PARSED["heldout" if split == "heldout" and rng.random() < 0.5 else "train"])
    tokens: list[str] = []
    tags: list[str] = []
    for position, part in enumerate(_SLOT.split(wording)):
        if position % 2 == 0:
            text, kind = part, None
        else:
            text, kind = _value(rng, part, bank)
        pieces = text.split()
        tokens += pieces
        tags += [f"{'I' if index else 'B'}-{kind}" if kind else "O" for index in range(len(pieces))]
    tokens[0] = tokens[0][0].upper() + tokens[0][1:]
    return tokens, tags


def _value(rng: Random, slot: str, bank: words.NameBank) -> tuple[str, str | None]:
    if slot in ("p1", "q1"):
        return bank.last_name(rng), "PER"
    if slot in "pq":
        return _person(rng, bank), "PER"
    if slot in "ou":
        return _organisation(rng, bank), "ORG"
    if slot in "lm":
        return _place(rng, bank), "LOC"
    ordinary = {
        "month": lambda: rng.choice(words.MONTHS),
        "year": lambda: bank.year(rng),
        "n": lambda: bank.amount(rng),
        "role": lambda: rng.choice(words.AGENTS),
        "thing": lambda: rng.choice(words.OBJECTS),
        "thing2": lambda: rng.choice(words.OBJECTS),
        "adj": lambda: rng.choice(words.ADJECTIVES),
        "nature": lambda: rng.choice(words.NATURE),
        "day": lambda: rng.choice(("Monday", "Tuesday", "Friday", "Sunday")),
    }
    return ordinary[slot](), None


# Which values of the question-answering sentences are names.
_KINDS = {"person": "PER", "city": "LOC", "country": "LOC", "river": "LOC", "mountain": "LOC", "org": "ORG"}
_ORDINARY = words.OBJECTS + words.NATURE + words.ABSTRACT + words.AGENTS + words.ADJECTIVES
_TOKEN = re.compile(r"\w[\w.,'-]*\w|\S")


def sentence_about_facts(rng: Random) -> tuple[list[str], list[str]]:
    """Tokens and tags of a sentence from the question-answering generator, in its many wordings."""
    while True:
        values = question_answering.draw_paragraph(rng, "train", 1, noise=0.1)[0]
        text, spans = question_answering.marked(values)
        tokens, tags = [], []
        for match in _TOKEN.finditer(text):
            kind, start = next(
                (
                    (_KINDS[kind], start)
                    for start, end, kind in spans
                    if kind in _KINDS and start <= match.start() < end
                ),
                (None, -1),
            )
            tokens.append(match.group())
            tags.append(f"{'B' if start == match.start() else 'I'}-{kind}" if kind else "O")
        if not any(
            kind in ("bridge", "event", "agent", "spot") for _, _, kind in spans
        ):  # these may hold names unmarked
            return tokens, tags


def vary(rng: Random, tokens: list[str], tags: list[str]) -> list[str]:
    """The tokens with some ordinary words and names exchanged for others, also for words that nobody has ever seen.

    What is left to tell a name by is then its place in the sentence, as with names and words that are new.
    """
    bank, share = words.NameBank("train"), rng.choice((0.0, 0.1, 0.2))
    varied = []
    for token, tag in zip(tokens, tags, strict=True):
        pick = rng.random()
        if tag == "O" and pick < share and token.isalpha() and token.lower() not in COMMON:
            token = (
                rng.choice(_ORDINARY)
                if pick < 0.6 * share
                else bank.invented(rng).lower() + rng.choice(("s", "ed", "ing", "ly", ""))
            )
        elif tag != "O" and pick < share and token not in FIXED and len(token) > 2:
            token = bank.invented(rng)
        varied.append(token)
    return varied


COMMON = frozenset(words.COMMON)
_STARTERS = [word.capitalize() for word in (*words.COMMON, *words.ABSTRACT, *words.AGENTS)]
FIXED = frozenset(" ".join(words.ORG_ENDINGS).split()) | frozenset(
    "Bank Council Ministry Radio New Port Upper East Fort Saint Lake Mount Cape and of United City Motors Airways Steel"
    " Rovers River river Peak Mr Mrs Dr".split()
)


def stream(rng: Random) -> Iterator[dict[str, list[str]]]:
    """Endless training sentences."""
    while True:
        tokens, tags = write_sentence(rng, "train") if rng.random() < 0.6 else sentence_about_facts(rng)
        tokens = vary(rng, tokens, tags)
        if rng.random() < 0.3:  # a capital at the beginning of a sentence says nothing
            tokens, tags = [rng.choice(_STARTERS), *tokens], ["O", *tags]
        yield {"tokens": tokens, "tags": tags}


def write_file(split: str, seed: int = SEED) -> list[dict[str, list[str]]]:
    """The content of ``token-classification-{split}.json``."""
    rng = Random(f"{seed} token-classification {split}")
    found: dict[str, tuple[list[str], list[str]]] = {}
    while len(found) < NUMBER_OF_EXAMPLES[split]:
        tokens, tags = write_sentence(rng, split)
        found.setdefault(" ".join(tokens), (tokens, tags))
    return [{"tokens": tokens, "tags": tags} for tokens, tags in found.values()]
