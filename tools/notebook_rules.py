"""What every notebook of the course must look like, one function for each rule.

A rule takes the notebook as a dictionary (each `source` in one string) and returns the problems that it found,
in words that say which cell and what to do. No problem is an empty list.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Notebook = dict[str, Any]
Rule = Callable[[Notebook], list[str]]

HEAD_ENTRIES = ("What you will learn", "Minutes", "Needs", "Guide section")
CLOSING_SECTIONS = ("In your own notebook", "Exercises")
MAX_CELL_LINES = 15
MAX_BYTES = 200_000
CHECKED = "nbval-check-output"
SKIPPED = "nbval-skip"


def tags(cell: dict[str, Any]) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


def code_cells(notebook: Notebook) -> list[tuple[int, dict[str, Any]]]:
    return [(i, cell) for i, cell in enumerate(notebook["cells"]) if cell["cell_type"] == "code"]


def outputs(notebook: Notebook) -> list[tuple[int, dict[str, Any]]]:
    return [(i, output) for i, cell in code_cells(notebook) for output in cell.get("outputs", [])]


def headings(notebook: Notebook) -> list[str]:
    """The text of all headings, without the number signs, in order."""
    found = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            prose = re.sub(r"^```.*?^```", "", cell["source"], flags=re.MULTILINE | re.DOTALL)
            found += re.findall(r"^#{1,6}\s+(.*?)\s*$", prose, re.MULTILINE)
    return found


def has_format_4_5(notebook: Notebook) -> list[str]:
    stored = (notebook.get("nbformat"), notebook.get("nbformat_minor"))
    return [] if stored == (4, 5) else [f"notebook format {stored}: must be (4, 5)"]


def has_python3_kernel(notebook: Notebook) -> list[str]:
    name = notebook.get("metadata", {}).get("kernelspec", {}).get("name")
    return [] if name == "python3" else [f"kernelspec name is {name!r}: must be 'python3'"]


def has_head_table(notebook: Notebook) -> list[str]:
    first = notebook["cells"][0] if notebook["cells"] else {"cell_type": "none", "source": ""}
    if first["cell_type"] != "markdown":
        return ["cell 0 must be markdown, with the head table"]
    table = "\n".join(line for line in first["source"].splitlines() if line.lstrip().startswith("|"))
    return [f"the head table in cell 0 lacks {entry!r}" for entry in HEAD_ENTRIES if entry not in table]


def shows_machine_first(notebook: Notebook) -> list[str]:
    cells = code_cells(notebook)
    if cells and "machine_report()" in cells[0][1]["source"]:
        return []
    return ["the first code cell must print the machine: it has no machine_report()"]


def has_a_check(notebook: Notebook) -> list[str]:
    for _, cell in code_cells(notebook):
        asserts = re.search(r"^\s*assert\b", cell["source"], re.MULTILINE)
        if (asserts or CHECKED in tags(cell)) and SKIPPED not in tags(cell):
            return []
    return [f"nothing is checked: no assert and no cell tagged {CHECKED}"]


def gives_reason_for_skips(notebook: Notebook) -> list[str]:
    problems = []
    for i, cell in code_cells(notebook):
        by_comment = re.search(r"^#\s*(NBVAL_\w+)", cell["source"], re.MULTILINE)
        if by_comment:
            problems.append(f"cell {i}: use the tag, not the comment {by_comment.group(1)}")
        reason = cell.get("metadata", {}).get("skip_reason")
        if SKIPPED in tags(cell) and not (isinstance(reason, str) and reason.strip()):
            problems.append(f"cell {i}: tagged {SKIPPED} without a skip_reason in its metadata")
    return problems


def has_no_errors_stored(notebook: Notebook) -> list[str]:
    problems = []
    for i, output in outputs(notebook):
        if output["output_type"] == "error":
            problems.append(f"cell {i}: a stored error, {output.get('ename')}")
        if output["output_type"] == "stream" and output.get("name") == "stderr":
            problems.append(f"cell {i}: stored stderr output")
    return problems


def stores_only_checked_outputs(notebook: Notebook) -> list[str]:
    problems = []
    for i, cell in code_cells(notebook):
        stored = bool(cell.get("outputs"))
        if stored and CHECKED not in tags(cell):
            problems.append(f"cell {i}: stored output in a cell that is not tagged {CHECKED}; clear it")
        if CHECKED in tags(cell) and not stored:
            problems.append(f"cell {i}: tagged {CHECKED}, but there is no stored output to compare with")
        if stored and cell.get("execution_count") is None:
            problems.append(f"cell {i}: stored output without an execution count; nbval refuses that")
    return problems


def has_short_cells(notebook: Notebook) -> list[str]:
    lengths = [(i, len(cell["source"].strip().splitlines())) for i, cell in code_cells(notebook)]
    return [f"cell {i}: {n} lines; at most {MAX_CELL_LINES}" for i, n in lengths if n > MAX_CELL_LINES]


def ends_with_closing_sections(notebook: Notebook) -> list[str]:
    last = headings(notebook)[-len(CLOSING_SECTIONS) :]
    missing = [wanted for wanted in CLOSING_SECTIONS if not any(wanted in heading for heading in last)]
    return [f"the last headings are {last}: {wanted!r} is missing" for wanted in missing]


RULES: tuple[Rule, ...] = (
    has_format_4_5,
    has_python3_kernel,
    has_head_table,
    shows_machine_first,
    has_a_check,
    gives_reason_for_skips,
    has_no_errors_stored,
    stores_only_checked_outputs,
    has_short_cells,
    ends_with_closing_sections,
)
