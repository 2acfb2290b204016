"""Look into INT8: what calibration sees, what rounding to 8 bits does to answers, and whether it is worth it.

The rounding is simulated in plain PyTorch, so it shows errors on every machine and says nothing about speed. What is
fast, and what really runs in INT8, only the recipes can tell (:mod:`cpuinfer_helpers.recipes`).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from cpuinfer_helpers.compare import Comparison, RecipeScore, RecipeScores
from cpuinfer_helpers.display import Displayed, Table, format_seconds
from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.interface.copies import shared_copy
from cpuinfer_helpers.recipes import Build, Recipe, Request, get_recipe
from cpuinfer_helpers.recipes.registry import REFERENCE
from cpuinfer_helpers.tasks.kinds.registry import kind_with_data

Inputs = Mapping[str, torch.Tensor]

_STEPS = 255
_LARGEST_WEIGHT = 127


@dataclass(frozen=True, repr=False)
class Ranges(Displayed):
    """The lowest and the highest input of every linear layer, for each calibration row.

    Attributes
    ----------
    low, high
        Float tensors of shape (rows,) by the layer's path in the model. Zero is always within: it must be a step of
        its own, because padding and masks are full of it.
    """

    low: Mapping[str, torch.Tensor]
    high: Mapping[str, torch.Tensor]

    @property
    def rows(self) -> int:
        """Number of calibration rows."""
        return len(next(iter(self.low.values())))

    def first(self, rows: int) -> Ranges:
        """The ranges that the first rows alone would have given.

        Raises
        ------
        InputError
            If there are not so many, or none is asked for.
        """
        if not 1 <= rows <= self.rows:
            raise InputError(f"first: {rows} rows of {self.rows}; give 1 to {self.rows}")
        return Ranges(*({name: seen[:rows] for name, seen in side.items()} for side in (self.low, self.high)))

    def of(self, layer: str) -> tuple[float, float]:
        """Lowest and highest input of one layer, over all rows."""
        return self.low[layer].min().item(), self.high[layer].max().item()

    def table(self) -> Table:
        """How much of the range that all rows give is seen after 1, 2, 4 ... rows."""
        counts = sorted({*(2**i for i in range(self.rows.bit_length())), self.rows})
        rows = tuple((str(count), *self._seen_after(count)) for count in counts)
        columns = ("rows", "layers with their full range", "median share of it", "smallest share of it")
        note = f"Inputs of {len(self.low)} linear layers; the full range is that of all {self.rows} rows."
        return Table(columns, rows, note=note, numeric=columns)

    def _seen_after(self, count: int) -> tuple[str, str, str]:
        some = self.first(count)
        shares = [_width(some.of(name)) / _width(self.of(name)) for name in self.low]
        full = sum(share >= 1.0 for share in shares)
        return f"{full} of {len(shares)}", f"{statistics.median(shares):.0%}", f"{min(shares):.0%}"


def observe(model: torch.nn.Module, rows: Sequence[Inputs]) -> Ranges:
    """Run calibration rows and note the range of every linear layer's input: all that static calibration collects.

    Parameters
    ----------
    model
        In evaluation mode; left as it was.
    rows
        Inputs by name, such as :meth:`~cpuinfer_helpers.tasks.Task.calibration_inputs` gives.

    Returns
    -------
    Ranges

    Raises
    ------
    InputError
        If there are no rows, or no linear layer runs.
    """
    if not rows:
        raise InputError("observe: no rows; give at least one, such as task.calibration_inputs(32)")
    observer = _Observer(len(rows))
    layers = {name: part for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    notes = {name: partial(observer.note, name) for name in layers}
    handles = [part.register_forward_pre_hook(notes[name], with_kwargs=True) for name, part in layers.items()]
    try:
        with torch.no_grad():
            for observer.row, row in enumerate(rows):
                model(**row)
    finally:
        for handle in handles:
            handle.remove()
    if not observer.low:
        raise InputError(f"observe: no linear layer of {type(model).__name__} ran; there is nothing to quantise")
    return Ranges(observer.low, observer.high)


class _Observer:
    """Widens the range of a layer by what each of its calls in a row is given."""

    def __init__(self, rows: int) -> None:
        self.rows, self.row = rows, 0
        self.low: dict[str, torch.Tensor] = {}
        self.high: dict[str, torch.Tensor] = {}

    def note(self, name: str, _: torch.nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        values = given[0] if given else named["input"]
        low = self.low.setdefault(name, torch.zeros(self.rows))
        high = self.high.setdefault(name, torch.zeros(self.rows))
        low[self.row] = min(low[self.row].item(), values.min().item())
        high[self.row] = max(high[self.row].item(), values.max().item())


def simulate(
    model: torch.nn.Module, ranges: Ranges | None, *, symmetric: bool = False, per_channel: bool = True
) -> torch.nn.Module:
    """A copy whose linear layers round weights and inputs to 8 bits, computed in FP32.

    Parameters
    ----------
    model
        In evaluation mode; left as it was.
    ranges
        From :func:`observe`, for static quantisation: what lies outside is cut off. None for dynamic quantisation:
        every call takes the range of its own inputs.
    symmetric
        Activations from -127 to 127 steps, without a zero point; from 0 to 255 with one unless given.
    per_channel
        One scale for each output of a layer; one for its whole weight otherwise.

    Returns
    -------
    torch.nn.Module
        Shares all but the linear weights with ``model``. Layers that calibration did not see stay as they are.
    """
    copied = shared_copy(model)
    for name, part in list(copied.named_modules()):
        if not isinstance(part, torch.nn.Linear) or (ranges is not None and name not in ranges.low):
            continue
        parent, _, key = name.rpartition(".")
        rounded = RoundedLinear(part, ranges.of(name) if ranges else None, symmetric, per_channel)
        setattr(copied.get_submodule(parent), key, rounded)
    return copied.eval()


class RoundedLinear(torch.nn.Module):
    """A linear layer that rounds its weight and its input to 8 bits, computed in FP32.

    Parameters
    ----------
    layer
        The layer to imitate.
    bounds
        Lowest and highest input; None to take them from each input.
    symmetric, per_channel
        As for :func:`simulate`.
    """

    def __init__(
        self, layer: torch.nn.Linear, bounds: tuple[float, float] | None, symmetric: bool, per_channel: bool
    ) -> None:
        super().__init__()
        weight = layer.weight.detach()
        largest = weight.abs().amax(dim=1, keepdim=True) if per_channel else weight.abs().amax()
        scale = _not_zero(largest / _LARGEST_WEIGHT)
        self.weight = torch.nn.Parameter((weight / scale).round() * scale, requires_grad=False)
        self.bias = layer.bias
        self.bounds = bounds
        self.symmetric = symmetric

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As :class:`torch.nn.Linear`."""
        low, high = self.bounds or (min(input.min().item(), 0.0), max(input.max().item(), 0.0))
        return functional.linear(rounded(input, low, high, symmetric=self.symmetric), self.weight, self.bias)


