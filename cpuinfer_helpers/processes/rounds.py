"""Interleaved rounds over child processes: each in its turn, in rotating order, while the others are idle."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cpuinfer_helpers.processes.child import Child, ChildLost
from cpuinfer_helpers.processes.status import Status
from cpuinfer_helpers.timing.results import median_interval

# As in timing: the fewest samples whose extremes hold the median with 95% confidence.
MIN_ROUNDS = 6
MAX_ROUNDS = 500
# Long enough that the one uncounted call and the wait between turns cost little, short enough to rotate often.
TURN_S = 0.3


@dataclass
class Rounds:
    """What the rounds gave.

    Attributes
    ----------
    samples
        For each child that stayed, by recipe, the median of each of its turns, in seconds.
    lost
        For each child that did not, its status.
    stopped_by
        ``interval``, ``budget`` or ``calls``.
    round_id
        The same for all that were measured together.
    """

    samples: dict[str, list[float]]
    lost: dict[str, Status] = field(default_factory=dict)
    stopped_by: str = "calls"
    round_id: str = ""


def run_rounds(
    children: Sequence[Child],
    call_seconds: dict[str, float],
    run: Callable[[Child, int], list[float]],
    *,
    budget_s: float,
    relative_width: float,
    on_round: Callable[[int], None],
    deadline: float = math.inf,
) -> Rounds:
    """Give every child its turns until all intervals are tight or the time is up.

    Parameters
    ----------
    children
        Prepared and warmed up.
    call_seconds
        About how long a call takes, by recipe; decides how many make a turn.
    run
        Has a child make one uncounted call and then so many counted ones; returns their seconds.
    budget_s
        Seconds for each child; six rounds are always made.
    relative_width
        Stop when every median's 95% interval is narrower than this share of it.
    on_round
        Told the number of rounds so far.
    deadline
        By ``time.monotonic()``. Once there are six rounds, none is begun that would end later.
    """
    turn_s = min(TURN_S, budget_s / 20)
    calls = {child.recipe: max(1, round(turn_s / call_seconds[child.recipe])) for child in children}
    started = time.monotonic()
    budget_end = started + budget_s * len(children)
    alive = list(children)
    result = Rounds({child.recipe: [] for child in children}, round_id=f"{started:.9f}")
    for number in range(1, MAX_ROUNDS + 1):
        begun = time.monotonic()
        for child in _rotated(alive, number):
            try:
                seconds = run(child, calls[child.recipe])
            except ChildLost as lost:
                alive.remove(child)
                del result.samples[child.recipe]
                result.lost[child.recipe] = lost.status
                continue
            result.samples[child.recipe].append(statistics.median(seconds))
            child.wait_until_idle()
        on_round(number)
        if number < MIN_ROUNDS:
            continue
        if all(_is_tight(samples, relative_width) for samples in result.samples.values()):
            result.stopped_by = "interval"
            break
        now = time.monotonic()
        if now >= budget_end or now + (now - begun) > deadline:
            result.stopped_by = "budget"
            break
    return result


def _rotated(children: Sequence[Child], by: int) -> list[Child]:
    shift = by % len(children) if children else 0
    return [*children[shift:], *children[:shift]]


def _is_tight(samples: Sequence[float], relative_width: float) -> bool:
    low, high = median_interval(samples)
    return high - low <= relative_width * statistics.median(samples)
