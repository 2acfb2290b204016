"""The runner behind `make run`: executes, collects result tables, survives a notebook that fails."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest

from tools import run_notebooks

SHOW = """
class Shown:
    def _repr_mimebundle_(self, include=None, exclude=None):
        table = {"kind": "Timing", "title": "Eager & traced", "columns": ["recipe", "median"],
                 "rows": [["eager", "391 ms"], ["<traced>", "370 ms"]]}
        return {"text/plain": "a timing", "application/vnd.cpuinfer+json": table}
Shown()
"""


def store(folder: Path, name: str, *sources: str) -> Path:
    new = nbformat.v4
    notebook = new.new_notebook(cells=[new.new_code_cell(source) for source in sources])
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    notebooks, build = tmp_path / "my notebooks", tmp_path / "build"
    notebooks.mkdir()
    build.mkdir()
    return notebooks, build


def test_results_are_collected_and_the_page_is_written(folders):
    notebooks, build = folders
    where = "import os; print('working in', os.path.basename(os.getcwd()))"
    source = store(notebooks, "00-a", where, SHOW)
    before = source.read_bytes()
    run = run_notebooks.run_one(source, build)
    assert run.status == "passed" and run.failed_cell is None
    expected = run_notebooks.Result(
        1, "Timing", "Eager & traced", ["recipe", "median"], [["eager", "391 ms"], ["<traced>", "370 ms"]]
    )
    assert run.results == [expected]
    assert "working in my notebooks" in (build / "00-a.html").read_text(encoding="utf-8")
    assert source.read_bytes() == before
    assert not list(build.glob("*.part"))


def test_a_result_without_a_title_takes_the_heading_above_it():
    new = nbformat.v4
    shown = new.new_output(
        "display_data", {run_notebooks.RESULT_MIME_TYPE: {"kind": "Timing", "title": "", "columns": [], "rows": []}}
    )
    cells = [
        new.new_markdown_cell("# One\n\ntext\n\n## Two"),
        new.new_markdown_cell("text"),
        new.new_code_cell("", outputs=[shown]),
    ]
    assert [result.title for result in run_notebooks.results_of(new.new_notebook(cells=cells))] == ["Two"]


def test_a_failing_cell_is_named_and_what_came_before_is_kept(folders):
    notebooks, build = folders
    run = run_notebooks.run_one(store(notebooks, "01-b", SHOW, "1 / 0", "print('never')"), build)
    assert (run.status, run.failed_cell) == ("failed", 1)
    assert run.error == "ZeroDivisionError: division by zero"
    assert [result.cell for result in run.results] == [0]
    assert "a timing" in (build / "01-b.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("source", "error"),
    [("import os; os._exit(1)", "DeadKernelError"), ("import time; time.sleep(600)", "CellTimeoutError")],
)
def test_a_dead_or_stuck_kernel_fails_its_notebook_only(folders, source, error):
    notebooks, build = folders
    run = run_notebooks.run_one(store(notebooks, "02-c", "1", source), build, cell_seconds=5)
    assert (run.status, run.failed_cell) == ("failed", 1)
    assert run.error.startswith(error)
    assert (build / "02-c.html").is_file()


def test_results_page_holds_every_table_and_every_error(folders):
    _, build = folders
    table = run_notebooks.Result(4, "Timing", "Eager & traced", ["recipe", "median"], [["<traced>", "370 ms"]])
    runs = [
        run_notebooks.Run("00-a", "00-a.html", 1.25, results=[table]),
        run_notebooks.Run("01-b", "01-b.html", 0.5, failed_cell=3, error="ValueError: a < b"),
    ]
    run_notebooks.write_results(build, "some CPU, 2 of 2 cores", runs)
    page = (build / "results.html").read_text(encoding="utf-8")
    for text in ("some CPU, 2 of 2 cores", "Eager &amp; traced", "&lt;traced&gt;", "cell 3: ValueError: a &lt; b"):
        assert text in page
    assert '<td class="number">370 ms</td>' in page and "<td>&lt;traced&gt;</td>" in page
    assert page.count('href="00-a.html"') == 2 and "http" not in page
    record = json.loads((build / "results.json").read_text(encoding="utf-8"))
    assert [notebook["status"] for notebook in record["notebooks"]] == ["passed", "failed"]
    assert record["notebooks"][0]["results"][0]["rows"] == [["<traced>", "370 ms"]]
    assert record["versions"]["torch"]


def test_links_between_notebooks_lead_to_their_pages():
    new = nbformat.v4
    notebook = new.new_notebook(cells=[new.new_markdown_cell("[next](01-measure-honestly.ipynb)")])
    page = run_notebooks.notebook_page(notebook, "00-start-here")
    assert 'href="01-measure-honestly.html"' in page


@pytest.mark.parametrize(("source", "needed"), [("Time is money", False), ("Rate $x^2$", True)])
def test_formulas_alone_ask_for_the_network(source, needed):
    new = nbformat.v4
    page = run_notebooks.notebook_page(new.new_notebook(cells=[new.new_markdown_cell(source)]), "page")
    assert ('src="https' in page) == needed
