"""How right each recipe's answers are on a task's own data, each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from cpuinfer_helpers.compare.compare import choose_recipes, choose_threads
from cpuinfer_helpers.display import Displayed, Table, format_seconds
from cpuinfer_helpers.errors import RecipeError
from cpuinfer_helpers.interface.inputs import given_rows
from cpuinfer_helpers.processes.asking import ask_alone
from cpuinfer_helpers.processes.session import Session
from cpuinfer_helpers.processes.status import Status
from cpuinfer_helpers.recipes import Recipe
from cpuinfer_helpers.recipes.registry import REFERENCE
from cpuinfer_helpers.tasks import Score, Task
from cpuinfer_helpers.tasks.kinds.registry import kind_with_data

_CALIBRATION_ROWS = 32


@dataclass(frozen=True)
class RecipeScore:
    """How right one recipe's answers are.

    Attributes
    ----------
    recipe
        Its name.
    status
        What became of it, as in :class:`~cpuinfer_helpers.compare.RecipeResult`.
    score
        The task's metrics and the predictions; None if it did not run.
    agreement
        Share of predictions equal to the reference's, in percent; None if it did not run.
    runs
        What answered, from the receipt.
    """

    recipe: str
    status: Status
    score: Score | None = None
    agreement: float | None = None
    runs: str = ""


@dataclass(frozen=True, repr=False)
class RecipeScores(Displayed):
    """The task's metric for each recipe; made by :func:`score_recipes`.

    Attributes
    ----------
    rows
        A :class:`RecipeScore` for each recipe, by name, the reference first.
    task, origin
        The task's name, and where its model and data come from.
    """

    rows: Mapping[str, RecipeScore]
    task: str
    origin: str

    def table(self) -> Table:
        """A row for each recipe."""
        reference = self.rows[REFERENCE].score
        rows = tuple(self._row(row, tuple(reference.metrics)) for row in self.rows.values())
        columns = ("recipe", "status", *reference.metrics, "same answers", "time", "what ran")
        title = f"{self.task}: {reference.examples} examples ({reference.split}), the trained model"
        return Table(columns, rows, title, self.origin, numeric=(*reference.metrics, "same answers", "time"))

    @staticmethod
    def _row(row: RecipeScore, metrics: Sequence[str]) -> tuple[str, ...]:
        if row.score is None:
            return (row.recipe, str(row.status), *("" for _ in metrics), "", "", row.runs)
        data = kind_with_data(row.score.task).data
        shown = (data.shown(name, row.score.metrics[name]) for name in metrics)
        agreement = f"{row.agreement:.1f}%"
        return (row.recipe, str(row.status), *shown, agreement, format_seconds(row.score.seconds), row.runs)


def score_recipes(
    task: Task,
    recipes: Sequence[str | Recipe] | None = None,
    *,
    limit: int | None = None,
    split: str | None = None,
    batch_size: int = 8,
    pad_to: int | None = None,
    calibration: Sequence[Mapping[str, torch.Tensor]] | None = None,
    threads: int | None = None,
    timeout_s: float = 900.0,
    memory_bytes: int | None = None,
) -> RecipeScores:
    """Score the task's trained model as each recipe prepares it, one process after the other.

    A logit's error does not tell whether an answer changes. This does: the task's metric, and how many predictions
    are those of eager FP32.

    Parameters
    ----------
    task
        Its ``trained_model`` is scored.
    recipes
        Names or recipes of your own; all that can run unless given.
    limit, split, batch_size
        As for :meth:`Task.evaluate`.
    pad_to
        Pad every batch to this length; that of the task's ``example_inputs``, or of the longest row if that is longer,
        unless given. With one length for all, recipes that specialise on shapes answer with what they prepared.
    calibration
        Inputs for static quantisation; the task's own unless given.
    threads, timeout_s, memory_bytes
        As for :func:`compare`.

    Returns
    -------
    RecipeScores

    Raises
    ------
    InputError
        If an argument cannot be used.
    RecipeError
        If the reference itself does not run.
    """
    from tqdm.auto import tqdm

    chosen, threads = choose_recipes(recipes), choose_threads(threads)
    pad_to = pad_to or max(next(iter(task.example_inputs.values())).shape[1], task.longest_row(split, limit))
    content = {
        "model": task.trained_model,
        "inputs": task.inputs(batch_size, pad_to),
        "calibration": calibration_of(task) if calibration is None else given_rows("calibration", calibration),
        # Without the large model for timing, which nobody runs here.
        "task": replace(task, model=task.trained_model),
    }
    options = {"split": split, "limit": limit, "batch_size": batch_size, "pad_to": pad_to}
    rows: dict[str, RecipeScore] = {}
    with (
        Session(content, threads=threads, timeout_s=timeout_s, memory_bytes=memory_bytes) as session,
        tqdm(chosen, desc="scoring", unit="recipe") as progress,
    ):
        for recipe in progress:
            progress.set_description(f"{recipe.name}: scoring")
            rows[recipe.name] = row = _score(session, recipe, task, options, rows.get(REFERENCE))
            if recipe.name == REFERENCE and row.score is None:
                raise RecipeError(f"the reference {REFERENCE} cannot be scored: {row.status}")
    return RecipeScores(rows, task.name, task.origin)


def calibration_of(task: Task, length: int | None = None) -> tuple[dict[str, torch.Tensor], ...]:
    """Inputs from the task's own data for static quantisation."""
    if not hasattr(task, "calibration_inputs"):
        return ()
    return tuple(task.calibration_inputs(_CALIBRATION_ROWS, length=length))


def score_answers(prepared: Callable[..., Any], sent: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """In a process of its own: score a prepared model on the data of the task that was sent."""
    score = sent["task"].evaluate(prepared, **options)
    return {
        "split": score.split,
        "metrics": dict(score.metrics),
        "examples": score.examples,
        "predictions": list(score.predictions),
        "seconds": score.seconds,
    }


def _score(
    session: Session, recipe: Recipe, task: Task, options: dict[str, Any], reference: RecipeScore | None
) -> RecipeScore:
    answer = ask_alone(session, recipe, f"{__name__}:score_answers", verify=True, **options)
    if not answer.status.successful:
        return RecipeScore(recipe.name, answer.status, runs=answer.runs)
    found = answer.value
    predictions = tuple(tuple(p) if isinstance(p, list) else p for p in found.pop("predictions"))
    score = Score(task=task.name, origin=task.origin, predictions=predictions, **found)
    agreement = 100.0 if reference is None else score.agreement(reference.score)
    return RecipeScore(recipe.name, answer.status, score, agreement, answer.runs)
