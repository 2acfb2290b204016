"""Answering questions about a context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cpuinfer_helpers.tasks.hub import DatasetFile
from cpuinfer_helpers.tasks.kinds.base import Encoded, HubSource, Outputs, TaskData, TaskKind, shipped_files
from cpuinfer_helpers.tasks.squad.data import Question, parse_squad, read_squad
from cpuinfer_helpers.tasks.squad.windows import best_answers, prepare_windows, score_answers

NAME = "question-answering"
OUTPUTS = ("start_logits", "end_logits")


def encode_questions(tokenizer: Any, questions: Sequence[Question]) -> Encoded:
    """Windows of each question with its context."""
    windows = prepare_windows(questions, tokenizer)
    return Encoded([window.inputs for window in windows], windows)


def _read_rows(rows: Sequence[Mapping[str, Any]]) -> list[Question]:
    return parse_squad(list(rows), "the squad data set")


def _text_of(question: Question) -> tuple[str, str]:
    return question.question, question.context


def _decode(encoded: Encoded, questions: Sequence[Question], outputs: Outputs, labels: Mapping[int, str]) -> list[str]:
    """The text of the best answer to each question."""
    return [found[0].text for found in best_answers(questions, encoded.places, outputs)]


KIND = TaskKind(
    NAME,
    "AutoModelForQuestionAnswering",
    data=TaskData(
        files=shipped_files(NAME),
        source=HubSource(
            "csarron/bert-base-uncased-squad-v1",
            DatasetFile("rajpurkar/squad", "plain_text/validation-00000-of-00001.parquet"),
            _read_rows,
        ),
        read=read_squad,
        text_of=_text_of,
        encode=encode_questions,
        outputs=OUTPUTS,
        decode=_decode,
        score=score_answers,
        metric="f1",
    ),
)
