"""Calls that are timed one by one or in turns, after a warm-up, until their interval is narrow."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.timing.results import Roofline, Timing, Timings, median_interval

# Six samples are the fewest whose extremes hold the median with 95% confidence: 1 - 2 * 0.5**6 = 97%.
_MIN_CALLS = 6
_STEADY_WINDOW = 3
# A window of calls is steady when it is not more than this much faster than the window before it.
_STEADY_GAIN = 0.03


def measure(
    function: Callable[[], object],
    *,
    label: str = "",
    budget_s: float = 20.0,
    relative_width: float = 0.02,
    max_calls: int = 2000,
) -> Timing:
    """Measure one function: first call apart, warmed up until steady, then until the interval is tight.

    Parameters
    ----------
    function
        Called without arguments; its result is dropped.
    label
        Name to show.
    budget_s
        Seconds for warm-up (at most a third) and counted calls together. At least six counted calls are always made.
    relative_width
        Stop when the 95% interval of the median is narrower than this share of the median.
    max_calls
        Largest number of counted calls, at least six.

    Returns
    -------
    Timing

    Raises
    ------
    InputError
        If ``function`` cannot be called or a number is not positive.

    Examples
    --------
    >>> timing = measure(lambda: sum(range(1000)), budget_s=0.1)
    >>> timing.low <= timing.median <= timing.high
    True
    """
    timings = measure_interleaved(
        {label: function}, budget_s=budget_s, relative_width=relative_width, max_calls=max_calls
    )
    return timings[label]


def measure_interleaved(
    functions: Mapping[str, Callable[[], object]],
    *,
    budget_s: float = 20.0,
    relative_width: float = 0.02,
    max_calls: int = 2000,
    roofline: Roofline | None = None,
    flops: int | None = None,
    precisions: Mapping[str, str] | None = None,
) -> Timings:
    """Measure several functions in interleaved rounds, so that drift of the machine meets all of them alike.

    Every round calls each function once; the order rotates from round to round, so that no function always runs
    behind the same neighbour.

    Parameters
    ----------
    functions
        Functions without arguments by name. The first is the reference of the speed-ups.
    budget_s
        Seconds *for each function*, warm-up included.
    relative_width
        Stop when every median's 95% interval is narrower than this share of it.
    max_calls
        Largest number of rounds, at least six.
    roofline, flops, precisions
        Measured rates (:func:`roofline`), floating-point operations of one call (:func:`count_flops`) and the
        precision of each function by name (``fp32`` where not named), for the table's percentage of the roofline.

    Returns
    -------
    Timings
    """
    _check_request(functions, budget_s, relative_width, max_calls)
    _check_percentages(functions, roofline, flops, precisions or {})
    started = time.perf_counter()
    warm = {name: _warm_up(function, budget_s / 3) for name, function in functions.items()}
    deadline = started + budget_s * len(functions)
    samples: dict[str, list[float]] = {name: [] for name in functions}
    stopped_by = "calls"
    with _garbage_collection_paused():
        for round_number in range(max_calls):
            for name in _rotated(list(functions), round_number):
                samples[name].append(seconds_of(functions[name]))
            if round_number + 1 < _MIN_CALLS:
                continue
            if _all_tight(samples.values(), relative_width, round_number + 1):
                stopped_by = "interval"
                break
            if time.perf_counter() >= deadline:
                stopped_by = "budget"
                break
    round_id = f"{started:.9f}"
    timings = {
        name: Timing(
            label=name,
            samples=tuple(samples[name]),
            first_call=warm[name].first_call,
            warmup_calls=warm[name].calls,
            steady=warm[name].steady,
            stopped_by=stopped_by,
            threads=torch.get_num_threads(),
            round_id=round_id,
        )
        for name in functions
    }
    return Timings(timings, roofline=roofline, flops=flops, precisions=dict(precisions or {}))


@dataclass(frozen=True)
class _WarmUp:
    first_call: float
    calls: int
    steady: bool


def _warm_up(function: Callable[[], object], budget_s: float) -> _WarmUp:
    """Call until a window of calls is no longer faster than the window before it, or the budget ends."""
    deadline = time.perf_counter() + budget_s
    seconds = [seconds_of(function)]
    while True:
        seconds.append(seconds_of(function))
        recent, earlier = seconds[-_STEADY_WINDOW:], seconds[-2 * _STEADY_WINDOW : -_STEADY_WINDOW]
        if len(earlier) == _STEADY_WINDOW and not _is_faster(recent, earlier):
            return _WarmUp(seconds[0], len(seconds), steady=True)
        if time.perf_counter() >= deadline and len(seconds) >= _STEADY_WINDOW:
            return _WarmUp(seconds[0], len(seconds), steady=False)


def _is_faster(recent: Sequence[float], earlier: Sequence[float]) -> bool:
    return statistics.median(recent) < (1.0 - _STEADY_GAIN) * statistics.median(earlier)


def seconds_of(function: Callable[[], object]) -> float:
    """Wall-clock seconds of a single call.

    Raises
    ------
    InputError
        If it cannot be called.
    """
    if not callable(function):
        raise InputError(f"seconds_of: the argument is a {type(function).__name__}, not a function; use a lambda")
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _all_tight(samples: Any, relative_width: float, rounds: int) -> bool:
    """Whether all intervals are tight; looked at in ever larger steps, because looking costs time too."""
    if rounds > 20 and rounds % max(1, rounds // 20):
        return False
    for times in samples:
        low, high = median_interval(times)
        if high - low > relative_width * statistics.median(times):
            return False
    return True


def _rotated(names: list[str], by: int) -> list[str]:
    shift = by % len(names)
    return names[shift:] + names[:shift]


@contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """Keep Python's cycle collector from running in the middle of a counted call."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _check_request(functions: Mapping[str, object], budget_s: float, relative_width: float, max_calls: int) -> None:
    if not isinstance(functions, Mapping):
        raise InputError(f"measure: {type(functions).__name__} is no mapping; give functions by name")
    if not functions:
        raise InputError("measure: there is nothing to measure; give at least one function")
    for name, function in functions.items():
        if not callable(function):
            raise InputError(
                f"measure: {name or 'the argument'!r} is a {type(function).__name__}, not a function; use a lambda"
            )
    for what, value in {
        "budget_s": budget_s,
        "relative_width": relative_width,
        "max_calls": max_calls,
    }.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise InputError(f"measure: {what} is {value!r}; give a positive number")
    # Fewer calls would carry a 95% interval that they do not have.
    if not isinstance(max_calls, int) or max_calls < _MIN_CALLS:
        raise InputError(f"measure: max_calls is {max_calls!r}; give a whole number of at least {_MIN_CALLS}")


def _check_percentages(
    functions: Mapping[str, object], roofline: Roofline | None, flops: int | None, precisions: Mapping[str, str]
) -> None:
    """Find out before the measurement, not when its table is shown."""
    for name in precisions:
        if name not in functions:
            raise InputError(f"measure: precisions names {name!r}, not measured; name one of {', '.join(functions)}")
    if roofline is not None and flops is not None:
        for name in functions:
            roofline.shortest(flops, precisions.get(name, "fp32"))