def rounded(values: torch.Tensor, low: float, high: float, *, symmetric: bool = False) -> torch.Tensor:
    """Values as 8 bits can hold them: to the nearest of 256 steps from ``low`` to ``high``, and cut off there.

    Parameters
    ----------
    values
        Floating point, any shape.
    low, high
        The range, zero included.
    symmetric
        Without a zero point: 255 steps from minus the larger bound to plus it.
    """
    if symmetric:
        scale = max(-low, high) / _LARGEST_WEIGHT or 1.0
        return (values / scale).round().clamp(-_LARGEST_WEIGHT, _LARGEST_WEIGHT) * scale
    scale = (high - low) / _STEPS or 1.0
    zero = round(-low / scale)
    return (((values / scale).round() + zero).clamp(0, _STEPS) - zero) * scale


def calibrated_on(recipe: str, rows: int) -> Recipe:
    """A recipe like the named one that uses only the first calibration rows that it is given.

    Parameters
    ----------
    recipe
        Name of a recipe that calibrates: ``ipex-int8`` or ``openvino-int8``.
    rows
        How many, at least 1. Batches count as one.

    Returns
    -------
    Recipe
        Named ``ipex-8rows-int8`` and so on, for :func:`~cpuinfer_helpers.compare` and the like.
    """
    if rows < 1:
        raise InputError(f"calibrated_on: {rows} rows; give at least 1")
    base = get_recipe(recipe)
    name = f"{base.backend}-{rows}row{'s' if rows > 1 else ''}-{base.precision}"
    build = partial(_build_with_first, recipe, rows)
    return replace(base, name=name, summary=f"{base.summary}; {rows} calibration rows", build=build)


