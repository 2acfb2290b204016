"""A task's data as rows for a Trainer, and its predictions as a score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.tasks.kinds.base import Encoded
from cpuinfer_helpers.tasks.task import Score, Task


@dataclass(frozen=True)
class TaskRows:
    """Encoded rows with labels, and how predictions are scored; made by :func:`task_rows`.

    Attributes
    ----------
    rows
        What a Trainer evaluates: lists of token ids, not padded, and ``labels`` except for question answering.
    task
        Whose rows they are.
    split
        Which part of its data.
    examples
        The questions, texts or sentences.
    encoded
        Those, as the model takes them.
    """

    rows: list[dict[str, Any]]
    task: Task
    split: str
    examples: Sequence[Any]
    encoded: Encoded

    def score(self, predictions: Any, seconds: float = 0.0) -> Score:
        """Score what ``trainer.predict(rows).predictions`` holds.

        Parameters
        ----------
        predictions
            Logits, an array or a tuple of arrays, a row each.
        seconds
            How long it took, for the score.
        """
        arrays = predictions if isinstance(predictions, tuple) else (predictions,)
        data = self.task.kind.data
        tensors = [torch.from_numpy(array) for array in arrays[: len(data.outputs)]]
        answers = data.decode(self.encoded, self.examples, list(zip(*tensors, strict=True)), self.task.labels)
        metrics = data.score(self.examples, answers)
        predictions = tuple(map(data.prediction, answers))
        return Score(self.task.name, self.split, self.task.origin, metrics, len(self.examples), predictions, seconds)

    def compute_metrics(self, evaluated: Any) -> dict[str, float]:
        """The metrics, for ``Trainer(compute_metrics=...)``; a Trainer calls it only for rows with labels."""
        return dict(self.score(evaluated.predictions).metrics)


def task_rows(task: Task, *, split: str | None = None, limit: int | None = None) -> TaskRows:
    """A task's data as rows for a Trainer, encoded as :meth:`Task.evaluate` does.

    Parameters
    ----------
    task
        Any task.
    split
        Which part of the data; the default one unless given.
    limit
        Only so many examples, the first ones.

    Returns
    -------
    TaskRows

    Raises
    ------
    InputError
        For an unknown split, a limit that is not positive, or a task that a Trainer is not meant to score.
    """
    if task.kind.data.collator is None:
        raise InputError(f"task_rows: {task.name} is not scored by a Trainer; use Task.evaluate")
    split, examples = task.part(split, limit)
    encoded = task.kind.data.encode(task.tokenizer, examples)
    return TaskRows(_labelled(task, encoded, examples), task, split, examples, encoded)


def _labelled(task: Task, encoded: Encoded, examples: Sequence[Any]) -> list[dict[str, Any]]:
    label_numbers = task.kind.data.label_numbers
    if label_numbers is None:
        return [dict(row) for row in encoded.rows]
    labels = label_numbers(encoded, examples, {label: number for number, label in task.labels.items()})
    return [{**row, "labels": label} for row, label in zip(encoded.rows, labels, strict=True)]
