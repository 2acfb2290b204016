"""Find the fastest recipe that keeps a model's answers."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from cpuinfer_helpers.compare import Comparison
from cpuinfer_helpers.compare.compare import check_positive, check_request, choose_recipes
from cpuinfer_helpers.errors import CpuInferError, InputError, RecipeError, first_line
from cpuinfer_helpers.interface.inputs import bind_inputs, calibration_rows
from cpuinfer_helpers.optimize import choices
from cpuinfer_helpers.optimize.model import OptimizedModel
from cpuinfer_helpers.optimize.search import Search, check_own_metric, emulated_bf16, in_order, metric_holds
from cpuinfer_helpers.processes.status import Kind, Status
from cpuinfer_helpers.recipes import PreparedModel, Recipe, prepare
from cpuinfer_helpers.recipes.base import PRECISIONS
from cpuinfer_helpers.recipes.registry import REFERENCE

logger = logging.getLogger("cpuinfer_helpers")

Metric = Callable[[Callable[..., Any]], float]


def optimize(
    model: torch.nn.Module,
    inputs: Mapping[str, Any],
    precisions: Sequence[str] = ("fp32", "bf16"),
    tolerance: float | None = None,
    metric: Metric | None = None,
    budget_s: float = 120.0,
    *,
    recipes: Sequence[str | Recipe] | None = None,
    metric_kept: float = 0.99,
    metric_name: str | None = None,
    calibration: Sequence[Mapping[str, torch.Tensor]] = (),
    agreement_inputs: Sequence[Mapping[str, Any]] = (),
    refresh: bool = False,
    memory_bytes: int | None = None,
) -> OptimizedModel:
    """Find the fastest recipe that keeps a model's answers, and prepare the model by it.

    Recipes are tried one after the other, each in a process of its own, those that are quick to prepare first. One that
    is clearly slower than the best so far is given up after its first calls. The others must give the model's answers
    on other batch sizes, lengths and paddings. The best three are then measured in turns with the eager model; the
    fastest of those whose interval shows that they are faster is prepared in this process. If that is one of IPEX's,
    IPEX is imported here, which changes the whole process; name the others in ``recipes`` to keep it out.

    The choice is remembered for this machine, the installed versions, models of this shape and all that decided:
    tolerance, metric, calibration and agreement inputs. The next call only prepares and verifies it, on the weights at
    hand. What was chosen while a recipe timed out is not remembered.

    Parameters
    ----------
    model
        An eager model in evaluation mode: from transformers, for text, images or audio, or any module with named tensor
        inputs. It is left as it was.
    inputs
        Tensors by argument name, batch first, of the shape that matters; plain values become constants.
    precisions
        Some of ``fp32``, ``bf16`` and ``int8``.
    tolerance
        Largest difference from the model's answers that passes, as a share of the largest answer; unless given, that of
        each recipe's precision: 1e-4 for FP32, 0.05 for BF16, 0.5 for INT8.
    metric
        A function that is called with a model and returns a number, higher is better: the model's own first, then that
        of each recipe, in its process. It is sent there, so it must not hold what cannot be pickled. For what is
        remembered, its code counts, and all that it holds.
    budget_s
        Seconds for everything.
    recipes
        Names (:func:`~cpuinfer_helpers.list_recipes`) or recipes of your own. Unless given, all of the precisions, save
        those in BF16 where this CPU emulates it: they are slower than FP32 (3 to 34 times, measured with AVX2 only).
    metric_kept
        Share of the model's own metric that a recipe must reach. The default is MLPerf Inference's: 99% of the
        reference's accuracy.
    metric_name
        What the metric is remembered by instead of its code: give another name when it changes. For metrics whose code
        does not show what they do, because they hold an open file or ask another program.
    calibration
        Inputs for static quantisation, a few dozen, like those that the model will see.
    agreement_inputs
        Further inputs on which labels are compared with the model's own.
    refresh
        Forget what is remembered, and measure.
    memory_bytes
        As for :func:`~cpuinfer_helpers.compare`.

    Returns
    -------
    OptimizedModel
        With ``recipe``, ``receipt``, ``comparison`` and ``save(directory)``. If nothing is seen to be faster it is the
        eager model, with the reason.

    Raises
    ------
    InputError
        If the model, the inputs or another argument cannot be used, or the metric gives no finite number for the model
        itself.

    Examples
    --------
    >>> layer = torch.nn.Linear(64, 64).eval()
    >>> optimized = optimize(layer, {"input": torch.ones(8, 64)}, recipes=["torchscript-fp32"], budget_s=20)
    >>> optimized.recipe in ("eager-fp32", "torchscript-fp32"), tuple(optimized(input=torch.ones(2, 64)).shape)
    (True, (2, 64))
    """
    started = time.monotonic()
    request = check_request(model, inputs, agreement_inputs)
    chosen = in_order(of_precisions(choose_recipes(recipes), precisions))
    _check_numbers(tolerance, metric_kept)
    check_positive(budget_s=budget_s, memory_bytes=memory_bytes)
    _check_metric(metric, metric_name)
    rows = calibration_rows(calibration, bind_inputs(model, inputs))
    job = _OptimizationRequest(model, request["inputs"], tolerance, metric, metric_kept, rows)
    settings = {
        "tolerance": tolerance,
        "metric": metric if metric_name is None else metric_name,
        "metric_kept": metric_kept,
        "calibration": job.calibration,
        "agreement_inputs": request["agreement"],
    }
    file = choices.choice_file(model, request["inputs"], chosen, settings)
    if refresh:
        choices.forget(file)
    remembered = None if refresh else choices.recall(file, model, budget_s)
    if remembered is not None and _is_complete(remembered, chosen):
        optimized = job.again(remembered)
        if optimized is not None:
            return optimized
    search = Search(
        model,
        request["inputs"],
        request["agreement"],
        tolerance,
        metric,
        metric_kept,
        job.calibration,
        budget_s - (time.monotonic() - started),
        memory_bytes,
        why_left_out(chosen) if recipes is None else {},
    )
    comparison = search.run(chosen)
    comparison = replace(comparison, environment={**comparison.environment, "budget_s": budget_s})
    optimized = job.prepare(comparison, chosen)
    if optimized.comparison.reference.successful:
        choices.remember(file, optimized.comparison)
    return optimized


@dataclass
class _OptimizationRequest:
    """One request: prepares in this process what was chosen in others."""

    model: torch.nn.Module
    inputs: Mapping[str, Any]
    tolerance: float | None
    metric: Metric | None
    metric_kept: float
    calibration: tuple[dict[str, torch.Tensor], ...]

    def prepare(self, comparison: Comparison, recipes: Sequence[Recipe]) -> OptimizedModel:
        """Prepare the best; if it fails in this process, the next best."""
        by_name = {recipe.name: recipe for recipe in recipes}
        while True:
            if not comparison.reference.successful or comparison.best().recipe == REFERENCE:
                return self._eager(comparison)
            best = comparison.best()
            try:
                prepared = self._prepared(by_name[best.recipe])
                return OptimizedModel(prepared=prepared, comparison=comparison, model=self.model)
            except RecipeError as error:
                logger.warning("%s fails in this process: %s", best.recipe, error)
                status = Status(Kind.FELL_BACK, f"in the process that asked for it: {error}")
                failed = replace(best, status=status, timing=None, speedup=None)
                comparison = replace(comparison, rows={**comparison.rows, best.recipe: failed})

    def again(self, comparison: Comparison) -> OptimizedModel | None:
        """Prepare and verify what was chosen earlier; None if it does not hold for this model."""
        name = comparison.best().recipe
        if name == REFERENCE:
            return self._eager(comparison, remembered=True)
        try:
            prepared = self._prepared(name)
            self._check_metric(prepared)
        except RecipeError as error:
            logger.warning("the remembered choice %s does not hold for this model, measuring anew: %s", name, error)
            return None
        return OptimizedModel(prepared=prepared, comparison=comparison, model=self.model, remembered=True)

    def _eager(self, comparison: Comparison, *, remembered: bool = False) -> OptimizedModel:
        return OptimizedModel(
            prepared=prepare(REFERENCE, self.model, self.inputs, verify=False, tolerance=self.tolerance),
            comparison=comparison,
            model=self.model,
            reason=why_eager(comparison),
            remembered=remembered,
        )

    def _prepared(self, recipe: str | Recipe) -> PreparedModel:
        return prepare(
            recipe,
            self.model,
            self.inputs,
            calibration=self.calibration,
            tolerance=self.tolerance,
            on_failure="raise",
        )

    def _check_metric(self, prepared: PreparedModel) -> None:
        if self.metric is None:
            return
        wanted = check_own_metric(self._asked(self.model, InputError))
        seen = self._asked(prepared, RecipeError)
        if not metric_holds(seen, wanted, self.metric_kept):
            raise RecipeError(f"the metric is {seen:.6g}, the model's own is {wanted:.6g}")

    def _asked(self, model: Callable[..., Any], kind: type[CpuInferError]) -> float:
        try:
            with torch.no_grad():
                return float(self.metric(model))
        except Exception as error:  # it is the user's own, and may fail in any way
            raise kind(f"metric fails on {type(model).__name__}: {first_line(error)}") from error


def _is_complete(comparison: Comparison, recipes: Sequence[Recipe]) -> bool:
    """Whether a comparison is of these recipes, and has times for all that were successful."""
    timed = all(row.timing is not None for row in comparison.rows.values() if row.successful)
    same = comparison.rows.keys() == {recipe.name for recipe in recipes}
    return timed and same and comparison.reference.successful and "measured_at" in comparison.environment


def why_eager(comparison: Any) -> str:
    """In a sentence, why nothing else was chosen; of any comparison with a row for each recipe."""
    if not comparison.reference.successful:
        return f"it could not be measured ({comparison.reference.status})"
    others = [row for row in comparison.rows.values() if row.recipe != REFERENCE]
    if not others:
        return "there was nothing else to try"
    measured = [row for row in others if row.speedup is not None]
    if measured:
        best = max(measured, key=lambda row: row.ratio)
        return f"no recipe was seen to be faster; the best was {best.recipe}, {best.speedup}"
    kinds = [row.status.kind for row in others]
    counts = ", ".join(f"{kind} {kinds.count(kind)}" for kind in dict.fromkeys(kinds))
    return f"none of {len(others)} recipes could be measured ({counts})"


def of_precisions(
    recipes: Sequence[Recipe], precisions: Sequence[str], possible: Sequence[str] = PRECISIONS
) -> list[Recipe]:
    """The recipes of these precisions, and the reference.

    Raises
    ------
    InputError
        If a precision is none of those that are possible.
    """
    if isinstance(precisions, str) or not isinstance(precisions, Iterable) or not tuple(precisions):
        raise InputError(f"precisions is {precisions!r}; give some of {tuple(possible)}")
    for precision in precisions:
        if precision not in possible:
            raise InputError(f"precisions holds {precision!r}; choose from {', '.join(possible)}")
    return [recipe for recipe in recipes if recipe.name == REFERENCE or recipe.precision in precisions]


def why_left_out(recipes: Sequence[Recipe]) -> dict[str, str]:
    """Why some recipes are of no use to somebody who looks for a fast one, by name."""
    return {recipe.name: why for recipe in recipes if (why := emulated_bf16(recipe))}


def _check_numbers(tolerance: float | None, metric_kept: float) -> None:
    for name, value in (("tolerance", tolerance), ("metric_kept", metric_kept)):
        if value is None and name == "tolerance":
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise InputError(f"{name} is {value!r}; give a number of at least 0")


def _check_metric(metric: object, name: object) -> None:
    if name is not None and (not isinstance(name, str) or not name or metric is None):
        raise InputError(f"metric_name is {name!r}; give a text that stands for the metric given, or leave it out")
    if metric is not None and not callable(metric):
        raise InputError(
            f"metric is a {type(metric).__name__}; give a function that takes a model and returns a number, "
            "higher is better"
        )
