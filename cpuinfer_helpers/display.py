"""Tables and plots from plain data, and a choice of models.

The only module that imports matplotlib and ipywidgets, and only when a plot or a choice is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.util import find_spec
from io import BytesIO
from textwrap import wrap
from typing import Any

from cpuinfer_helpers.errors import InputError, printable

RESULT_MIME_TYPE = "application/vnd.cpuinfer+json"
_MAX_CELL_WIDTH = 100
_MAX_TITLE_WIDTH = 60


class Displayed:
    """Gives a result object its look in a terminal, in a notebook and on the results page.

    A subclass implements :meth:`table`.
    """

    def table(self) -> Table:
        """What this object shows, as a table of strings."""
        raise TypeError(f"{type(self).__name__} does not say how to show itself: it needs a table() method")

    def __str__(self) -> str:
        return self.table().as_text()

    def __repr__(self) -> str:
        return str(self)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        table = self.table()
        return {
            "text/plain": str(self),
            "text/html": table.as_html(),
            RESULT_MIME_TYPE: {
                "kind": type(self).__name__,
                "title": table.title,
                "columns": list(table.columns),
                "rows": [list(row) for row in table.rows],
            },
        }


@dataclass(frozen=True, repr=False)
class Table(Displayed):
    """A table of strings with a title above it and a note below it.

    Parameters
    ----------
    columns
        Column headings.
    rows
        One tuple of strings for each row, as long as ``columns``.
    title, note
        Text above and below the table; both may be empty.
    numeric
        Names of the columns that are aligned to the right.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    note: str = ""
    numeric: tuple[str, ...] = ()

    def table(self) -> Table:
        """The table itself."""
        return self

    def as_text(self) -> str:
        """The table in plain text, columns aligned."""
        rows = [tuple(shorten(printable(cell, keep="\n\t")) for cell in row) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(self.columns, *rows, strict=True)]
        lines = [self.title] if self.title else []
        lines.append(self._text_line(self.columns, widths))
        lines.append("  ".join("-" * width for width in widths))
        lines.extend(self._text_line(row, widths) for row in rows)
        if self.note:
            lines.append(self.note)
        return printable("\n".join(lines), keep="\n\t")

    def _text_line(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        aligned = (
            cell.rjust(width) if name in self.numeric else cell.ljust(width)
            for name, cell, width in zip(self.columns, cells, widths, strict=True)
        )
        return "  ".join(aligned).rstrip()

    def as_html(self) -> str:
        """The table in HTML, for a notebook."""
        head = "".join(f"<th{self._style(name)}>{escape(name)}</th>" for name in self.columns)
        body = "".join(self._html_row(row) for row in self.rows)
        title = f"<p><strong>{escape(self.title)}</strong></p>" if self.title else ""
        note = f"<p><small>{escape(self.note)}</small></p>" if self.note else ""
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return printable(f"{title}{table}{note}", keep="\n\t")

    def _html_row(self, row: Sequence[str]) -> str:
        cells = (f"<td{self._style(name)}>{escape(cell)}</td>" for name, cell in zip(self.columns, row, strict=True))
        return f"<tr>{''.join(cells)}</tr>"

    def _style(self, column: str) -> str:
        return f' style="text-align:{"right" if column in self.numeric else "left"}"'


def _plain(text: str) -> str:
    """A text for matplotlib, which takes what stands between two dollar signs for a formula."""
    return printable(text).replace("$", r"\$")


def shorten(text: str, width: int = _MAX_CELL_WIDTH) -> str:
    """One line of at most ``width`` characters; an ellipsis tells that something was left out."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= width else line[: width - 1] + "…"


def format_seconds(seconds: float) -> str:
    """Seconds as text, in the unit that reads best: s, ms or µs."""
    if seconds >= 10:
        return f"{seconds:.1f} s"
    # The limits are where rounding reaches the next unit: 0.9996 s are 1.00 s, not 1000 ms.
    if seconds >= 0.9995:
        return f"{seconds:.2f} s"
    if seconds >= 0.9995e-3:
        return f"{seconds * 1e3:.3g} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"
    return f"{seconds * 1e6:.3g} µs"


def format_bytes(count: float) -> str:
    """A number of bytes as text, in MiB or GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


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
        [_plain(label) for label in labels], list(values), xerr=intervals, capsize=4, color="#4c78a8", ecolor="#333333"
    )
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel(_plain(unit))
    # Matplotlib cuts off what is wider than the figure.
    axes.set_title("\n".join(wrap(_plain(title), _MAX_TITLE_WIDTH)))
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
    axes.set_title(_plain(title))
    return figure


