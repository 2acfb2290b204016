"""The command behind `make test`: what it runs, in which order, and that one failure fails the whole."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
import pytest

from tools import check


@pytest.fixture
def clone(tmp_path: Path, monkeypatch) -> Path:
    root = tmp_path / "my cloné"
    (root / "notebooks").mkdir(parents=True)
    monkeypatch.setattr(check, "ROOT", root)
    return root


def store(root: Path, name: str, *sources: str) -> Path:
    new = nbformat.v4
    notebook = new.new_notebook(cells=[new.new_code_cell(source) for source in sources])
    path = root / "notebooks" / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


def test_notebooks_are_taken_in_order_and_chosen_by_name(clone):
    for name in ("02-c", "00-a", "01-b", "scratch"):
        store(clone, name)
    assert [path.stem for path in check.notebooks([])] == ["00-a", "01-b", "02-c"]
    assert [path.stem for path in check.notebooks(["02", "a"])] == ["00-a", "02-c"]


def test_a_notebook_is_run_in_order_in_fast_mode_and_in_its_folder(clone, capfd):
    steps = ["order = []", *(f"order.append({i})" for i in range(12))]
    fast = "import os; assert os.environ['CPUINFER_FAST'] == '1' and os.path.basename(os.getcwd()) == 'notebooks'"
    path = store(clone, "00-a", *steps, "assert order == list(range(12))", fast)
    outcome = check.run(check.notebook_step(path))
    assert outcome.code == 0, capfd.readouterr().out
    assert "passed" in str(outcome)


def test_a_failing_cell_fails_its_notebook(clone, capfd):
    outcome = check.run(check.notebook_step(store(clone, "00-a", "1", "assert 1 == 2")))
    assert outcome.code == 1 and "FAILED" in str(outcome)
    assert "Cell 1" in capfd.readouterr().out


def test_a_notebook_without_code_is_not_taken_for_a_pass(clone, capfd):
    outcome = check.run(check.notebook_step(store(clone, "00-a")))
    assert outcome.code == check.NOTHING_COLLECTED and "nothing in it was run" in str(outcome)
    capfd.readouterr()


@pytest.mark.parametrize(("codes", "expected"), [((0, 0), 0), ((3, 0), 1), ((0, 5), 1)])
def test_one_failure_fails_the_whole_and_stops_nothing(clone, monkeypatch, capfd, codes, expected):
    steps = [check.Step(f"step {i}", [sys.executable, "-c", f"exit({code})"]) for i, code in enumerate(codes)]
    monkeypatch.setattr(check, "unit_steps", lambda: steps)
    assert check.main([]) == expected
    summary = capfd.readouterr().out.partition("=== summary")[2]
    assert all(f"step {i} " in summary for i in range(len(codes)))


def test_a_name_that_fits_no_notebook_is_an_error(clone, capfd):
    store(clone, "00-a", "1")
    assert check.main(["99"]) == 2
    assert "99" in capfd.readouterr().err
