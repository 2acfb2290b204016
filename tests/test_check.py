"""The command behind `make test`: what it runs, in which order, and that one failure fails the whole."""

from __future__ import annotations

import sys
from dataclasses import replace
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


def test_notebooks_run_side_by_side_and_print_in_one_piece(clone, monkeypatch, capfd):
    monkeypatch.setattr(check, "process_count", lambda: 2)
    # Each waits until the other has begun, so one after the other they would both fail.
    program = (
        "import pathlib, sys, time; me, other = map(pathlib.Path, sys.argv[1:]); print(me, 'begins', flush=True)\n"
        "me.touch(); end = time.monotonic() + 30\n"
        "while not other.exists() and time.monotonic() < end: time.sleep(0.01)\n"
        "print(me, 'ends', file=sys.stderr); sys.exit(not other.exists())"
    )
    pairs = (("a", "b"), ("b", "a"))
    outcomes = check.run_together([check.Step(me, [sys.executable, "-c", program, me, other]) for me, other in pairs])
    assert [(outcome.name, outcome.code) for outcome in outcomes] == [("a", 0), ("b", 0)]
    lines = [line for line in capfd.readouterr().out.splitlines() if line]
    assert sorted([lines[:3], lines[3:]]) == [[f"=== {me}", f"{me} begins", f"{me} ends"] for me in ("a", "b")]


def test_threads_of_all_processes_together_are_one_for_each_core(monkeypatch):
    machine = check.machine_report()
    monkeypatch.setattr(check, "machine_report", lambda: replace(machine, cores_allowed=8, cpu_quota=None))
    monkeypatch.setattr(check, "process_count", lambda: 2)
    step = check.side_by_side("tests")
    assert step.environment["OMP_NUM_THREADS"] == "4" and step.command[step.command.index("-n") + 1] == "2"


@pytest.mark.parametrize(("cores", "gibibytes", "count"), [(2, 23, 2), (16, 23, 5), (1, 23, 1), (4, 2, 1)])
def test_processes_have_a_core_and_enough_memory_each(monkeypatch, cores, gibibytes, count):
    memory = gibibytes * 2**30
    machine = replace(check.machine_report(), cores_allowed=cores, cpu_quota=None, memory_available=memory)
    monkeypatch.setattr(check, "machine_report", lambda: machine)
    assert check.process_count() == count


# On AVX2

SEES = "import os; assert (os.environ['ONEDNN_MAX_CPU_ISA'], os.environ['ATEN_CPU_CAPABILITY']) == ('AVX2', 'avx2')"


@pytest.fixture
def capable(monkeypatch):
    versions = {"torch": "2.8.0", "transformers": "4.52.4"}
    machine = replace(check.machine_report(), isa=("AVX2", "AVX512"), versions=versions)
    monkeypatch.setattr(check, "machine_report", lambda: machine)
    for name in check.AVX2_ONLY:
        monkeypatch.delenv(name, raising=False)


def test_with_the_cpu_held_back_some_notebooks_and_the_tests_that_see_it_run(clone, capable, capfd):
    for name in ("01-a", "05-b", "08-c"):
        store(clone, name, SEES)
    first, together = check.steps_of([], avx2=True)
    assert [step.name for step in first] == ["unit tests, AVX2"] and first[0].command[-2:] == ["-m", "cpu"]
    assert [step.name for step in together] == ["05-b.ipynb, AVX2", "08-c.ipynb, AVX2"]
    assert check.main(["--avx2", "05", "01"]) == 0
    assert "01-a.ipynb, AVX2" in capfd.readouterr().out
    assert check.main(["01"]) == 1, "without it nothing is held back"
    capfd.readouterr()


def test_on_the_current_stack_the_tests_alone_run_with_the_cpu_held_back(clone, capable, monkeypatch):
    store(clone, "05-b", SEES)
    versions = {"torch": "2.13.0", "transformers": "5.23.0"}
    machine = replace(check.machine_report(), versions=versions)
    monkeypatch.setattr(check, "machine_report", lambda: machine)
    first, together = check.steps_of([], avx2=True)
    assert len(first) == 1 and together == []


def test_a_cpu_without_avx512_has_nothing_to_hold_back(clone, monkeypatch, capfd):
    machine = replace(check.machine_report(), isa=("AVX2",))
    monkeypatch.setattr(check, "machine_report", lambda: machine)
    store(clone, "04-b", "assert False")
    assert check.main(["--avx2"]) == 0
    assert "nothing to hold back" in capfd.readouterr().out


def test_a_name_that_fits_no_notebook_is_an_error(clone, capfd):
    store(clone, "00-a", "1")
    assert check.main(["99"]) == 2
    assert "99" in capfd.readouterr().err
