"""Bar charts, each to stand beside a table that says the same."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from io import BytesIO
from textwrap import wrap
from typing import Any

from cpuinfer_helpers.display.table import MAX_TITLE_WIDTH, shorten, without_formulas


def bar_chart(
    labels: Sequence[str],
    values: Sequence[float],
    lows: Sequence[float] | None = None,
    highs: Sequence[float] | None = None,
    *,
    unit: str,
    title: str = "",
) -> Any:
    """Horizontal bars, with their intervals where there are any.

    Parameters
    ----------
    labels
        One label for each bar, the first on top.
    values
        Length of each bar, in ``unit``.
    lows, highs
        Ends of the intervals, in ``unit``; bars without intervals unless both are given.
    unit
        Label of the value axis.
    title
        Text above the chart.

    Returns
    -------
    matplotlib.figure.Figure
        Not known to pyplot, so that a notebook shows it once, and with a picture of its own, so that it is shown at
        all.
    """
    figure = _figure_class()(figsize=(7.5, 0.55 * len(labels) + 1.1), layout="constrained")
    axes = figure.subplots()
    intervals = None
    if lows is not None and highs is not None:
        below = [max(value - low, 0.0) for value, low in zip(values, lows, strict=True)]
        above = [max(high - value, 0.0) for value, high in zip(values, highs, strict=True)]
        intervals = [below, above]
    axes.barh(
        [without_formulas(label) for label in labels],
        list(values),
        xerr=intervals,
        capsize=4,
        color="#4c78a8",
        ecolor="#333333",
    )
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel(without_formulas(unit))
    # Matplotlib cuts off what is wider than the figure.
    axes.set_title("\n".join(wrap(without_formulas(title), MAX_TITLE_WIDTH)))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def operator_columns(groups: Sequence[tuple[Sequence[str], str, bool]], *, title: str = "") -> Any:
    """Two columns of boxes: operators on the left, and what does their work on the right.

    Parameters
    ----------
    groups
        From top to bottom: labels on the left, the label on the right, and whether to draw that one in colour. A label
        on the right is as high as those on its left together; an empty one is not drawn.
    title
        Text above the picture.

    Returns
    -------
    matplotlib.figure.Figure
        See :func:`bar_chart`.
    """
    heights = [max(len(left), 1) for left, _, _ in groups]
    figure = _figure_class()(figsize=(7.5, 0.3 * sum(heights) + 0.8), layout="constrained")
    axes = figure.subplots()
    top = 0
    for (left, right, coloured), height in zip(groups, heights, strict=True):
        for number, label in enumerate(left):
            _box(axes, 0.0, top + number, 1, label, "#eeeeee")
        if right:
            _box(axes, 1.1, top, height, right, "#f2b66d" if coloured else "#eeeeee")
        top += height
    axes.set_xlim(0, 2.1)
    axes.set_ylim(max(top, 1), 0)
    axes.set_axis_off()
    axes.set_title(without_formulas(title))
    return figure


def _box(axes: Any, left: float, top: float, height: int, label: str, colour: str) -> None:
    axes.broken_barh([(left, 1.0)], (top + 0.05, height - 0.1), facecolors=colour, edgecolors="#666666")
    text = without_formulas(shorten(label, 42))
    axes.text(left + 0.5, top + height / 2, text, ha="center", va="center", fontsize="small")


@cache
def _figure_class() -> type:
    """A Figure that IPython can show: it draws plain ones only where pyplot has been imported."""
    from matplotlib.figure import Figure

    class Chart(Figure):
        def _repr_png_(self) -> bytes:
            picture = BytesIO()
            self.savefig(picture, format="png")
            return picture.getvalue()

    return Chart
