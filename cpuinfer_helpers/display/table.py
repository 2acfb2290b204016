"""Tables and plots from plain data, and a choice of models.

The only module that imports matplotlib and ipywidgets, and only when a plot or a choice is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from cpuinfer_helpers.errors import printable

RESULT_MIME_TYPE = "application/vnd.cpuinfer+json"
_MAX_CELL_WIDTH = 100
MAX_TITLE_WIDTH = 60


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


def without_formulas(text: str) -> str:
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
