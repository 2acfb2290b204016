"""The form of the notebooks. What they compute is run by nbval, see tools/check.py."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import nbformat
import pytest

from tools import navigation, notebook_rules, tidy_notebooks

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
EXPECTED = [
    "00-start-here",
    "01-measure-honestly",
    "02-torchscript-tracing",
    "03-when-tracing-fails",
    "04-ipex-graph-fusion",
    "05-bf16-autocast",
    "06-bettertransformer",
    "08-int8",
    "09-choose-for-your-machine",
    "10-large-models",
    "11-generate-faster",
]
PATHS = navigation.course(FOLDER)


def as_dictionary(notebook: nbformat.NotebookNode) -> dict:
    return json.loads(nbformat.writes(notebook)) | {"cells": json.loads(json.dumps(notebook.cells))}


def small_notebook() -> dict:
    """A notebook that keeps every rule; each test below breaks one."""
    table = "|  |  |\n|---|---|\n" + "\n".join(f"| {entry} | x |" for entry in notebook_rules.HEAD_ENTRIES)
    new = nbformat.v4
    checked = new.new_code_cell("print('traced')", metadata={"tags": ["nbval-check-output"]})
    checked.execution_count = 3
    checked.outputs = [new.new_output("stream", name="stdout", text="traced\n")]
    skipped = new.new_code_cell("compile()", metadata={"tags": ["nbval-skip"], "skip_reason": "needs a compiler"})
    cells = [
        new.new_markdown_cell(f"# Title\n\n{table}\n"),
        new.new_code_cell("import cpuinfer_helpers as cpu\nprint(cpu.machine_report().one_line())"),
        new.new_code_cell("assert 1 + 1 == 2"),
        checked,
        skipped,
        new.new_markdown_cell("## In your own notebook\n\n```python\n# not a heading\n```\n"),
        new.new_markdown_cell("## Exercises\n\n1. Try it."),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return as_dictionary(new.new_notebook(cells=cells, metadata={"kernelspec": kernel}))


def test_every_expected_notebook_is_there():
    assert {path.stem for path in PATHS} >= set(EXPECTED)


@pytest.mark.parametrize("rule", notebook_rules.RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_notebook_keeps_rule(path: Path, rule: notebook_rules.Rule):
    assert rule(as_dictionary(nbformat.read(path, as_version=nbformat.NO_CONVERT))) == []


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_notebook_is_valid_and_small(path: Path):
    nbformat.validate(nbformat.read(path, as_version=nbformat.NO_CONVERT))
    assert path.stat().st_size <= notebook_rules.MAX_BYTES


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_navigation_is_up_to_date_and_leads_somewhere(path: Path):
    assert navigation.is_current(path, PATHS), "run: python tools/navigation.py --write"
    head = navigation.head_of(json.loads(path.read_text(encoding="utf-8")))
    line = next(line for line in head.splitlines() if line.startswith(navigation.MARK))
    targets = re.findall(r"\]\(([^)]+)\)", line)
    assert targets
    assert [target for target in targets if not (path.parent / target).is_file()] == []


# The rules themselves, on notebooks that break one of them.


@pytest.mark.parametrize("rule", notebook_rules.RULES, ids=lambda rule: rule.__name__)
def test_rules_accept_a_good_notebook(rule: notebook_rules.Rule):
    assert rule(small_notebook()) == []


def set_minor(notebook: dict) -> None:
    notebook["nbformat_minor"] = 4


def rename_kernel(notebook: dict) -> None:
    notebook["metadata"]["kernelspec"]["name"] = "my-env"


def drop_head_cell(notebook: dict) -> None:
    del notebook["cells"][0]


def drop_minutes(notebook: dict) -> None:
    cell = notebook["cells"][0]
    cell["source"] = cell["source"].replace("| Minutes | x |", "Minutes: many")


def drop_machine(notebook: dict) -> None:
    notebook["cells"][1]["source"] = "import cpuinfer_helpers as cpu"


def drop_checks(notebook: dict) -> None:
    notebook["cells"][2]["source"] = "text = 'assert nothing'"
    notebook["cells"][3]["metadata"]["tags"] = []


def skip_the_checks(notebook: dict) -> None:
    for cell in notebook["cells"][2:4]:
        cell["metadata"] = {"tags": [*cell["metadata"].get("tags", []), "nbval-skip"], "skip_reason": "x"}


def drop_reason(notebook: dict) -> None:
    notebook["cells"][4]["metadata"]["skip_reason"] = " "


def skip_by_comment(notebook: dict) -> None:
    notebook["cells"][4]["source"] = "# NBVAL_SKIP\ncompile()"


def store_error(notebook: dict) -> None:
    error = {"output_type": "error", "ename": "ValueError", "evalue": "x", "traceback": []}
    notebook["cells"][3]["outputs"] = [error]


def store_stderr(notebook: dict) -> None:
    notebook["cells"][3]["outputs"][0]["name"] = "stderr"


def store_unchecked_output(notebook: dict) -> None:
    notebook["cells"][2] |= {"outputs": copy.deepcopy(notebook["cells"][3]["outputs"]), "execution_count": 2}


def clear_checked_output(notebook: dict) -> None:
    notebook["cells"][3]["outputs"] = []


def forget_execution_count(notebook: dict) -> None:
    notebook["cells"][3]["execution_count"] = None


def lengthen_cell(notebook: dict) -> None:
    notebook["cells"][2]["source"] = "\n".join(["assert True"] * 16)


def drop_exercises(notebook: dict) -> None:
    notebook["cells"].pop()


def add_section_after_the_end(notebook: dict) -> None:
    notebook["cells"].append({"cell_type": "markdown", "metadata": {}, "source": "## One more thing"})


@pytest.mark.parametrize(
    ("spoil", "rule", "says"),
    [
        (set_minor, notebook_rules.has_format_4_5, "4.*5"),
        (rename_kernel, notebook_rules.has_python3_kernel, "my-env"),
        (drop_head_cell, notebook_rules.has_head_table, "must be markdown"),
        (drop_minutes, notebook_rules.has_head_table, "Minutes"),
        (drop_machine, notebook_rules.shows_machine_first, "machine_report"),
        (drop_checks, notebook_rules.has_a_check, "nothing is checked"),
        (skip_the_checks, notebook_rules.has_a_check, "nothing is checked"),
        (drop_reason, notebook_rules.gives_reason_for_skips, "cell 4.*skip_reason"),
        (skip_by_comment, notebook_rules.gives_reason_for_skips, "NBVAL_SKIP"),
        (store_error, notebook_rules.has_no_errors_stored, "cell 3.*ValueError"),
        (store_stderr, notebook_rules.has_no_errors_stored, "cell 3.*stderr"),
        (store_unchecked_output, notebook_rules.stores_only_checked_outputs, "cell 2.*clear"),
        (clear_checked_output, notebook_rules.stores_only_checked_outputs, "cell 3.*no stored"),
        (forget_execution_count, notebook_rules.stores_only_checked_outputs, "cell 3.*execution count"),
        (lengthen_cell, notebook_rules.has_short_cells, "cell 2: 16 lines"),
        (drop_exercises, notebook_rules.ends_with_closing_sections, "Exercises"),
        (add_section_after_the_end, notebook_rules.ends_with_closing_sections, "In your own notebook"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_rule_finds_what_breaks_it(spoil, rule, says):
    notebook = small_notebook()
    spoil(notebook)
    (problem,) = rule(notebook)
    assert re.search(says, problem)


# Navigation, on a small course of its own.


@pytest.fixture
def small_course(tmp_path: Path) -> list[Path]:
    for name in ("00-a", "01-b", "02-c"):
        (tmp_path / f"{name}.ipynb").write_text(json.dumps(small_notebook()), encoding="utf-8")
    (tmp_path / "scratch.ipynb").write_text("not part of the course", encoding="utf-8")
    return navigation.course(tmp_path)


def test_course_holds_numbered_notebooks_in_order(small_course):
    assert [path.stem for path in small_course] == ["00-a", "01-b", "02-c"]


def test_line_links_to_neighbours(small_course):
    lines = [navigation.line_for(path, small_course) for path in small_course]
    assert lines == [
        "**Course:** previous | [contents](../README.md) | [next](01-b.ipynb)",
        "**Course:** [previous](00-a.ipynb) | [contents](../README.md) | [next](02-c.ipynb)",
        "**Course:** [previous](01-b.ipynb) | [contents](../README.md) | next",
    ]


def test_write_adds_the_line_once_and_keeps_the_rest(small_course):
    path = small_course[1]
    before = json.loads(path.read_text(encoding="utf-8"))
    assert not navigation.is_current(path, small_course)
    navigation.write(path, small_course)
    assert navigation.is_current(path, small_course)
    navigation.write(path, small_course)
    after = json.loads(path.read_text(encoding="utf-8"))
    head = navigation.head_of(after)
    assert head.count(navigation.MARK) == 1
    assert head.startswith("# Title\n") and "| Minutes | x |" in head
    assert after["cells"][1:] == before["cells"][1:]


def test_line_is_stale_once_a_notebook_is_added(small_course):
    for path in small_course:
        navigation.write(path, small_course)
    added = small_course[-1].with_name("03-d.ipynb")
    added.write_text(json.dumps(small_notebook()), encoding="utf-8")
    longer = navigation.course(added.parent)
    assert [navigation.is_current(path, longer) for path in longer] == [True, True, False, False]


# Tidying.


def test_tidying_keeps_only_what_nbval_compares(tmp_path: Path):
    notebook = small_notebook()
    store_unchecked_output(notebook)
    notebook["cells"][2]["metadata"] = {"collapsed": True}
    path = tmp_path / "00-a.ipynb"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    assert tidy_notebooks.tidy(path, run_first=False) is None
    kept = as_dictionary(nbformat.read(path, as_version=nbformat.NO_CONVERT))
    assert [problem for rule in notebook_rules.RULES for problem in rule(kept)] == []
    assert kept["cells"][2]["metadata"] == {} and kept["cells"][2]["execution_count"] is None
    assert kept["cells"][3]["outputs"][0]["text"] == "traced\n"
    assert kept["cells"][4]["metadata"] == notebook["cells"][4]["metadata"]
    stored = path.read_bytes()
    assert tidy_notebooks.tidy(path, run_first=False) is None
    assert path.read_bytes() == stored


def test_tidying_after_a_run_refreshes_what_is_compared(tmp_path: Path):
    notebook = small_notebook()
    notebook["cells"][3]["outputs"][0]["text"] = "stale\n"
    notebook["cells"][1]["source"] = "print('no machine_report() needed here')"
    del notebook["cells"][4]
    path = tmp_path / "00-a.ipynb"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    assert tidy_notebooks.tidy(path, run_first=True) is None
    kept = as_dictionary(nbformat.read(path, as_version=nbformat.NO_CONVERT))
    assert kept["cells"][3]["outputs"][0]["text"] == "traced\n"


def test_a_notebook_that_fails_is_left_as_it_was(tmp_path: Path):
    notebook = small_notebook()
    notebook["cells"][1]["source"] = "1 / 0"
    path = tmp_path / "00-a.ipynb"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    before = path.read_bytes()
    assert tidy_notebooks.tidy(path, run_first=True) == "cell 1: ZeroDivisionError: division by zero"
    assert path.read_bytes() == before
