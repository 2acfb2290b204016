"""Honest measurement: warm up until steady, repeat until the interval is tight, compare only with the interval."""

from __future__ import annotations

import gc
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from cpuinfer_helpers import switches
from cpuinfer_helpers.display import Displayed, Table, bar_chart, format_seconds
from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.machine import MachineReport, machine_report
from cpuinfer_helpers.signature import bind_inputs

logger = logging.getLogger("cpuinfer_helpers")

CONFIDENCE = 0.95
# Six samples are the fewest whose extremes hold the median with 95% confidence: 1 - 2 * 0.5**6 = 97%.
_MIN_CALLS = 6
_STEADY_WINDOW = 3
# A window of calls is steady when it is not more than this much faster than the window before it.
_STEADY_GAIN = 0.03


@dataclass(frozen=True, repr=False)
class Speedup(Displayed):
    """How many times faster one thing is than another, with an interval; true only if the interval says so.

    Attributes
    ----------
    ratio
        Time of the other divided by time of this one: 2.0 means twice as fast.
    low, high
        Ends of the 95% interval of ``ratio``.
    paired
        Whether both were measured in interleaved rounds. If not, the machine may have changed between the two
        measurements, and the interval cannot know.
    """

    ratio: float
    low: float
    high: float
    paired: bool

    def __bool__(self) -> bool:
        return self.low > 1.0

    @property
    def verdict(self) -> str:
        """``faster``, ``slower``, or ``no difference seen``."""
        if self.low > 1.0:
            return "faster"
        return "slower" if self.high < 1.0 else "no difference seen"

    def __str__(self) -> str:
        return f"{self.ratio:.2f}x [{self.low:.2f}, {self.high:.2f}]: {self.verdict} ({self._how})"

    @property
    def _how(self) -> str:
        return "interleaved" if self.paired else "measured one after the other"

    def table(self) -> Table:
        """The ratio with its interval in one row."""
        row = (f"{self.ratio:.2f}x", f"[{self.low:.2f}, {self.high:.2f}]", self.verdict, self._how)
        return Table(columns=("speed-up", "95% interval", "verdict", "measured"), rows=(row,))


@dataclass(frozen=True, repr=False)
class Timing(Displayed):
    """Measured times of one function; see :func:`measure`.

    Attributes
    ----------
    label
        Name of what was measured.
    samples
        Seconds of each counted call, in the order in which they ran.
    first_call
        Seconds of the very first call, which compiles, allocates and specialises; not among the samples.
    warmup_calls
        Calls before the counted ones, the first included.
    steady
        Whether the times had stopped falling before counting began.
    stopped_by
        ``interval`` when the interval became tight enough, ``budget`` when the time was up, ``calls`` at the largest
        number.
    round_id
        Timings with the same id were measured in the same interleaved rounds.
    """

    label: str
    samples: tuple[float, ...]
    first_call: float
    warmup_calls: int
    steady: bool
    stopped_by: str
    threads: int
    round_id: str = ""

    @property
    def median(self) -> float:
        """Median of the samples, in seconds."""
        return statistics.median(self.samples)

    @property
    def low(self) -> float:
        """Lower end of the median's 95% interval, in seconds."""
        return median_interval(self.samples)[0]

    @property
    def high(self) -> float:
        """Upper end of the median's 95% interval, in seconds."""
        return median_interval(self.samples)[1]

    @property
    def calls(self) -> int:
        """Number of counted calls."""
        return len(self.samples)

    def is_faster_than(self, other: Timing) -> Speedup:
        """Compare with another timing.

        Parameters
        ----------
        other
            The timing to compare with.

        Returns
        -------
        Speedup
            True in a condition only if this one is faster and the 95% interval of the ratio says so. For timings from
            the same interleaved rounds it is the interval of the median of the rounds' ratios; otherwise the ends of
            the
            two medians' intervals against each other, which is wider.
        """
        if self.round_id and self.round_id == other.round_id:
            ratios = [theirs / ours for theirs, ours in zip(other.samples, self.samples, strict=True)]
            low, high = median_interval(ratios)
            return Speedup(statistics.median(ratios), low, high, paired=True)
        return Speedup(other.median / self.median, other.low / self.high, other.high / self.low, paired=False)

    def __str__(self) -> str:
        name = f"{self.label}: " if self.label else ""
        unsteady = "" if self.steady else ", still changing after warm-up"
        return (
            f"{name}{format_seconds(self.median)} [{format_seconds(self.low)}, {format_seconds(self.high)}], "
            f"{self.calls} calls, first call {format_seconds(self.first_call)}{unsteady}"
        )

    def table(self) -> Table:
        """The timing in one row."""
        columns = ("measured", "median", "95% interval", "calls", "first call", "steady", "threads")
        row = (
            self.label,
            format_seconds(self.median),
            interval_text(self.low, self.high),
            str(self.calls),
            format_seconds(self.first_call),
            "yes" if self.steady else "no",
            str(self.threads),
        )
        return Table(columns=columns, rows=(row,))


