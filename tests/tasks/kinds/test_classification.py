"""Text and token classification: files, accuracy and F1 of entities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cpuinfer_helpers import DataError
from cpuinfer_helpers.tasks.kinds.base import accuracy
from cpuinfer_helpers.tasks.kinds.text_classification import LabelledText, read_texts
from cpuinfer_helpers.tasks.kinds.token_classification import (
    TaggedSentence,
    entities,
    entity_f1,
    first_tokens,
    read_sentences,
)

TEXT = {"text": "The cat sat.", "label": "positive"}
SENTENCE = {"tokens": ["Anna", "Smith", "works"], "tags": ["B-PER", "I-PER", "O"]}


def write(folder: Path, content: Any) -> Path:
    file = folder / "data.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def test_texts(tmp_path: Path) -> None:
    records = [TEXT, {**TEXT, "text": "Zoë", "label": "negative", "more": 1}]
    assert read_texts(write(tmp_path, records)) == [
        LabelledText("The cat sat.", "positive"),
        LabelledText("Zoë", "negative"),
    ]


def test_sentences(tmp_path: Path) -> None:
    assert read_sentences(write(tmp_path, [SENTENCE])) == [
        TaggedSentence(("Anna", "Smith", "works"), ("B-PER", "I-PER", "O"))
    ]


@pytest.mark.parametrize("read", [read_texts, read_sentences])
@pytest.mark.parametrize(
    ("content", "message"), [([], "empty"), ({}, "not a list"), ("text", "not a list"), ([3], "record 0 has no")]
)
def test_files_that_hold_no_records(tmp_path: Path, read: Any, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"data\.json.*{message}"):
        read(write(tmp_path, content))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"label": "x"}, "has no 'text'"),
        ({"text": "x"}, "has no 'label'"),
        ({**TEXT, "text": " "}, "not empty"),
        ({**TEXT, "text": 3}, "must be texts"),
        ({**TEXT, "label": 1}, "must be texts"),
        ({**TEXT, "label": ""}, "must be texts"),
    ],
)
def test_malformed_text_is_named(tmp_path: Path, record: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"data\.json, record 1.*{message}"):
        read_texts(write(tmp_path, [TEXT, record]))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"tags": []}, "has no 'tokens'"),
        ({"tokens": []}, "has no 'tags'"),
        ({"tokens": [], "tags": []}, "not empty"),
        ({**SENTENCE, "tags": ["O"]}, "same length"),
        ({**SENTENCE, "tokens": "abc"}, "must be lists"),
        ({**SENTENCE, "tokens": ["Anna", 3, "works"]}, "3"),
        ({**SENTENCE, "tokens": ["Anna", "", "works"]}, "''"),
        ({**SENTENCE, "tags": ["B-PER", 2, "O"]}, "2"),
        ({**SENTENCE, "tags": ["B-PER", "PER", "O"]}, "'PER'"),
        ({**SENTENCE, "tags": ["B-", "O", "O"]}, "'B-'"),
        ({**SENTENCE, "tags": ["o", "O", "O"]}, "'o'"),
    ],
)
def test_malformed_sentence_is_named(tmp_path: Path, record: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"data\.json, record 1.*{message}"):
        read_sentences(write(tmp_path, [SENTENCE, record]))


@pytest.mark.parametrize("read", [read_texts, read_sentences])
def test_file_that_is_no_json_or_not_there(tmp_path: Path, read: Any) -> None:
    (tmp_path / "bad.json").write_text("[{", encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.json is not valid JSON"):
        read(tmp_path / "bad.json")
    with pytest.raises(DataError, match=r"nowhere\.json cannot be read"):
        read(tmp_path / "nowhere.json")


def test_accuracy() -> None:
    assert accuracy(["a", "b", "a", "b"], ["a", "b", "b", "b"]) == 75.0
    with pytest.raises(ValueError, match="zip"):
        accuracy(["a"], ["a", "b"])


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", set()),
        ("", set()),
        ("B-PER", {("PER", 0, 0)}),
        ("B-PER I-PER O B-LOC", {("PER", 0, 1), ("LOC", 3, 3)}),
        # Two neighbours of one type.
        ("B-PER B-PER I-PER", {("PER", 0, 0), ("PER", 1, 2)}),
        # An I- without its beginning begins one; another type ends the one before.
        ("I-PER I-PER O I-LOC", {("PER", 0, 1), ("LOC", 3, 3)}),
        ("B-PER I-LOC", {("PER", 0, 0), ("LOC", 1, 1)}),
        ("B-PER O I-PER", {("PER", 0, 0), ("PER", 2, 2)}),
        ("O B-ART-WORK I-ART-WORK", {("ART-WORK", 1, 2)}),
    ],
)
def test_entities(tags: str, expected: set[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == expected


@pytest.mark.parametrize(
    ("wanted", "predicted", "precision", "recall", "f1"),
    [
        (["B-PER I-PER O B-LOC"], ["B-PER I-PER O B-LOC"], 100, 100, 100),
        # The right place with the wrong type, and the right type one word short, are wrong.
        (["B-PER I-PER O B-LOC"], ["B-PER I-PER O B-ORG"], 50, 50, 50),
        (["B-PER I-PER O B-LOC"], ["B-PER O O B-LOC"], 50, 50, 50),
        # One of one found, of two wanted: 2 * (1 * 1/2) / (1 + 1/2).
        (["B-PER O O B-LOC"], ["B-PER O O O"], 100, 50, 200 / 3),
        # Over all sentences together: two of three found, two of four wanted.
        (["B-PER O", "B-LOC I-LOC", "B-PER B-PER"], ["B-PER B-PER", "B-LOC I-LOC", "O O"], 200 / 3, 50, 400 / 7),
        (["O O"], ["B-PER O"], 0, 0, 0),
        (["B-PER O"], ["O O"], 0, 0, 0),
        (["O"], ["O"], 0, 0, 0),
    ],
)
def test_entity_f1_worked_out_by_hand(
    wanted: list[str], predicted: list[str], precision: float, recall: float, f1: float
) -> None:
    seen = entity_f1([tags.split() for tags in wanted], [tags.split() for tags in predicted])
    assert seen == pytest.approx({"precision": precision, "recall": recall, "f1": f1})


def test_entity_f1_needs_as_many_sentences() -> None:
    with pytest.raises(ValueError, match="zip"):
        entity_f1([["O"]], [])


def test_first_token_of_a_word_carries_its_tag(tokenizer: Any) -> None:
    words = [["Anna", "zzz", "cats"], ["on"]]
    encoded = tokenizer(words, is_split_into_words=True)
    for row, sentence in enumerate(words):
        positions = first_tokens(encoded, row)
        assert list(positions) == list(range(len(sentence)))
        for word, position in positions.items():
            piece = tokenizer.convert_ids_to_tokens(encoded["input_ids"][row][position])
            assert sentence[word].lower().startswith(piece)
            assert not piece.startswith("##")
    assert first_tokens(encoded, 0)[2] == 1 + 1 + 3


def test_words_that_were_cut_off_have_no_token(tokenizer: Any) -> None:
    encoded = tokenizer([["cat"] * 10], is_split_into_words=True, truncation=True, max_length=6)
    assert first_tokens(encoded, 0) == {0: 1, 1: 2, 2: 3, 3: 4}
