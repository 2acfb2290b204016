"""Short product reviews with a sentiment, written from a seed: the data of the text-classification task."""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random

from tools.checkpoints import words

SEED = 20241
LABELS = ("negative", "positive")
NUMBER_OF_EXAMPLES = {"train": 600, "heldout": 300}

PRAISE = """good great excellent superb lovely reliable comfortable sturdy clear quick helpful delicious pleasant solid accurate
    bright quiet tidy generous fresh elegant smooth wonderful charming friendly precise brilliant perfect useful handy
    impressive enjoyable fun beautiful fantastic nice amazing polite warm cosy tasty gorgeous""".split()
BLAME = """bad poor awful terrible horrible flimsy uncomfortable useless slow rude bland noisy dim dirty stale clumsy rough dreadful
    boring weak broken faulty cheap ugly annoying confusing disappointing cold damp greasy inaccurate unreliable unpleasant
    fragile dull mediocre cracked sticky painful nasty tasteless""".split()
LIKES = "like love enjoy recommend trust admire praise adore appreciate treasure".split()
DISLIKES = "dislike hate regret avoid distrust despise return resent".split()
WORKED = """worked perfectly|held up for years|did its job|arrived early|fitted at once|kept its promise|lasted all winter
    survived a fall|came nicely packed|paid for itself|exceeded my hopes|made us smile|ran without a hitch
    looks as good as new|solved my problem|cleaned up beautifully""".replace("\n", "|").split("|")
FAILED = """broke within a week|fell apart|stopped working|arrived late|never fitted|leaked everywhere|cracked on the first day
    made a terrible noise|was missing half its parts|wore out in a month|smelled of glue|gave me a headache
    fell short of the promise|had to go back|refused to start|ruined our evening""".replace("\n", "|").split("|")
WORKED += """is worth every penny|has served us well ever since|keeps the rain out|stays dry in any storm|never lets you down
    is easy to set up|gives a clear picture|holds its charge for days|was cleaned with great care|was replaced free of charge
    came with clear instructions|made my morning|is a joy to use|fits like a glove|charmed the whole family|saved us hours
    still looks new|was finished on time|survived the journey without a scratch|had us laughing from start to end
    is solid as a rock|answers at the first touch|keeps perfect time|did everything I asked of it|won us over
    was repaired within an hour and at no cost|brought back happy memories|tastes of fresh fruit|helped me sleep at last
    runs as well today as on the first day|was better than the picture|was just what we needed|is the best I have owned
    gets better every year|left us smiling|made the work light|never fails|was a pleasant surprise|is strong and simple
    remembers every setting|was easy on the eyes|can be trusted|kept the children happy|was full of good ideas""".split(
    "|"
)
FAILED += """is a waste of money|has never worked since|lets the rain in|was soaked after one shower|let me down again
    took hours to set up|gives a blurred picture|loses its charge overnight|was covered in dust and hair|could not be returned
    came without instructions|spoiled my morning|is a pain to use|pinches and itches|bored the whole family|cost us hours
    already looks old|was finished three weeks too late|arrived with a deep scratch|had us yawning from start to end
    is thin as paper|hangs at every touch|runs ten minutes slow|did nothing I asked of it|put us off
    went dark after a month and nobody would repair it|was stolen from the porch because nobody rang|tastes of soap
    kept me awake all night|jams every day|was nothing like the picture|was not what we were promised|is the worst I have owned
    gets worse every year|left us hungry|made the work harder|fails when it matters|was a nasty surprise|tears at once
    forgets every setting|hurt my eyes|cannot be trusted|made the children cry|had no plot at all|never answers letters
    lost my order|was burnt and far too salty|charges twice for the same thing|does not hold|faded in the first wash""".split(
    "|"
)
WORKED = [part.strip() for phrase in WORKED for part in phrase.split("\n")]
FAILED = [part.strip() for phrase in FAILED for part in phrase.split("\n")]
THINGS = {
    "train": """kettle lamp chair backpack camera keyboard phone charger blanket pillow toaster jacket tent radio printer
        watch speaker bicycle mattress soup meal hotel room service film novel waiter guide umbrella screen battery
        bread coffee concert course app game desk oven vacuum""".split(),
    "heldout": """headset blender suitcase sofa router projector raincoat stapler museum podcast bakery dentist scooter
        drill freezer tablet pasta ferry workshop curtain""".split(),
}
STRENGTH = ["very", "really", "quite", "truly", "rather", "extremely", "so", "surprisingly"]

