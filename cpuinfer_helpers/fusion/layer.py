"""One layer of a model, its operators before and after optimisation side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cpuinfer_helpers.display import Displayed, Table, charts
from cpuinfer_helpers.fusion import operators as ops
from cpuinfer_helpers.fusion.observed import Evidence
from cpuinfer_helpers.fusion.patterns import PATTERNS

# A fused operator does the work of so many at most, a partition included.
_MOST_PARTS = 24
# Scaling by a multiplication or a division is the same to whoever reads the picture.
_SAME = {"div": "mul"}


@dataclass(frozen=True)
class Operator:
    """An operator that computes something.

    Attributes
    ----------
    label
        Its name; for a partition with what is in it.
    parts
        The plain operators whose work it does.
    pattern
        The pattern that fused it; empty if none did.
    layer
        Path of the numbered module that it belongs to, see :func:`~cpuinfer_helpers.fusion.operators.layer_of`.
    users
        How many operators use the value that it works on.
    """

    label: str
    parts: tuple[str, ...]
    pattern: str = ""
    layer: str | None = None
    users: int = 0


@dataclass(frozen=True)
class LayerRow:
    """An operator of the executed graph and the operators that it stands for: ``before`` are their names."""

    before: tuple[str, ...]
    after: str
    pattern: str = ""


@dataclass(frozen=True, repr=False)
class LayerPicture(Displayed):
    """One layer's operators before and after optimisation.

    Attributes
    ----------
    rows
        The executed operators in order, each beside those that it replaced.
    layers
        How many such layers there are; 0 if nothing repeats, and the whole graph is shown.
    """

    rows: tuple[LayerRow, ...]
    layers: int

    @property
    def before(self) -> tuple[str, ...]:
        """The operators of the graph that is not optimised, in order."""
        return tuple(name for row in self.rows for name in row.before)

    @property
    def after(self) -> tuple[str, ...]:
        """The operators of the executed graph, in order."""
        return tuple(row.after for row in self.rows if row.after)

    def table(self) -> Table:
        """A row for each executed operator; fused ones name their pattern."""
        rows = tuple((", ".join(row.before), row.after, row.pattern) for row in self.rows)
        of = f"one of {self.layers} layers" if self.layers else "the whole graph, in which nothing repeats"
        return Table(
            columns=("before", "after", "fused by"),
            rows=rows,
            title=f"{of}: {len(self.before)} operators before, {len(self.after)} after",
            note="left out: views, casts and shape arithmetic; what a rewrite put there before the first call is shown "
            "as what it stands for",
        )

    def plot(self) -> Any:
        """The same as a picture: operators before on the left, after on the right, fused ones in colour.

        Returns
        -------
        matplotlib.figure.Figure
        """
        groups = [(row.before, row.after, bool(row.pattern)) for row in self.rows]
        return charts.operator_columns(groups, title=self.table().title)


def picture(evidence: Evidence) -> LayerPicture:
    """Find one layer in both graphs and lay them side by side."""
    before = [operator for node in evidence.before if _works(node) for operator in _plain(node)]
    after = [_executed(node.node) for node in evidence.executed if _works(node.node)]
    layer_before, repeats_before = one_layer(before)
    layer_after, repeats_after = one_layer(after)
    if not repeats_before or not repeats_after:
        return LayerPicture(align(before, after), 0)
    # What is computed once for all layers, such as a mask, makes the first one differ: the repetition has one less.
    numbered = _like(layer_before, before) | _like(layer_after, after)
    return LayerPicture(align(layer_before, layer_after), max(repeats_before, repeats_after, len(numbered)))


def _like(layer: Sequence[Operator], operators: Sequence[Operator]) -> set[str]:
    """Paths of the numbered modules beside the one that a layer's operators come from, itself included."""
    stems = {operator.layer.rpartition(".")[0] for operator in layer if operator.layer}
    return {operator.layer for operator in operators if operator.layer and operator.layer.rpartition(".")[0] in stems}