@dataclass(frozen=True, repr=False)
class Timings(Displayed, Mapping[str, Timing]):
    """Timings by name from the same interleaved rounds; the first one is the reference of every speed-up.

    Attributes
    ----------
    timings
        The timings by name.
    roofline, flops, precisions
        What the percentage of the roofline is computed from; without a roofline and flops the column is left out.
    """

    timings: Mapping[str, Timing]
    roofline: Roofline | None = None
    flops: int | None = None
    precisions: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Timing:
        return self.timings[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.timings)

    def __len__(self) -> int:
        return len(self.timings)

    def speedup(self, name: str) -> Speedup:
        """How many times faster ``name`` is than the reference."""
        return self[name].is_faster_than(next(iter(self.timings.values())))

    def table(self) -> Table:
        """A row each: median, interval, speed-up where there is a reference, percentage of the roofline."""
        rows = [self._row(name) for name in self]
        numeric = ("median", "speed-up", "of roofline", "calls")
        return Table(tuple(rows[0]), tuple(tuple(row.values()) for row in rows), numeric=numeric)

    def plot(self) -> Any:
        """Bars of the medians, in milliseconds, with their intervals."""
        milliseconds = [(t.median * 1e3, t.low * 1e3, t.high * 1e3) for t in self.values()]
        values, lows, highs = zip(*milliseconds, strict=True)
        return bar_chart(list(self), values, lows, highs, unit="milliseconds (median, 95% interval)")

    def _row(self, name: str) -> dict[str, str]:
        timing = self[name]
        row = {
            "measured": name,
            "median": format_seconds(timing.median),
            "95% interval": interval_text(timing.low, timing.high),
        }
        if len(self) > 1:
            speedup = self.speedup(name)
            row |= {"speed-up": f"{speedup.ratio:.2f}x", "its interval": f"[{speedup.low:.2f}, {speedup.high:.2f}]"}
        if self.roofline is not None and self.flops is not None:
            percent = self.roofline.percent(timing, self.flops, self.precisions.get(name, "fp32"))
            row["of roofline"] = f"{percent:.0f}%"
        return row | {"calls": str(timing.calls), "first call": format_seconds(timing.first_call)}


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


