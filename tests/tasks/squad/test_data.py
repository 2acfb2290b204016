"""SQuAD files in all their forms, and what is said of malformed ones."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cpuinfer_helpers import DataError
from cpuinfer_helpers.tasks.squad.data import Question, parse_squad, read_squad

CONTEXT = "Anna Smith works in Paris. Zoë built the tower in 1889."
NESTED: dict[str, Any] = {
    "version": "1.1",
    "data": [
        {
            "title": "Paris",
            "paragraphs": [
                {
                    "context": CONTEXT,
                    "qas": [
                        {
                            "id": "q1",
                            "question": "Where does Anna work?",
                            "answers": [
                                {"text": "Paris", "answer_start": 20},
                                {"text": "in Paris", "answer_start": 17},
                            ],
                        },
                        {
                            "id": "q2",
                            "question": "When?",
                            "answers": [{"text": "1889", "answer_start": CONTEXT.index("1889")}],
                        },
                    ],
                }
            ],
        }
    ],
}
FLAT: list[dict[str, Any]] = [
    {
        "id": "q1",
        "context": CONTEXT,
        "question": "Where does Anna work?",
        "answers": [{"text": "Paris", "answer_start": 20}, {"text": "in Paris", "answer_start": 17}],
    },
    {
        "id": "q2",
        "title": "Paris",
        "context": CONTEXT,
        "question": "When?",
        "answers": [{"text": "1889", "answer_start": CONTEXT.index("1889")}],
    },
]
ROWS: list[dict[str, Any]] = [
    {**FLAT[0], "answers": {"text": ["Paris", "in Paris"], "answer_start": [20, 17]}},
    {**FLAT[1], "answers": {"text": ["1889"], "answer_start": [CONTEXT.index("1889")]}},
]
QUESTIONS = [
    Question("q1", "Where does Anna work?", CONTEXT, ("Paris", "in Paris"), (20, 17)),
    Question("q2", "When?", CONTEXT, ("1889",), (CONTEXT.index("1889"),)),
]


@pytest.mark.parametrize("content", [NESTED, FLAT, {"data": FLAT}, ROWS, {"data": ROWS}])
def test_every_form_gives_the_same_questions(tmp_path: Path, content: Any) -> None:
    assert parse_squad(copy.deepcopy(content)) == QUESTIONS
    file = tmp_path / "data with ümlaut.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    assert read_squad(file) == QUESTIONS
    assert read_squad(str(file)) == QUESTIONS


def test_question_without_an_answer_is_kept() -> None:
    record = {"id": "q", "context": CONTEXT, "question": "Who?"}
    assert parse_squad([{**record, "answers": []}])[0].answers == ()
    assert parse_squad([{**record, "answers": {"text": [], "answer_start": []}}])[0].answers == ()


def test_number_as_id_becomes_a_text() -> None:
    assert parse_squad([{**FLAT[0], "id": 17}])[0].id == "17"


def _flat(**changes: Any) -> list[dict[str, Any]]:
    return [FLAT[1], {**FLAT[0], **changes}]


def _flat_without(key: str) -> list[dict[str, Any]]:
    return [FLAT[1], {name: value for name, value in FLAT[0].items() if name != key}]


def _nested(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    content = copy.deepcopy(NESTED)
    change(content["data"][0])
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "no list of records under 'data'"),
        ({"data": {}}, "no list of records under 'data'"),
        ("text", "no list of records"),
        (None, "no list of records"),
        ([], "holds no question"),
        ({"data": [{"paragraphs": []}]}, "holds no question"),
        ([FLAT[1], "text"], "record 1 is a str"),
        ([FLAT[1], None], "record 1 is a NoneType"),
        (_flat_without("id"), "record 1 has no 'id'"),
        (_flat_without("context"), "record 1 has no 'context'"),
        (_flat_without("question"), r"record 1 \(q1\) has no 'question'"),
        (_flat_without("answers"), r"record 1 \(q1\) has no 'answers'"),
        (_flat(context=""), r"record 1 \(q1\): context is ''"),
        (_flat(context=3), r"record 1 \(q1\): context is 3"),
        (_flat(question="  "), r"record 1 \(q1\): question is '  '"),
        (_flat(question=None), r"record 1 \(q1\): question is None"),
        (_flat(id="q2"), "record 1: the id 'q2' occurs twice"),
        (_flat(answers="Paris"), r"record 1 \(q1\): answers is 'Paris'"),
        (_flat(answers=None), r"record 1 \(q1\): answers is None"),
        (_flat(answers=["Paris"]), r"record 1 \(q1\): answers is \['Paris'\]"),
        (_flat(answers=[{"text": "Paris"}]), r"record 1 \(q1\) has no 'answer_start'"),
        (_flat(answers=[{"answer_start": 20}]), r"record 1 \(q1\) has no 'text'"),
        (_flat(answers=[{"text": "Paris", "answer_start": 19}]), r"\(q1\): the answer 'Paris' is not at .*19.*' Pari'"),
        (_flat(answers=[{"text": "London", "answer_start": 20}]), r"\(q1\): the answer 'London' is not at"),
        (_flat(answers=[{"text": "Paris", "answer_start": -35}]), r"\(q1\): the answer 'Paris' is not at"),
        (_flat(answers=[{"text": "Paris", "answer_start": 9999}]), r"\(q1\): the answer 'Paris' is not at"),
        (_flat(answers=[{"text": "", "answer_start": 0}]), r"record 1 \(q1\): an answer is ''"),
        (_flat(answers=[{"text": "Paris", "answer_start": "20"}]), r"record 1 \(q1\): an answer is 'Paris' at '20'"),
        (_flat(answers=[{"text": "Paris", "answer_start": True}]), r"record 1 \(q1\): an answer is 'Paris' at True"),
        (_flat(answers=[{"text": None, "answer_start": 0}]), r"record 1 \(q1\): an answer is None"),
        (_flat(answers={"text": ["Paris"], "answer_start": []}), r"record 1 \(q1\): 1 answer texts but 0 starts"),
        (_flat(answers={"text": "Paris", "answer_start": 20}), r"record 1 \(q1\), answers: text is 'Paris'.*a list"),
        (_flat(answers={"text": ["Paris"], "answer_start": 20}), r"record 1 \(q1\), answers: answer_start is 20"),
        (_flat(answers={"text": None, "answer_start": None}), r"record 1 \(q1\), answers: text is None"),
        (_nested(lambda a: a.update(paragraphs=None)), "article 0.*paragraphs is None"),
        (_nested(lambda a: a.update(paragraphs={"context": "x"})), "article 0.*paragraphs is"),
        (_nested(lambda a: a.update(paragraphs=["text"])), "article 0, paragraph 0 is a str"),
        (_nested(lambda a: a["paragraphs"][0].pop("context")), "article 0, paragraph 0 has no 'context'"),
        (_nested(lambda a: a["paragraphs"][0].pop("qas")), "article 0, paragraph 0 has no 'qas'"),
        (_nested(lambda a: a["paragraphs"][0].update(qas=7)), "article 0, paragraph 0.*qas is 7"),
        (_nested(lambda a: a["paragraphs"][0].update(qas=[7])), "article 0, paragraph 0, question 0 is a int"),
        (
            _nested(lambda a: a["paragraphs"][0]["qas"][1].pop("question")),
            r"article 0, paragraph 0, question 1 \(q2\) has no 'question'",
        ),
    ],
)
def test_malformed_record_is_named(tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read_squad(file)
    assert "bad.json" in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe{}", b"[1, 2"])
def test_file_that_is_no_json(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "bad.json").write_bytes(text)
    with pytest.raises(DataError, match=r"bad\.json is not valid JSON"):
        read_squad(tmp_path / "bad.json")


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.json cannot be read: No such file"):
        read_squad(tmp_path / "nowhere.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_squad(tmp_path)