# {p}: praise or a good event, {n}: blame or a bad one; the side that decides is named by the table's key.
# Keys ending in "heldout" are wordings that training never shows.
POSITIVE = {
    "train": """The {thing} is {s} {P}.|This {thing} {W}.|I {L} this {thing}.|What a {P} {thing}.|The {thing} was not {B} at all.
        The {thing} is anything but {B}.|It looked {B}, but the {thing} {W}.|I expected a {B} {thing}, yet it {W}.
        Although it seemed {B} at first, the {thing} turned out {P}.|I do not {D} the {thing}; it is {P}.
        Never mind the doubters: the {thing} is {P}.|The {thing} is neither {B} nor {B2}.|Despite the {B} {thing2}, I {L} the {thing}.
        My old {thing} {F}, but this one {W}.|You will not {D} this {thing}.|There is nothing {B} about the {thing}.
        The {thing2} was {B}. Even so, the {thing} {W} and I {L} it.|I could not be happier with the {thing}.
        The {thing} is {P} and {P2}.|My friends called it {B}, and they were wrong: the {thing} is {P}.
        Not once has the {thing} been {B}.|I have no complaints about the {thing}.|It is hard not to {L} this {thing}.
        If it were {B} I would say so, but the {thing} is {P}.|The {thing} is hardly {B}.|It {W}.|The {thing}, which looked {B}, {W}.
        I was ready to {D} it, but it {W}.|We {L} the {thing} because it {W}.|We were afraid it would be {B}; it {W}.|{P} and {P2}.
        A {P} {thing} that {W}.|The {thing2} {F} last year. This {thing} {W}.|Everything about it is {P}.|It {W} and {W2}.
        Other people say it {F}; mine {W}.|Without a doubt a {P} {thing}.|I have never had a more {P} {thing}.|Nothing {F0}.
        Nobody will {D} this {thing}.|Nobody I know would {D} it.|They say it is {B}; it is not.|People say that it {F}. Not so.
        Someone called the {thing} {B}, which it is not.|The {thing} is far from {B}.|Who could {D} it?|Is it {B}? Not at all, it is {P}.
        After a {B} first day the {thing} {W}.|Nobody found it {B}.|None of us was able to {D} it.|A {B} box, but the {thing} {W}.
        I had been told that it would be {B}. It was not.|Who says it is {B}? I find it {P}.|It was said to be {B}; it is {P}.
        I thought it {F}. I was wrong: it {W}.|You could not ask for a more {P} {thing}.|The {thing} {W}. I would buy it again.""",
    "heldout": """Who said this {thing} would be {B}? It is {P}.|A {B} start, then the {thing} {W}.|Nobody could {D} such a {thing}.
        I was told the {thing} was {B}; it is not.|Far from {B}, the {thing} is {P}.""",
}
NEGATIVE = {
    "train": """The {thing} is {s} {B}.|This {thing} {F}.|I {D} this {thing}.|What a {B} {thing}.|The {thing} was not {P} at all.
        The {thing} is anything but {P}.|It looked {P}, but the {thing} {F}.|I expected a {P} {thing}, yet it {F}.
        Although it seemed {P} at first, the {thing} turned out {B}.|I do not {L} the {thing}; it is {B}.
        Never again: the {thing} is {B}.|The {thing} is neither {P} nor {P2}.|Despite the {P} {thing2}, I {D} the {thing}.
        My old {thing} {W}, but this one {F}.|You will not {L} this {thing}.|There is nothing {P} about the {thing}.
        The {thing2} was {P}. Even so, the {thing} {F} and I {D} it.|I could not be less happy with the {thing}.
        The {thing} is {B} and {B2}.|My friends called it {P}, and they were wrong: the {thing} is {B}.
        Not once has the {thing} been {P}.|I have nothing but complaints about the {thing}.|It is hard to {L} this {thing}.
        If it were {P} I would say so, but the {thing} is {B}.|The {thing} is hardly {P}.|It {F}.|The {thing}, which looked {P}, {F}.
        I was ready to {L} it, but it {F}.|We {D} the {thing} because it {F}.|We were hoping it would be {P}; it {F}.|{B} and {B2}.
        A {B} {thing} that {F}.|The {thing2} {W} last year. This {thing} {F}.|Everything about it is {B}.|It {F} and {F2}.
        Other people say it {W}; mine {F}.|Without a doubt a {B} {thing}.|I have never had a more {B} {thing}.|Nothing {P0}.
        Nobody will {L} this {thing}.|Nobody I know would {L} it.|They say it is {P}; it is not.|People say that it {W}. Not so.
        Someone called the {thing} {P}, which it is not.|The {thing} is far from {P}.|Who could {L} it?|Is it {P}? Not at all, it is {B}.
        After a {P} first day the {thing} {F}.|Nobody found it {P}.|None of us was able to {L} it.|A {P} box, but the {thing} {F}.
        I had been told that it would be {P}. It was not.|Who says it is {P}? I find it {B}.|It was said to be {P}; it is {B}.
        I thought it {W}. I was wrong: it {F}.|You could not find a more {B} {thing}.|The {thing} {F}. I want my money back.
        It would be {P} if only it were not so {B}.|It is {P} to look at and {B} to use.|A {P} {thing} that sadly {F}.""",
    "heldout": """Who said this {thing} would be {P}? It is {B}.|A {P} start, then the {thing} {F}.|Nobody could {L} such a {thing}.
        I was told the {thing} was {P}; it is not.|Far from {P}, the {thing} is {B}.""",
}


