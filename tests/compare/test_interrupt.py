"""However a comparison is ended, no process and no file of it is left."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.interface.adapter import named_inputs
from cpuinfer_helpers.processes import child as child_module
from cpuinfer_helpers.processes.child import ChildLost
from cpuinfer_helpers.processes.session import Session
from cpuinfer_helpers.recipes import Build

ROOT = Path(cpu.__file__).parents[1]
# A shell may have started the tests with interrupts ignored, as it does with commands in the background.
PROGRAM = """
import signal, sys, time, torch
signal.signal(signal.SIGINT, signal.default_int_handler)
import cpuinfer_helpers as cpu

class Model(torch.nn.Module):
    def forward(self, x):
        return x * 2

STAGE, MARKER = sys.argv[1:]

def slow(request):
    open(MARKER, "w").close()
    time.sleep(300)

recipes = [cpu.Recipe("slow-fp32", "sleeps", slow)] if STAGE == "preparing" else ["eager-bf16"]
cpu.compare(Model().eval(), {"x": torch.ones(1, 2)}, recipes, threads=1, budget_s=200, relative_width=1e-9,
            measure_roofline=False, verify=False)
"""


@pytest.fixture
def start(tmp_path):
    """Starts a program that compares, with a folder of its own for temporary files."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    started = []

    def begin(stage: str) -> tuple[subprocess.Popen, Path, Path]:
        log = tmp_path / "log"
        command = [sys.executable, str(program), stage, str(tmp_path / "marker")]
        with log.open("wb") as file:
            started.append(subprocess.Popen(command, stderr=file, env=environment))
        return started[0], log, temporary

    yield begin
    for process in started:
        process.kill()
        process.wait()


def wait_for(condition, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


def run_until(begin, stage: str, marker: Path):
    process, log, temporary = begin(stage)
    if stage == "preparing":
        wait_for(lambda: marker.exists() or process.poll() is not None)
    else:
        wait_for(lambda: "round 3" in log.read_text() or process.poll() is not None)
    assert process.poll() is None, log.read_text()
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 2
    return process, log, temporary, children


@pytest.mark.parametrize("stage", ["preparing", "measuring"])
def test_an_interrupt_ends_all_processes_and_is_raised(start, tmp_path, stage):
    process, log, temporary, children = run_until(start, stage, tmp_path / "marker")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == -signal.SIGINT
    assert "KeyboardInterrupt" in log.read_text()
    assert not any(child.is_running() for child in children)
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the children look once a second; this is about Linux")
def test_children_do_not_outlive_a_parent_that_is_killed(start, tmp_path):
    process, _, _, children = run_until(start, "preparing", tmp_path / "marker")
    process.kill()
    process.wait(timeout=30)
    # A process that nobody waits for stays a zombie until init takes it.
    wait_for(lambda: all(not c.is_running() or c.status() == psutil.STATUS_ZOMBIE for c in children), 10)


class Double(torch.nn.Module):
    def forward(self, x):
        return x * 2


def session_of_double() -> Session:
    content = {"model": Double().eval(), "inputs": {"x": torch.ones(1, 2)}}
    return Session(content, threads=1, timeout_s=90, memory_bytes=None)


def sleeping(request) -> Build:
    adapter = named_inputs(request.model, request.inputs)

    def answer(tensors):
        time.sleep(300)
        return adapter.run_model(tensors)

    return Build(answer, runs="a slow one")


def failing_later(request, error: Exception) -> Build:
    """Fails in the tenth call, when it has been prepared."""
    adapter, calls = named_inputs(request.model, request.inputs), []

    def answer(tensors):
        calls.append(tensors)
        if len(calls) >= 10:
            raise error
        return adapter.run_model(tensors)

    return Build(answer, runs="the eager model, until it fails")


def test_a_stage_that_takes_too_long_is_ended_with_what_it_started():
    with session_of_double() as session:
        child, _ = session.start(cpu.Recipe("slow-fp32", "sleeps", sleeping))
        process = psutil.Process(child.process_id)
        session.timeout_s = 0.5
        with pytest.raises(ChildLost) as lost:
            session.ask(child, "prepare", verify=False)
        assert str(lost.value.status) == "timed out: prepare took more than 0.5 s"
        assert not process.is_running()
        session.close(child)  # closing what is closed does nothing


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError("no more"), "out of memory: MemoryError: no more"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory: RuntimeError: "),
        (RuntimeError("shapes differ"), "crashed: RuntimeError: shapes differ"),
    ],
)
def test_a_step_that_fails_is_told_by_its_cause(error, status):
    with session_of_double() as session:
        child, _ = session.start(cpu.Recipe("failing-fp32", "fails", functools.partial(failing_later, error=error)))
        session.ask(child, "prepare", verify=False)
        with pytest.raises(ChildLost) as lost:
            session.ask(child, "warm_up", budget_s=90.0)
        assert str(lost.value.status).startswith(status)


def test_a_step_for_which_no_time_is_left_is_not_waited_for():
    with session_of_double() as session:
        child, _ = session.start(cpu.Recipe("slow-fp32", "sleeps", sleeping))
        process = psutil.Process(child.process_id)
        session.deadline = time.monotonic()
        with pytest.raises(ChildLost) as lost:
            session.ask(child, "warm_up", budget_s=90.0)
        assert str(lost.value.status) == "timed out: no time was left for the step 'warm up'"
        assert not process.is_running()


@pytest.mark.parametrize(
    ("counters", "status"),
    [
        (("oom_kill 3", "oom_kill 3"), "crashed: ended by SIGKILL from outside"),
        (("oom_kill 3", "oom_kill 4"), "out of memory: ended by SIGKILL"),
        # Not every system counts; then it is the likeliest cause.
        (("pgfault 3", "pgfault 4"), "out of memory: ended by SIGKILL"),
    ],
)
def test_a_killed_child_ran_out_of_memory_if_the_kernel_counts_one(tmp_path, monkeypatch, counters, status):
    file = tmp_path / "vmstat"
    monkeypatch.setattr(child_module, "_KERNEL_COUNTERS", file)
    file.write_text(f"nr_free_pages 1\n{counters[0]}\n")
    with session_of_double() as session:
        child, _ = session.start(cpu.get_recipe("eager-fp32"))
        file.write_text(f"nr_free_pages 1\n{counters[1]}\n")
        os.kill(child.process_id, signal.SIGKILL)
        with pytest.raises(ChildLost, match=status):
            session.ask(child, "prepare", verify=False)
