"""A table that grows while something is measured."""

from __future__ import annotations

import sys
from typing import Any

from cpuinfer_helpers.display.table import Table, shorten


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
