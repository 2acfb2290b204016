"""Read question answering data in SQuAD's format, nested or flat, and say which record is malformed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cpuinfer_helpers.errors import DataError
from cpuinfer_helpers.tasks.files import read_json


@dataclass(frozen=True)
class Question:
    """One question with its context and its accepted answers.

    Attributes
    ----------
    id
        Unique name.
    question, context
        Texts.
    answers
        Accepted answers, each a part of the context; empty for a question that the context does not answer.
    answer_starts
        Index in ``context`` of the first character of each answer.
    """

    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    answer_starts: tuple[int, ...]


def read_squad(path: str | os.PathLike[str], *, answers: bool = True) -> list[Question]:
    """Read a SQuAD file.

    Parameters
    ----------
    path
        JSON: nested (``data``, ``paragraphs``, ``qas``) as SQuAD is published, or flat (a list, or ``data`` as a
        list, of records with ``id``, ``context``, ``question`` and ``answers``) as the datasets library writes it.
    answers
        Whether every record must have ``answers``, which a test set does not.

    Returns
    -------
    list of Question

    Raises
    ------
    DataError
        If the file cannot be read, is not of this format, holds no question, repeats an id, or an answer does not
        stand at its ``answer_start``. The message names the record.
    """
    return parse_squad(read_json(path), str(path), answers=answers)


def parse_squad(content: Any, source: str = "the data", *, answers: bool = True) -> list[Question]:
    """Turn the content of a SQuAD file, or rows of the datasets library, into questions; see :func:`read_squad`."""
    entries = content.get("data") if isinstance(content, Mapping) else content
    if not isinstance(entries, list):
        raise DataError(f"{source} has no list of records under 'data'; SQuAD's format has one")
    questions: list[Question] = []
    seen: set[str] = set()
    for place, context, record in _records(entries, source):
        question = _question(place, context, record if answers else {"answers": [], **record})
        if question.id in seen:
            raise DataError(f"{place}: the id {question.id!r} occurs twice; ids must be unique")
        seen.add(question.id)
        questions.append(question)
    if not questions:
        raise DataError(f"{source} holds no question")
    return questions


def _records(entries: list[Any], source: str) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Every question's record with its place and context, from either form."""
    for number, entry in enumerate(entries):
        place = f"{source}, record {number}"
        if not isinstance(entry, Mapping):
            raise DataError(f"{place} is a {type(entry).__name__}, not an object with a context")
        if "paragraphs" not in entry:
            yield place, _get(entry, "context", place), entry
            continue
        for index, paragraph in enumerate(_get_list(entry, "paragraphs", f"{source}, article {number}")):
            inner = f"{source}, article {number}, paragraph {index}"
            if not isinstance(paragraph, Mapping):
                raise DataError(f"{inner} is a {type(paragraph).__name__}, not an object with a context")
            context = _get(paragraph, "context", inner)
            for position, record in enumerate(_get_list(paragraph, "qas", inner)):
                if not isinstance(record, Mapping):
                    raise DataError(f"{inner}, question {position} is a {type(record).__name__}, not an object")
                yield f"{inner}, question {position}", context, record


def _question(place: str, context: Any, record: Mapping[str, Any]) -> Question:
    identifier = _get(record, "id", place)
    place = f"{place} ({identifier})"
    question = _get(record, "question", place)
    for name, value in (("context", context), ("question", question)):
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{place}: {name} is {value!r}; it must be a text that is not empty")
    for name, value in (("id", str(identifier)), ("context", context), ("question", question)):
        # Half of a pair, which JSON can write and neither a tokenizer nor a file can take.
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise DataError(f"{ascii(place)[1:-1]}: {name} has a lone surrogate, which is no character; mend the file")
    texts, starts = _answers(place, _get(record, "answers", place))
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not text or not isinstance(start, int) or isinstance(start, bool):
            raise DataError(
                f"{place}: an answer is {text!r} at {start!r}; it must be a text that is not empty at a whole number"
            )
        if start < 0 or context[start : start + len(text)] != text:
            found = context[max(start, 0) : max(start, 0) + len(text)]
            raise DataError(
                f"{place}: the answer {text!r} is not at answer_start {start}, where the context has {found!r}"
            )
    return Question(str(identifier), question, context, tuple(texts), tuple(starts))


def _answers(place: str, answers: Any) -> tuple[list[Any], list[Any]]:
    """Texts and starts; SQuAD has a list of pairs, the datasets library a pair of lists."""
    if isinstance(answers, Mapping):
        texts, starts = (_get_list(answers, key, f"{place}, answers") for key in ("text", "answer_start"))
        if len(texts) != len(starts):
            raise DataError(f"{place}: {len(texts)} answer texts but {len(starts)} starts")
        return texts, starts
    if not isinstance(answers, list) or not all(isinstance(answer, Mapping) for answer in answers):
        raise DataError(f"{place}: answers is {answers!r}; it must be a list of objects with text and answer_start")
    return [_get(a, "text", place) for a in answers], [_get(a, "answer_start", place) for a in answers]


def _get_list(record: Mapping[str, Any], key: str, place: str) -> list[Any]:
    value = _get(record, key, place)
    if not isinstance(value, list):
        raise DataError(f"{place}: {key} is {value!r}; it must be a list")
    return value


def _get(record: Mapping[str, Any], key: str, place: str) -> Any:
    if key not in record:
        raise DataError(f"{place} has no {key!r}; it has {', '.join(map(str, record)) or 'nothing'}")
    return record[key]
