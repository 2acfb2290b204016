"""One tag for each word."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cpuinfer_helpers.errors import DataError
from cpuinfer_helpers.tasks.batches import rows_of
from cpuinfer_helpers.tasks.files import is_text, read_records
from cpuinfer_helpers.tasks.hub import DatasetFile
from cpuinfer_helpers.tasks.kinds.base import Encoded, HubSource, Outputs, TaskData, TaskKind, shipped_files
from cpuinfer_helpers.tasks.texts import longest_row

NAME = "token-classification"
_TAG = re.compile(r"O|[BI]-\S+")
# In the order in which CoNLL-2003 on the hub numbers them.
_TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")
# What cross-entropy leaves out.
_NO_LABEL = -100


@dataclass(frozen=True)
class TaggedSentence:
    """Words with a BIO tag each: ``B-PER`` begins a name, ``I-PER`` continues it, ``O`` is none."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


def read_sentences(path: str | os.PathLike[str]) -> list[TaggedSentence]:
    """Read a JSON list of objects with ``tokens`` and ``tags``, as many of each.

    Raises
    ------
    DataError
        If the file or a record is malformed; the message names it.
    """
    examples = []
    for place, record in read_records(path, ("tokens", "tags")):
        words, tags = record["tokens"], record["tags"]
        if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags) or not words:
            raise DataError(f"{place}: tokens and tags must be lists of the same length, not empty")
        for word, tag in zip(words, tags, strict=True):
            if not is_text(word):
                raise DataError(f"{place}: a token is {word!r}; it must be a text that is not empty")
            if not isinstance(tag, str) or not _TAG.fullmatch(tag):
                raise DataError(f"{place}: a tag is {tag!r}; it must be O, or B- or I- with a type, such as B-PER")
        examples.append(TaggedSentence(tuple(words), tuple(tags)))
    return examples


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


def _read_rows(rows: Sequence[Mapping[str, Any]]) -> list[TaggedSentence]:
    return [TaggedSentence(tuple(row["tokens"]), tuple(_TAGS[number] for number in row["ner_tags"])) for row in rows]


def _text_of(sentence: TaggedSentence) -> tuple[str, str]:
    return "", " ".join(sentence.words)


def _encode(tokenizer: Any, sentences: Sequence[TaggedSentence]) -> Encoded:
    """Tokenize sentences word by word, cut to what the model takes."""
    words = [list(sentence.words) for sentence in sentences]
    encoded = tokenizer(words, is_split_into_words=True, truncation=True, max_length=longest_row(tokenizer))
    return Encoded(rows_of(tokenizer, encoded), [first_tokens(encoded, row) for row in range(len(sentences))])


def _decode(
    encoded: Encoded, sentences: Sequence[TaggedSentence], outputs: Outputs, labels: Mapping[int, str]
) -> list[tuple[str, ...]]:
    """Tags for the words of each sentence."""
    rows = zip(sentences, encoded.places, outputs, strict=True)
    return [_tags(sentence, firsts, logits.argmax(dim=-1), labels) for sentence, firsts, (logits,) in rows]


def _tags(
    sentence: TaggedSentence, firsts: Mapping[int, int], best: torch.Tensor, labels: Mapping[int, str]
) -> tuple[str, ...]:
    numbers = best.tolist()
    return tuple(labels[numbers[firsts[word]]] if word in firsts else "O" for word in range(len(sentence.words)))


def _score(sentences: Sequence[TaggedSentence], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    return entity_f1([sentence.tags for sentence in sentences], predicted)


def _label_numbers(
    encoded: Encoded, sentences: Sequence[TaggedSentence], numbers: Mapping[str, int]
) -> list[list[int]]:
    """The number of each word's tag at its first token; other tokens have none."""
    found = []
    for row, firsts, sentence in zip(encoded.rows, encoded.places, sentences, strict=True):
        labels = [_NO_LABEL] * len(row["input_ids"])
        for word, position in firsts.items():
            labels[position] = numbers[sentence.tags[word]]
        found.append(labels)
    return found


KIND = TaskKind(
    NAME,
    "AutoModelForTokenClassification",
    data=TaskData(
        files=shipped_files(NAME),
        source=HubSource(
            "dslim/bert-base-NER",
            DatasetFile("eriktks/conll2003", "conll2003/validation/0000.parquet", "refs/convert/parquet"),
            _read_rows,
        ),
        read=read_sentences,
        text_of=_text_of,
        encode=_encode,
        outputs=("logits",),
        decode=_decode,
        score=_score,
        metric="f1",
        labels=_TAGS,
        label_numbers=_label_numbers,
        collator="DataCollatorForTokenClassification",
    ),
)
