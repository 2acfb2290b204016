"""How sure a model is of its answers: how far the best one lies above the next, and what a change of that does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from cpuinfer_helpers.display import Displayed, Table
from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.tasks.batches import Model, run_rows
from cpuinfer_helpers.tasks.kinds.question_answering import NAME, OUTPUTS, encode_questions
from cpuinfer_helpers.tasks.squad import windows as qa
from cpuinfer_helpers.tasks.squad.data import Question
from cpuinfer_helpers.tasks.squad.windows import Answer
from cpuinfer_helpers.tasks.task import Task

# Upper ends of the groups of the margins' table, in logits.
_UP_TO = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, math.inf)


@dataclass(frozen=True)
class AnswerMargin:
    """One question and the model's candidates for its answer.

    Attributes
    ----------
    question
        The question.
    candidates
        Best first, each text once, with its best score.
    """

    question: Question
    candidates: tuple[Answer, ...]

    @property
    def best(self) -> Answer:
        """The model's answer."""
        return self.candidates[0]

    @property
    def runner_up(self) -> Answer | None:
        """The best answer with another text; None if there is no other candidate."""
        return self.candidates[1] if len(self.candidates) > 1 else None

    @property
    def margin(self) -> float:
        """Score of the best answer minus that of the runner-up, in logits; infinite without a runner-up."""
        return math.inf if self.runner_up is None else self.best.score - self.runner_up.score

    def score_of(self, text: str) -> float | None:
        """Score of an answer, None if it is not among the candidates."""
        return next((candidate.score for candidate in self.candidates if candidate.text == text), None)


@dataclass(frozen=True, repr=False)
class AnswerMargins(Displayed):
    """A model's answers to a task's questions with their margins; made by :func:`answer_margins`.

    Attributes
    ----------
    rows
        An :class:`AnswerMargin` for each question.
    logits
        Start and end logits of each window, without padding, in the order of the windows.
    split
        Which part of the data.
    """

    rows: tuple[AnswerMargin, ...]
    logits: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    split: str

    @property
    def predictions(self) -> tuple[str, ...]:
        """The answers' texts."""
        return tuple(row.best.text for row in self.rows)

    def changed(self, predictions: Sequence[str]) -> tuple[AnswerMargin, ...]:
        """The questions to which ``predictions``, one text a question, give another answer, smallest margin first.

        Raises
        ------
        InputError
            If there is not one prediction for each question.
        """
        self._check(predictions)
        pairs = zip(self.rows, predictions, strict=True)
        return tuple(sorted((row for row, text in pairs if text != row.best.text), key=lambda row: row.margin))

    def logit_error(self, other: AnswerMargins) -> float:
        """Largest difference of any logit from another model's, on the same windows.

        Four times it is the most by which a margin can move: it is made of two answers, each the sum of two logits.
        """
        self._check(other.rows)
        pairs = zip(self.logits, other.logits, strict=True)
        return max(
            float((mine - theirs).abs().max()) for one, two in pairs for mine, theirs in zip(one, two, strict=True)
        )

    def table(self) -> Table:
        """How many questions have which margin."""
        return self.by_margin({})

    def by_margin(self, predictions: Mapping[str, Sequence[str]]) -> Table:
        """How many questions have which margin, and how many of those get another answer.

        Parameters
        ----------
        predictions
            By name, one text a question.
        """
        changed = {name: self.changed(texts) for name, texts in predictions.items()}
        rows, low = [], 0.0
        for high in _UP_TO:
            counts = [_between(some, low, high) for some in (self.rows, *changed.values())]
            rows.append((_range_text(low, high), *map(str, counts)))
            low = high
        rows.append(("all", *(str(len(some)) for some in (self.rows, *changed.values()))))
        columns = ("margin, in logits", "questions", *(f"changed by {name}" for name in changed))
        note = "The margin is the reference's: its best answer's score minus that of its best other answer."
        return Table(columns, tuple(rows), note=note, numeric=columns[1:])

    def changes(self, predictions: Mapping[str, Sequence[str]]) -> Table:
        """Every answer that changed: both texts, the margin, and what the change did to the question's F1.

        Parameters
        ----------
        predictions
            By name, one text a question.
        """
        rows = []
        for name, texts in predictions.items():
            by_id = {row.question.id: text for row, text in zip(self.rows, texts, strict=True)}
            rows += [self._change(name, row, by_id[row.question.id]) for row in self.changed(texts)]
        columns = ("by", "question", "right answer", "reference", "instead", "margin", "F1 before", "F1 after")
        return Table(columns, tuple(rows), numeric=columns[5:])

    @staticmethod
    def _change(name: str, row: AnswerMargin, text: str) -> tuple[str, ...]:
        before, after = (qa.score_answers([row.question], [one])["f1"] for one in (row.best.text, text))
        right = row.question.answers[0] if row.question.answers else "(none)"
        shown = (name, row.question.question, right, row.best.text, text)
        return (*shown, f"{row.margin:.3f}", f"{before:.0f}", f"{after:.0f}")

    def _check(self, others: Sequence[object]) -> None:
        if len(others) != len(self.rows):
            raise InputError(f"there are {len(self.rows)} questions and {len(others)} answers; give one for each")


def answer_margins(
    task: Task, model: Model | None = None, *, split: str | None = None, limit: int | None = None, batch_size: int = 8
) -> AnswerMargins:
    """Answer a task's questions and keep how sure the model is of each answer.

    Parameters
    ----------
    task
        A question answering task.
    model
        Called with keyword inputs; the task's ``trained_model`` unless given.
    split, limit, batch_size
        As for :meth:`Task.evaluate`; batches are padded to their longest row.

    Returns
    -------
    AnswerMargins

    Raises
    ------
    InputError
        If the task is another one, or an argument cannot be used.
    """
    if task.name != NAME:
        raise InputError(f"answer_margins: this task is {task.name}; load_task({NAME!r}) has answers")
    split, questions = task.part(split, limit)
    encoded = encode_questions(task.tokenizer, questions)
    outputs = run_rows(model or task.trained_model, task.tokenizer, encoded.rows, OUTPUTS, batch_size)
    logits = tuple(
        (start[: len(window.offsets)].float(), end[: len(window.offsets)].float())
        for window, (start, end) in zip(encoded.places, outputs, strict=True)
    )
    found = qa.best_answers(questions, encoded.places, logits)
    rows = tuple(AnswerMargin(q, _one_for_each_text(some)) for q, some in zip(questions, found, strict=True))
    return AnswerMargins(rows, logits, split)


def _one_for_each_text(candidates: Sequence[Answer]) -> tuple[Answer, ...]:
    best: dict[str, Answer] = {}
    for candidate in candidates:
        best.setdefault(candidate.text, candidate)
    return tuple(best.values())


def _between(rows: Sequence[AnswerMargin], low: float, high: float) -> int:
    return sum(low <= row.margin < high or row.margin == high == math.inf for row in rows)


def _range_text(low: float, high: float) -> str:
    if low == 0.0:
        return f"below {high:g}"
    return f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
