"""Text and token classification: read the data, encode it, score the predictions."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cpuinfer_helpers.errors import DataError
from cpuinfer_helpers.tasks.files import read_json

_TAG = re.compile(r"O|[BI]-\S+")


@dataclass(frozen=True)
class LabelledText:
    """A text with its label, such as ``positive``."""

    text: str
    label: str


@dataclass(frozen=True)
class TaggedSentence:
    """Words with a BIO tag each: ``B-PER`` begins a name, ``I-PER`` continues it, ``O`` is none."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


def read_texts(path: str | os.PathLike[str]) -> list[LabelledText]:
    """Read a JSON list of objects with ``text`` and ``label``.

    Raises
    ------
    DataError
        If the file or a record is malformed; the message names it.
    """
    examples = []
    for place, record in _read_records(path, ("text", "label")):
        if not _is_text(record["text"]) or not _is_text(record["label"]):
            raise DataError(f"{place}: text and label must be texts that are not empty")
        examples.append(LabelledText(record["text"], record["label"]))
    return examples


def read_sentences(path: str | os.PathLike[str]) -> list[TaggedSentence]:
    """Read a JSON list of objects with ``tokens`` and ``tags``, as many of each.

    Raises
    ------
    DataError
        If the file or a record is malformed; the message names it.
    """
    examples = []
    for place, record in _read_records(path, ("tokens", "tags")):
        words, tags = record["tokens"], record["tags"]
        if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags) or not words:
            raise DataError(f"{place}: tokens and tags must be lists of the same length, not empty")
        for word, tag in zip(words, tags, strict=True):
            if not _is_text(word):
                raise DataError(f"{place}: a token is {word!r}; it must be a text that is not empty")
            if not isinstance(tag, str) or not _TAG.fullmatch(tag):
                raise DataError(f"{place}: a tag is {tag!r}; it must be O, or B- or I- with a type, such as B-PER")
        examples.append(TaggedSentence(tuple(words), tuple(tags)))
    return examples


def accuracy(wanted: Sequence[str], predicted: Sequence[str]) -> float:
    """Share of equal labels, in percent."""
    return 100.0 * sum(a == b for a, b in zip(wanted, predicted, strict=True)) / len(wanted)


def entity_f1(wanted: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of whole entities, in percent, as CoNLL-2003 counts them.

    An entity is right only if its first word, its last word and its type are right (Tjong Kim Sang and De Meulder 2003,
    *Introduction to the CoNLL-2003 Shared Task*, section 2).

    Parameters
    ----------
    wanted, predicted
        BIO tags of each sentence.

    Returns
    -------
    dict
        ``precision``, ``recall`` and ``f1``, 0 to 100.
    """
    pairs = [(entities(a), entities(b)) for a, b in zip(wanted, predicted, strict=True)]
    right = sum(len(a & b) for a, b in pairs)
    precision = right / max(1, sum(len(b) for _, b in pairs))
    recall = right / max(1, sum(len(a) for a, _ in pairs))
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"precision": 100 * precision, "recall": 100 * recall, "f1": 100 * f1}


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Type, first and last index of every entity; an ``I-`` without its beginning begins one, as conlleval counts."""
    found: set[tuple[str, int, int]] = set()
    kind, start = "", 0
    for index, tag in enumerate([*tags, "O"]):
        prefix, _, tag_kind = tag.partition("-")
        if kind and (prefix != "I" or tag_kind != kind):
            found.add((kind, start, index - 1))
            kind = ""
        if prefix in ("B", "I") and not kind:
            kind, start = tag_kind, index
    return found


def first_tokens(encoded: Any, row: int) -> dict[int, int]:
    """For each word of a row of a tokenizer's output, the position of its first token, which carries the word's tag."""
    positions: dict[int, int] = {}
    for position, word in enumerate(encoded.word_ids(row)):
        if word is not None:
            positions.setdefault(word, position)
    return positions


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _read_records(path: str | os.PathLike[str], keys: tuple[str, ...]) -> list[tuple[str, Mapping[str, Any]]]:
    source, records = os.fspath(path), read_json(path)
    if not isinstance(records, list) or not records:
        raise DataError(f"{source} is not a list of records, or an empty one")
    for number, record in enumerate(records):
        missing = [key for key in keys if not isinstance(record, Mapping) or key not in record]
        if missing:
            raise DataError(f"{source}, record {number} has no {missing[0]!r}")
    return [(f"{source}, record {number}", record) for number, record in enumerate(records)]