def median_interval(samples: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The order statistics that enclose the median with at least the given confidence.

    Distribution-free: the number of samples below the median is binomial with p = 1/2 (Conover, *Practical
    Nonparametric Statistics*, section 3.2). With fewer than six samples no interval reaches 95%, and the extremes are
    returned.
    """
    ordered, count = sorted(samples), len(samples)
    if not count:
        raise InputError("median_interval: there are no samples; measure at least one call")
    tail, cumulative, rank = (1.0 - confidence) / 2.0, 0.0, 0
    for below in range(count // 2):
        cumulative += math.exp(_log_binomial_half(count, below))
        if cumulative > tail:
            break
        rank = below + 1
    rank = max(rank, 1)
    return ordered[rank - 1], ordered[count - rank]


def count_flops(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> int:
    """Floating-point operations of one call, matrix products only (a multiply and an add are two).

    Parameters
    ----------
    model
        An eager model, not a ScriptModule.
    inputs
        Tensors by name.

    Returns
    -------
    int
        As PyTorch's own ``torch.utils.flop_counter`` counts them; attention included.

    Raises
    ------
    InputError
        If an input cannot be used; the message names it.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # A prepared model checks its inputs itself.
    if isinstance(model, torch.nn.Module):
        bind_inputs(model, inputs)
    # The counter does not know the CPU's fused attention kernel; the MATH backend runs the products it knows.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**inputs)
    return int(counter.get_total_flops())


@dataclass(frozen=True, repr=False)
class Roofline(Displayed):
    """The measured rate of matrix products on this machine; see :func:`roofline`.

    Attributes
    ----------
    rates
        Operations per second by precision (``fp32``, ``bf16``, ``int8``): the best of the kernels tried.
    kernels
        Which kernel reached that rate, by precision.
    native
        By precision, whether the CPU has instructions of its own for it.
    tried
        Every kernel that was tried, as (precision, kernel, operations per second); 0 where it cannot run here.
    threads
        Threads while measuring.
    """

    rates: Mapping[str, float]
    kernels: Mapping[str, str]
    native: Mapping[str, bool]
    tried: tuple[tuple[str, str, float], ...]
    threads: int

    def percent(self, timing: Timing, flops: int, precision: str = "fp32") -> float:
        """How much of the roofline a timing of ``flops`` operations reaches, in percent."""
        return 100.0 * self.shortest(flops, precision) / timing.median

    def shortest(self, flops: int, precision: str = "fp32") -> float:
        """The shortest time that ``flops`` operations could take at this rate, in seconds."""
        if precision not in self.rates:
            raise InputError(
                f"roofline: no rate was measured for {precision!r}; measured: {', '.join(self.rates)}. "
                "Name it in roofline(precisions=...)"
            )
        return flops / self.rates[precision]

    def limits(self, flops: int) -> Table:
        """The shortest time of ``flops`` operations through each kernel that ran, and its ratio to the first one's."""
        ran = [(precision, kernel, rate) for precision, kernel, rate in self.tried if rate > 0]
        rows = tuple(
            (precision, kernel, f"{rate / 1e9:.0f}", format_seconds(flops / rate), f"{rate / ran[0][2]:.1f}x")
            for precision, kernel, rate in ran
        )
        columns = ("precision", "kernel", "GFLOP/s", "shortest time", "at most")
        note = f"{flops / 1e9:.1f} GFLOP, {self.threads} threads; matrix products only"
        return Table(columns, rows, note=note, numeric=("GFLOP/s", "shortest time", "at most"))

    def table(self) -> Table:
        """The rate of each precision, with the kernel that reached it."""
        rows = tuple(
            (
                precision,
                f"{rate / 1e9:.0f}",
                self.kernels[precision],
                "native" if self.native[precision] else "emulated",
                ", ".join(_tried_text(kernel, r) for p, kernel, r in self.tried if p == precision),
            )
            for precision, rate in self.rates.items()
        )
        columns = ("precision", "GFLOP/s", "best kernel", "instructions", "kernels tried")
        return Table(columns=columns, rows=rows, numeric=("GFLOP/s",), note=f"{self.threads} threads")


# Rows, inner and outer size: one BERT-base feed-forward product at 384 tokens, and a large square one.
_GEMM_SHAPES = ((384, 768, 3072), (1536, 1536, 1536))


def roofline(
    precisions: Sequence[str] = ("fp32", "bf16", "int8"),
    *,
    budget_s: float = 1.0,
    report: MachineReport | None = None,
) -> Roofline:
    """Measure how fast this machine multiplies matrices, for each precision.

    Several kernels are tried, because the default one need not be the best: on AMD processors with AVX512 (Zen 5)
    PyTorch's FP32 default (MKL) runs AVX2 code, at about half of oneDNN's rate. With AVX2 only (Zen 3) it is no slower.

    Parameters
    ----------
    precisions
        Of ``fp32``, ``bf16`` and ``int8``. INT8 is left out where the CPU has no instructions for it.
    budget_s
        Seconds for each kernel and shape.
    report
        The machine, if it has been looked at already.

    Returns
    -------
    Roofline

    Raises
    ------
    InputError
        For a precision that is not known.
    """
    report = report or machine_report()
    native = {"fp32": True, "bf16": report.bf16_native, "int8": report.int8_native}
    unknown = [precision for precision in precisions if precision not in native]
    if unknown:
        raise InputError(f"roofline: unknown precision {unknown[0]!r}; choose from {', '.join(native)}")
    tried = [
        (precision, kernel, _best_rate(make, budget_s))
        for precision in precisions
        if precision != "int8" or report.int8_native
        for kernel, make in _GEMM_KERNELS[precision].items()
    ]
    best: dict[str, tuple[float, str]] = {}
    for precision, kernel, rate in tried:
        best[precision] = max(best.get(precision, (0.0, "")), (rate, kernel))
    return Roofline(
        rates={precision: rate for precision, (rate, _) in best.items() if rate > 0},
        kernels={precision: kernel for precision, (_, kernel) in best.items()},
        native={precision: native[precision] for precision in best},
        tried=tuple(tried),
        threads=torch.get_num_threads(),
    )


_Product = Callable[[], object]


def _default_linear(dtype: torch.dtype) -> Callable[[int, int, int], _Product]:
    def make(rows: int, inner: int, outer: int) -> _Product:
        left, weight = torch.randn(rows, inner).to(dtype), torch.randn(outer, inner).to(dtype)
        return lambda: torch.nn.functional.linear(left, weight)

    return make


def _packed_onednn_linear(dtype: torch.dtype) -> Callable[[int, int, int], _Product]:
    def make(rows: int, inner: int, outer: int) -> _Product:
        left = torch.randn(rows, inner).to(dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(torch.randn(outer, inner).to(dtype), rows)
        return lambda: torch.ops.mkldnn._linear_pointwise(left, packed, None, "none", [], "")

    return make


def _int8_product(rows: int, inner: int, outer: int) -> _Product:
    left = torch.randint(-127, 127, (rows, inner), dtype=torch.int8)
    right = torch.randint(-127, 127, (inner, outer), dtype=torch.int8)
    return lambda: torch._int_mm(left, right)


def _int8_packed_onednn_linear(rows: int, inner: int, outer: int) -> _Product:
    left = torch.randint(0, 255, (rows, inner), dtype=torch.uint8)
    weight = torch.randint(-127, 127, (outer, inner), dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, [rows, inner])
    scales, zeros = torch.full((outer,), 0.01), torch.zeros(outer, dtype=torch.int32)
    quantised = (left, 0.01, 128, packed, scales, zeros, None, 1.0, 0)
    return lambda: torch.ops.onednn.qlinear_pointwise(*quantised, torch.bfloat16, "none", [], "")


_GEMM_KERNELS: dict[str, dict[str, Callable[[int, int, int], _Product]]] = {
    "fp32": {
        "default linear": _default_linear(torch.float32),
        "packed oneDNN linear": _packed_onednn_linear(torch.float32),
    },
    "bf16": {
        "default linear": _default_linear(torch.bfloat16),
        "packed oneDNN linear": _packed_onednn_linear(torch.bfloat16),
    },
    "int8": {"int8 product": _int8_product, "packed oneDNN linear": _int8_packed_onednn_linear},
}


def _best_rate(make: Callable[[int, int, int], _Product], budget_s: float) -> float:
    """Highest median rate over the shapes, in operations per second; 0 where this build has no such kernel."""
    rates = [0.0]
    for rows, inner, outer in _GEMM_SHAPES:
        try:
            with torch.no_grad(), switches.random_state_kept():
                product = make(rows, inner, outer)
                timing = measure(product, budget_s=budget_s, relative_width=0.05)
        except (RuntimeError, AttributeError) as error:
            logger.info("roofline: a kernel cannot run here: %r", error)
            continue
        rates.append(2.0 * rows * inner * outer / timing.median)
    return max(rates)


def _tried_text(kernel: str, rate: float) -> str:
    return f"{kernel} {rate / 1e9:.0f}" if rate else f"{kernel}: cannot run here"


def interval_text(low: float, high: float) -> str:
    """An interval of seconds as text."""
    return f"[{format_seconds(low)}, {format_seconds(high)}]"


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


def _log_binomial_half(count: int, successes: int) -> float:
    """Logarithm of the binomial probability with p = 1/2."""
    choose = math.lgamma(count + 1) - math.lgamma(successes + 1) - math.lgamma(count - successes + 1)
    return choose - count * math.log(2.0)


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
