"""Rounds end when their time is up, and not before there are enough for an interval."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cpuinfer_helpers.processes import rounds
from cpuinfer_helpers.processes.rounds import MIN_ROUNDS, Rounds, run_rounds

TURN_S = 1.0
BEGIN = 100.0


class Clock:
    """Goes on only when somebody works."""

    def __init__(self) -> None:
        self.now = BEGIN

    def monotonic(self) -> float:
        return self.now


class Waiting:
    """Stands for a child process that is measured."""

    def __init__(self, recipe: str) -> None:
        self.recipe = recipe

    def wait_until_idle(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(rounds, "time", Clock())
    return rounds.time


def measure(clock: Clock, **options: float) -> Rounds:
    children: list[Any] = [Waiting("eager-fp32"), Waiting("torchscript-fp32")]

    def run(child: Any, calls: int) -> list[float]:
        clock.now += TURN_S
        return [clock.now] * calls  # never twice the same, so no interval is ever tight

    times = {child.recipe: TURN_S for child in children}
    settings = {"budget_s": 1000.0, "relative_width": 0.0, **options}
    return run_rounds(children, times, run, on_round=lambda number: None, **settings)


@pytest.mark.parametrize(("seconds", "expected"), [(20.0, 10), (21.9, 10), (22.0, 11)])
def test_none_is_begun_that_would_end_after_the_deadline(clock: Clock, seconds: float, expected: int) -> None:
    done = measure(clock, deadline=BEGIN + seconds)
    assert clock.now <= BEGIN + seconds
    assert [len(samples) for samples in done.samples.values()] == [expected, expected]
    assert done.stopped_by == "budget" and not done.lost


@pytest.mark.parametrize("options", [{"deadline": -math.inf}, {"budget_s": 1e-9}])
def test_six_are_made_in_any_case(clock: Clock, options: dict[str, float]) -> None:
    done = measure(clock, **options)
    assert [len(samples) for samples in done.samples.values()] == [MIN_ROUNDS, MIN_ROUNDS]
    assert done.stopped_by == "budget"
