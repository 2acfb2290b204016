"""Answering questions about a context."""

from __future__ import annotations

from collections.abc import Sequence

from cpuinfer_helpers.tasks.kinds.base import Run
from cpuinfer_helpers.tasks.squad import windows as qa
from cpuinfer_helpers.tasks.squad.data import Question


def answer_questions(run: Run, questions: Sequence[Question]) -> tuple[list[str], dict[str, float]]:
    """The answers' texts, and their metrics."""
    answers = [answer.text for answer in find_answers(run, questions)]
    return answers, qa.score_answers(questions, answers)


def find_answers(run: Run, questions: Sequence[Question]) -> list[qa.Answer]:
    """The best answer to each question."""
    windows = qa.prepare_windows(questions, run.tokenizer)
    logits = [
        pair
        for output in run.outputs([window.inputs for window in windows])
        for pair in zip(output["start_logits"], output["end_logits"], strict=True)
    ]
    return [found[0] for found in qa.best_answers(questions, windows, logits)]
