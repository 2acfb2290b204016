"""Texts to go on with and texts to copy, written from a seed: the data of the text-generation task."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from tools.checkpoints import question_answering, text_classification

NAME = "text-generation"
SEED = 20244
NUMBER_OF_EXAMPLES = {"train": 400, "heldout": 200}
COPY = "Text: {text}\nCopy:"
LOOK_UP = "Text: {text}\nSentence: {begun}"
_LEAST_WORDS = 3


def write_example(rng: Random, split: str, kind: str) -> dict[str, Any]:
    """One example: a prompt, what follows it, and whether that stands in the prompt word for word.

    Parameters
    ----------
    rng
        Source of randomness.
    split
        ``"train"`` or ``"heldout"``. Held-out texts hold other names and numbers, and four in ten of their sentences
        are put in wordings that training never shows.
    kind
        ``"plain"``, a text begun; ``"copy"``, a text and the order to copy it; ``"look up"``, a text and the first
        words of one of its sentences, which is to be gone on with to its end.
    """
    if kind == "plain":
        return begun(rng, write_text(rng, split))
    if kind == "copy":
        return copied(" ".join(_unlike_sentences(rng, split, rng.choice((1, 2, 2, 3, 4)))))
    while True:
        sentences = _unlike_sentences(rng, split, rng.choice((2, 3, 4, 5)))
        sentence, text = rng.choice(sentences), " ".join(sentences)
        first = " ".join(sentence.split(" ")[:_LEAST_WORDS])
        if text.count(first) == 1:
            prompt = LOOK_UP.format(text=text, begun=first)
            return {"prompt": prompt, "continuation": sentence[len(first) :], "copied": True}


def write_text(rng: Random, split: str) -> str:
    """A paragraph about facts, or a review."""
    if rng.random() < 0.25:
        return text_classification.write_review(rng, split, rng.choice(text_classification.LABELS))
    return " ".join(_sentences(rng, split, rng.choice((1, 2, 3, 4, 6))))


def begun(rng: Random, text: str) -> dict[str, Any]:
    """A text cut between two words, a quarter to half of it in the prompt."""
    parts = text.split(" ")
    first = max(min(_LEAST_WORDS, len(parts) - 1), int(len(parts) * rng.uniform(0.25, 0.5)))
    prompt = " ".join(parts[:first])
    return {"prompt": prompt, "continuation": text[len(prompt) :], "copied": False}


def copied(text: str) -> dict[str, Any]:
    """A text to be copied whole."""
    return {"prompt": COPY.format(text=text), "continuation": f" {text}", "copied": True}


def _sentences(rng: Random, split: str, count: int) -> list[str]:
    paragraph = question_answering.draw_paragraph(
        rng,
        split,
        count,
        noise=rng.choice((0.0, 0.2, 0.5)),
        heldout_wordings=0.4 if split == "heldout" else 0.0,
        topics=rng.choice((1, 2, 3, 6)),
    )
    return [question_answering.marked(sentence)[0] for sentence in paragraph]


def _unlike_sentences(rng: Random, split: str, count: int) -> list[str]:
    """Sentences that have little to do with each other, so that a few words tell the place in the text."""
    return [_sentences(rng, split, 1)[0] for _ in range(count)]


def stream(rng: Random) -> Iterator[dict[str, Any]]:
    """Endless training examples: training names and wordings only."""
    while True:
        yield write_example(rng, "train", rng.choices(("plain", "copy", "look up"), (0.4, 0.35, 0.25))[0])


def write_file(split: str, seed: int = SEED) -> list[dict[str, Any]]:
    """The content of ``text-generation-{split}.json``: half are texts to go on with, half are texts to copy."""
    rng = Random(f"{seed} text-generation {split}")
    kinds = ("plain", "copy", "plain", "look up")
    found: dict[str, dict[str, Any]] = {}
    while len(found) < NUMBER_OF_EXAMPLES[split]:
        example = write_example(rng, split, kinds[len(found) % len(kinds)])
        found.setdefault(example["prompt"], example)
    return list(found.values())
