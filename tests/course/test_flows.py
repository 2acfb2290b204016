"""What runs of flows refuse before a process is started, what comes back from one, and what is said if it fails."""

from __future__ import annotations

import pytest

import cpuinfer_helpers as cpu
from cpuinfer_helpers.course import flows
from cpuinfer_helpers.course.flows import run_flows
from cpuinfer_helpers.processes.asking import Answer
from cpuinfer_helpers.processes.status import Kind, Status


@pytest.mark.parametrize("threads", [0, -1, 10**9, 1.5, True])
def test_nonsense_numbers_of_threads(threads):
    with pytest.raises(cpu.InputError, match=f"threads is {threads}; give a whole number"):
        run_flows("text-classification", {"plain": []}, threads=threads)


def test_a_task_that_a_trainer_is_not_meant_to_score():
    with pytest.raises(cpu.InputError, match=r"text-generation is not scored by a Trainer; use Task\.evaluate"):
        run_flows("text-generation", {"plain": []})


@pytest.mark.cpu
def test_what_a_flow_answers_is_what_the_task_answers():
    task = cpu.load_task("token-classification")
    found = run_flows(task.name, {"plain": []}, limit=3, threads=1)
    row, expected = found["plain"], task.evaluate(limit=3)
    assert (row.examples, row.predictions) == (3, expected.predictions)
    assert row.metrics == pytest.approx(dict(expected.metrics))
    assert (row.flags, row.jit_mode_eval, row.seconds > 0) == ((), "not requested", True)
    assert found.table().rows[0][0] == "plain"


def test_a_flow_that_fails_costs_its_own_row_only(monkeypatch):
    monkeypatch.setattr(flows, "run_once", lambda *words, **named: Answer(Status(Kind.CRASHED, "exit code 3")))
    found = run_flows("text-classification", {"plain": [], "jit": ["jit_mode_eval"]})
    assert [row[:3] for row in found.table().rows] == [(name, "crashed: exit code 3", "") for name in ("plain", "jit")]