def _build_with_first(recipe: str, rows: int, request: Request) -> Build:
    return get_recipe(recipe).build(replace(request, calibration=request.calibration[:rows]))


def weigh(comparison: Comparison, scores: RecipeScores, *, most_lost: float = 1.0, least_same: float = 95.0) -> Table:
    """Speed, cost and answers of every recipe, the fastest first, and which keep what you cannot do without.

    Parameters
    ----------
    comparison, scores
        Of the same recipes.
    most_lost
        Points of the task's metric, F1 or accuracy, that may be lost against FP32; that perplexity may rise by.
    least_same
        Percent of the answers that must be FP32's own.

    Returns
    -------
    Table
        Of the recipes that were measured; one without a score keeps nothing as far as anybody knows.
    """
    data = kind_with_data(scores.task).data
    metric, better = data.metric, -1.0 if data.less_is_better else 1.0
    before = scores.rows[REFERENCE].score.metrics[metric]
    costs = comparison.to_frame()["cost_per_million"]
    rows: list[tuple[str, ...]] = []
    found = False
    for row in sorted((r for r in comparison.rows.values() if r.timing), key=lambda r: r.timing.median):
        score = scores.rows.get(row.recipe)
        lost = better * (before - score.score.metrics[metric]) if score and score.score else None
        fault = _fault(score, metric, lost, most_lost, least_same)
        verdict = fault or ("keeps the answers" if found else "the fastest that keeps the answers")
        found = found or fault is None
        cost = f"{costs[row.recipe]:.3g}" if comparison.price_per_hour else ""
        time = (format_seconds(row.timing.median), f"{row.ratio:.2f}x", cost)
        rows.append((row.recipe, *time, *_answer_cells(score, metric), verdict))
    columns = ("recipe", "median", "speed-up", "cost of a million", metric, "same answers", "verdict")
    note = f"Allowed: {most_lost:g} points of {metric} lost; at least {least_same:g}% of the answers the same."
    return Table(columns, tuple(rows), note=note, numeric=columns[1:-1])


def _fault(
    score: RecipeScore | None, metric: str, lost: float | None, most_lost: float, least_same: float
) -> str | None:
    """Why a recipe does not keep what is asked for, or None if it does."""
    if lost is None:
        return "not scored" if score is None else str(score.status)
    if lost > most_lost:
        return f"loses {lost:.1f} points of {metric}"
    return f"changes {100 - score.agreement:.1f}% of the answers" if score.agreement < least_same else None


def _answer_cells(score: RecipeScore | None, metric: str) -> tuple[str, str]:
    if score is None or score.score is None:
        return "", ""
    shown = kind_with_data(score.score.task).data.shown(metric, score.score.metrics[metric])
    return shown, f"{score.agreement:.1f}%"


def _width(bounds: tuple[float, float]) -> float:
    return bounds[1] - bounds[0] or 1.0


def _not_zero(scale: torch.Tensor) -> torch.Tensor:
    return scale.masked_fill(scale == 0, 1.0)
