"""One question to a process of its own: its answer, and each way in which there is none."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.interface.adapter import named_inputs
from cpuinfer_helpers.processes.asking import Answer, ask_alone
from cpuinfer_helpers.processes.questions import find_function
from cpuinfer_helpers.processes.session import Session
from cpuinfer_helpers.recipes import Build

QUESTION = "cpuinfer_helpers.compare.mixed:measure_mixed_lengths"
# Asked for with so many rows, a model that has been prepared with one can do as its recipe wants.
ROWS = 3


class Double(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class Impatient(Session):
    """Waits half a second for an answer, however long it takes to start and prepare."""

    def ask(self, child: Any, do: str, **options: Any) -> Any:
        self.timeout_s = 0.5 if do == "answer_question" else 90.0
        return super().ask(child, do, **options)


def raise_error(error: Exception) -> None:
    raise error


def build(request: Any, when_asked: Callable[[], object]) -> Build:
    adapter = named_inputs(request.model, request.inputs)

    def answer(tensors: dict[str, torch.Tensor]) -> Any:
        if len(tensors["x"]) == ROWS:
            when_asked()
        return adapter.run_model(tensors)

    return Build(answer, runs="the model, until it is asked")


def refuse(request: Any, error: Exception) -> Build:
    raise error


def recipe(name: str, when_asked: Callable[[], object]) -> cpu.Recipe:
    return cpu.Recipe(f"{name}-fp32", "for a test", functools.partial(build, when_asked=when_asked))


def session_of(kind: type[Session]) -> Session:
    rows = [{"x": torch.ones(ROWS, 2)}]
    content = {"model": Double().eval(), "inputs": {"x": torch.ones(1, 2)}, "mixed": rows, "padded": rows}
    return kind(content, threads=1, timeout_s=90.0, memory_bytes=None)


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with session_of(Session) as opened:
        yield opened


def ask(session: Session, recipe: cpu.Recipe, question: str = QUESTION) -> Answer:
    """The answer; nobody who was asked is there afterwards."""
    before = set(psutil.Process().children(recursive=True))
    answer = ask_alone(session, recipe, question, verify=False, budget_s=0.01)
    assert not set(psutil.Process().children(recursive=True)) - before
    return answer


def test_the_answer_is_what_the_function_returns(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "cpuinfer_helpers"):
        answer = ask(session, recipe("asked", bool))
    assert answer.status.successful and answer.runs == "the model, until it is asked"
    assert answer.value["seconds"] > 0 and answer.value["gain_low"] <= answer.value["gain"]
    assert not caplog.records


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("not three rows"), "crashed: ValueError: not three rows"),
        (MemoryError("no more"), "out of memory: MemoryError: no more"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory: RuntimeError: DefaultCPUAlloc"),
    ],
)
def test_a_function_that_raises(
    session: Session, error: Exception, status: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "cpuinfer_helpers"):
        answer = ask(session, recipe("raising", functools.partial(raise_error, error)))
    assert str(answer.status).startswith(status) and answer.value is None
    assert [record.getMessage() for record in caplog.records] == [f"raising-fp32: {answer.status}"]


def test_a_process_that_dies_costs_no_other_its_answer(session: Session) -> None:
    assert str(ask(session, recipe("dying", functools.partial(os._exit, 3))).status) == "crashed: exit code 3"
    assert ask(session, recipe("next", bool)).status.successful


def test_a_function_that_takes_too_long() -> None:
    with session_of(Impatient) as impatient:
        answer = ask(impatient, recipe("sleeping", functools.partial(time.sleep, 300)))
    assert str(answer.status) == "timed out: measure mixed lengths took more than 0.5 s"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("not this model"), "fell back: odd fails: ValueError: not this model"),
        (MemoryError("no more"), "out of memory: odd fails: MemoryError: no more"),
    ],
)
def test_what_falls_back_is_not_asked(session: Session, error: Exception, status: str) -> None:
    answer = ask(session, cpu.Recipe("odd-fp32", "for a test", functools.partial(refuse, error=error)))
    assert str(answer.status).startswith(status)
    assert (answer.value, answer.runs) == (None, "the eager model")


def test_what_cannot_run_here_is_not_started(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "start", None)
    lacking = cpu.Recipe("lacking-fp32", "for a test", build, needs=("no-such-distribution>=1",))
    assert str(ask(session, lacking).status).startswith("lacks: no-such-distribution is not installed")


def test_a_function_of_another_package_is_not_called(session: Session) -> None:
    answer = ask(session, recipe("asked", bool), "builtins:print")
    assert answer.status.kind == "crashed" and answer.value is None
    assert "'builtins:print' cannot be asked; name a function of cpuinfer_helpers" in answer.status.reason


@pytest.mark.parametrize(
    "question",
    [
        "os:getpid",
        "os:system",
        "cpuinfer_helpers_of_others.module:function",
        "cpuinfer_helpers",
        "cpuinfer_helpers:compare",
        "cpuinfer_helpers.processes.child:wait",  # multiprocessing's
        "cpuinfer_helpers.processes.child:os.system",
        "cpuinfer_helpers.processes.child:Child",
        "cpuinfer_helpers.processes.child:no_such",
        "cpuinfer_helpers.processes.child",
        "",
    ],
)
def test_only_functions_that_this_package_defines_can_be_asked(question: str) -> None:
    with pytest.raises(cpu.InputError, match=r"cannot be asked") as refused:
        find_function(question)
    assert repr(question) in str(refused.value)
    assert find_function(QUESTION)