def _box(axes: Any, left: float, top: float, height: int, label: str, colour: str) -> None:
    axes.broken_barh([(left, 1.0)], (top + 0.05, height - 0.1), facecolors=colour, edgecolors="#666666")
    axes.text(left + 0.5, top + height / 2, _plain(shorten(label, 42)), ha="center", va="center", fontsize="small")


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


class TypedChoice(Displayed):
    """A choice without widgets: shows what can be chosen, and how.

    Attributes
    ----------
    options
        What is offered.
    value
        What is chosen, the first of them unless something else is assigned.
    """

    def __init__(self, options: Sequence[str]) -> None:
        self.options = tuple(options)
        self.value = self.options[0]

    def table(self) -> Table:
        """The options, with a mark at the one that is chosen."""
        offered = self.options if self.value in self.options else (*self.options, self.value)
        rows = tuple((option, "chosen" if option == self.value else "") for option in offered)
        return Table(("model", ""), rows, note="ipywidgets is not installed: assign another one to .value")


class WidgetChoice:
    """A drop-down, and a text box that goes before it."""

    def __init__(self, options: Sequence[str]) -> None:
        import ipywidgets

        wide = {"description_width": "8em"}
        layout = ipywidgets.Layout(width="40em")
        self._offered = ipywidgets.Dropdown(
            options=list(options), description="one of these", style=wide, layout=layout
        )
        self._own = ipywidgets.Text(
            placeholder="owner/name on the hub, or a folder", description="or your own", style=wide, layout=layout
        )
        self._both = ipywidgets.VBox([self._offered, self._own])

    @property
    def value(self) -> str:
        """What is in the text box, if there is anything, else what the drop-down shows."""
        return self._own.value.strip() or self._offered.value

    @value.setter
    def value(self, chosen: str) -> None:
        offered = chosen in self._offered.options
        self._own.value = "" if offered else chosen
        if offered:
            self._offered.value = chosen

    def __repr__(self) -> str:
        return f"chosen: {self.value}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        # A page without widgets shows the text.
        return {**self._both._repr_mimebundle_(), "text/plain": repr(self)}


def choose_model(options: Sequence[str]) -> TypedChoice | WidgetChoice:
    """Offer models in a notebook: a drop-down, and a text box for any other.

    Nothing waits for a click: ``value`` is the first option until somebody chooses.

    Parameters
    ----------
    options
        What the drop-down offers, the default first.

    Returns
    -------
    object
        ``value`` is the text if there is any, else the drop-down's choice; it can be assigned. Without ipywidgets the
        object shows plain text and has the same ``value``.

    Raises
    ------
    InputError
        If there are no options.
    """
    if not options or isinstance(options, str):
        raise InputError(f"options is {options!r}; give at least one name, in a list")
    return WidgetChoice(options) if find_spec("ipywidgets") else TypedChoice(options)


class GrowingTable:
    """Shows a table while it grows: drawn anew in a notebook, a line for each new or changed row in a terminal.

    A context manager. Lines go where progress bars go, to standard error. What was drawn is taken away at the end,
    because the result shows itself.
    """

    def __init__(self) -> None:
        self._handle: Any = None
        self._rows: dict[str, tuple[str, ...]] = {}
        self._in_notebook = _in_notebook()

    def __enter__(self) -> GrowingTable:
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            self._handle.update(_Nothing())

    def show(self, table: Table) -> None:
        """Show the table as it is now; rows are known by their first cell."""
        if self._in_notebook:
            self._draw(table)
            return
        from tqdm.auto import tqdm

        for row in table.rows:
            if self._rows.get(row[0]) != row:
                self._rows[row[0]] = row
                tqdm.write("  ".join(shorten(cell) for cell in row if cell), file=sys.stderr)

    def _draw(self, table: Table) -> None:
        from IPython.display import display

        if self._handle is None:
            self._handle = display(table, display_id=True)
        else:
            self._handle.update(table)


class _Nothing:
    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/plain": "", "text/html": ""}


def _in_notebook() -> bool:
    """Whether this process is a kernel, which can draw over what it has shown."""
    # Without IPython there is no notebook, and it is not imported only to find that out.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")