def one_layer(operators: Sequence[Operator]) -> tuple[Sequence[Operator], int]:
    """The first of the layers that a model repeats, and how many there are; an empty one if nothing repeats.

    Layers are where the longest stretch of the sequence repeats itself. Where in the period a layer begins is told by
    the numbered modules that its operators come from, as far as they are known, and then by the value that most
    operators use: a layer's input is used by its first operators and by the residual connection.
    """
    labels = [operator.label for operator in operators]
    start, period, repeats = _longest_repetition(labels)
    if not repeats:
        return (), 0
    windows = [operators[first : first + period] for first in range(start, start + period)]
    whole = [window for window in windows if _in_one_layer(window)]
    return max(whole or windows, key=lambda window: window[0].users), repeats


def align(before: Sequence[Operator], after: Sequence[Operator]) -> tuple[LayerRow, ...]:
    """Give each executed operator the stretch of plain ones whose work it does, so that as few as can be differ."""
    costs = [[0.0] * (len(before) + 1)] + [[float("inf")] * (len(before) + 1) for _ in after]
    costs[0] = [float(count) for count in range(len(before) + 1)]
    taken = [[0] * (len(before) + 1) for _ in range(len(after) + 1)]
    for done, operator in enumerate(after, 1):
        for end in range(len(before) + 1):
            for length in range(min(end, _MOST_PARTS) + 1):
                stretch = before[end - length : end]
                cost = costs[done - 1][end - length] + _difference(operator, stretch)
                if cost < costs[done][end]:
                    costs[done][end], taken[done][end] = cost, length
    rows: list[LayerRow] = []
    end = len(before)
    for done in range(len(after), 0, -1):
        length = taken[done][end]
        names = tuple(operator.label for operator in before[end - length : end])
        rows.append(LayerRow(names, after[done - 1].label, after[done - 1].pattern))
        end -= length
    if end:
        rows.append(LayerRow(tuple(operator.label for operator in before[:end]), ""))
    return tuple(reversed(rows))


def _difference(operator: Operator, stretch: Sequence[Operator]) -> float:
    wanted = Counter(_SAME.get(part, part) for part in operator.parts)
    given = Counter(_SAME.get(part, part) for plain in stretch for part in plain.parts)
    return float(((wanted - given) + (given - wanted)).total())


def _longest_repetition(labels: Sequence[str]) -> tuple[int, int, int]:
    """Start, period and number of repetitions of the stretch that repeats itself over the most operators."""
    best = (0, 0, 0)
    for period in range(2, len(labels) // 2 + 1):
        run = 0
        for position in range(len(labels) - period + 1):
            if position + period < len(labels) and labels[position] == labels[position + period]:
                run += 1
                continue
            repeats = (run + period) // period
            if repeats > 1 and repeats * period > best[1] * best[2]:
                best = (position - run, period, repeats)
            run = 0
    return best


def _in_one_layer(window: Sequence[Operator]) -> bool:
    return len({operator.layer for operator in window if operator.layer is not None}) <= 1


def _works(node: Any) -> bool:
    if node.kind() in ops.NO_WORK or node.outputsSize() != 1:
        return False
    return ops.gives_tensor(node) and (not node.kind().startswith("prim::") or node.hasAttribute("Subgraph"))


def _plain(node: Any) -> list[Operator]:
    """The node as plain operators: one that a rewrite of ours has put there stands for several."""
    known = _executed(node)
    labels = known.parts if node.kind() in ops.STOCK_LINEAR and known.pattern else (ops.short(node.kind()),)
    return [Operator(label, (label,), "", known.layer, known.users) for label in labels]


def _executed(node: Any) -> Operator:
    for pattern in PATTERNS:
        kernel = pattern.kernel_of(node)
        if kernel:
            return Operator(_label(node), kernel.parts_of(node), pattern.name, ops.layer_of(node), _users(node))
    return Operator(_label(node), ops.parts_of_kind(node.kind()), "", ops.layer_of(node), _users(node))


def _label(node: Any) -> str:
    if node.hasAttribute("Subgraph"):
        held = [name for name in ops.contents(node) if f"aten::{name}" not in ops.NO_WORK]
        return f"{node.kind().rpartition('::')[2]}({', '.join(held)})"
    return node.kind().removeprefix("aten::").rstrip("_")


def _users(node: Any) -> int:
    inputs = ops.tensor_inputs(node)
    return len(list(ops.real_users(inputs[0]))) if inputs else 0