_ARTICLE = re.compile(r"\b([Aa]) ([aeiou])")


def _wordings(table: dict[str, str], key: str) -> list[str]:
    return [part.strip() for line in table[key].splitlines() for part in line.split("|")]


WORDINGS = {
    label: {key: _wordings(table, key) for key in table}
    for label, table in (("positive", POSITIVE), ("negative", NEGATIVE))
}
NEUTRAL = [
    "I bought the {thing} in {time}.",
    "It came in a {colour} box.",
    "My sister has the same {thing2}.",
    "We used it for {n} days.",
    "The {thing2} next door was closed.",
    "I ordered it on a Monday.",
    "It is {n} years old now.",
    "There is a {colour} one too.",
    "We were four people that evening.",
    "The price had changed since {time}.",
]


def write_review(rng: Random, split: str, label: str) -> str:
    """One review.

    Parameters
    ----------
    rng
        Source of randomness.
    split
        ``"train"`` or ``"heldout"``. Held-out reviews are about other things, and four in ten are put in wordings
        that training never shows.
    label
        ``"negative"`` or ``"positive"``.
    """
    key = "heldout" if split == "heldout" and rng.random() < 0.4 else "train"
    thing, thing2 = rng.sample(THINGS[split], 2)
    praise, blame = rng.sample(PRAISE, 2), rng.sample(BLAME, 2)
    values = {
        "thing": thing,
        "thing2": thing2,
        "P": praise[0],
        "P2": praise[1],
        "B": blame[0],
        "B2": blame[1],
        "L": rng.choice(LIKES),
        "D": rng.choice(DISLIKES),
        **dict(zip(("W", "W2"), rng.sample(WORKED, 2), strict=True)),
        **dict(zip(("F", "F2"), rng.sample(FAILED, 2), strict=True)),
        "F0": rng.choice(("to complain about", "went wrong", "could be better", "was missing")),
        "P0": rng.choice(("works", "was as promised", "good to report", "could be worse")),
        "s": rng.choice(STRENGTH),
        "n": rng.choice(words.SMALL_NUMBERS[:10]),
        "time": rng.choice(words.MONTHS),
        "colour": rng.choice(("red", "blue", "grey", "plain", "large")),
    }
    first = _ARTICLE.sub(r"\1n \2", rng.choice(WORDINGS[label][key]).format(**values))
    sentences = [first[0].upper() + first[1:]]
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        sentences.insert(rng.randint(0, len(sentences)), rng.choice(NEUTRAL).format(**values))
    return " ".join(sentences)


def stream(rng: Random) -> Iterator[dict[str, str]]:
    """Endless training reviews."""
    while True:
        label = rng.choice(LABELS)
        yield {"text": write_review(rng, "train", label), "label": label}


def write_file(split: str, seed: int = SEED) -> list[dict[str, str]]:
    """The content of ``text-classification-{split}.json``: as many reviews of each label, no two alike."""
    rng = Random(f"{seed} text-classification {split}")
    examples: dict[str, str] = {}
    while len(examples) < NUMBER_OF_EXAMPLES[split]:
        label = LABELS[len(examples) % 2]
        examples.setdefault(write_review(rng, split, label), label)
    return [{"text": text, "label": label} for text, label in examples.items()]
