"""Make notebooks fit to be stored: keep only the outputs that nbval compares.

    python tools/tidy_notebooks.py [--run] [part of a notebook's name ...]

With --run each notebook is first executed in fast mode, so that the kept outputs are fresh. Without it only
what an editor left behind is removed. A notebook that fails is left as it was.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools import navigation, notebook_rules, run_notebooks

if TYPE_CHECKING:
    from nbformat import NotebookNode

KEPT_METADATA = ("tags", "skip_reason")


def strip(notebook: NotebookNode) -> None:
    """Remove all outputs but those of cells tagged for comparison, and what editors keep in the metadata."""
    for cell in notebook.cells:
        cell.metadata = {name: cell.metadata[name] for name in KEPT_METADATA if name in cell.metadata}
        if cell.cell_type != "code":
            continue
        if notebook_rules.CHECKED not in cell.metadata.get("tags", []):
            cell.outputs = []
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = 1
        # nbval takes a missing count for a cell that never ran; the number itself would only change needlessly.
        cell.execution_count = 1 if cell.outputs else None
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}


def tidy(path: Path, run_first: bool) -> str | None:
    """Rewrite one notebook if that changes it. Returns the error of a failing cell, or None."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    if run_first:
        failed_cell, error = run_notebooks.execute(notebook, path.parent, run_notebooks.CELL_SECONDS)
        if error is not None:
            return f"cell {failed_cell}: {error}"
    strip(notebook)
    text = nbformat.writes(notebook) + "\n"
    if text != path.read_text(encoding="utf-8"):
        run_notebooks.write(path, text)
    return None


def main(arguments: list[str]) -> int:
    run_first = "--run" in arguments
    parts = [argument for argument in arguments if argument != "--run"]
    os.environ["CPUINFER_FAST"] = "1"
    failed = False
    for path in navigation.course(run_notebooks.ROOT / "notebooks"):
        if parts and not any(part in path.name for part in parts):
            continue
        error = tidy(path, run_first)
        failed = failed or error is not None
        print(f"{path.name}: {'tidy' if error is None else f'left as it was; {error}'}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
