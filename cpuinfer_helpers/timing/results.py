"""Honest measurement: warm up until steady, repeat until the interval is tight, compare only with the interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cpuinfer_helpers.display import Displayed, Table, bar_chart, format_seconds
from cpuinfer_helpers.errors import InputError

CONFIDENCE = 0.95


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
    bandwidth
        Bytes per second that are read from memory; None where it was not measured.
    """

    rates: Mapping[str, float]
    kernels: Mapping[str, str]
    native: Mapping[str, bool]
    tried: tuple[tuple[str, str, float], ...]
    threads: int
    bandwidth: float | None = None

    def shortest_read(self, size: float) -> float:
        """The shortest time in which so many bytes could be read from memory, in seconds."""
        if self.bandwidth is None:
            raise InputError("roofline: the memory was not measured; ask for it by roofline(memory=True)")
        return size / self.bandwidth

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
        memory = f"; memory is read at {self.bandwidth / 1e9:.1f} GB/s" if self.bandwidth else ""
        return Table(columns=columns, rows=rows, numeric=("GFLOP/s",), note=f"{self.threads} threads{memory}")


def _tried_text(kernel: str, rate: float) -> str:
    return f"{kernel} {rate / 1e9:.0f}" if rate else f"{kernel}: cannot run here"


def interval_text(low: float, high: float) -> str:
    """An interval of seconds as text."""
    return f"[{format_seconds(low)}, {format_seconds(high)}]"


def _log_binomial_half(count: int, successes: int) -> float:
    """Logarithm of the binomial probability with p = 1/2."""
    choose = math.lgamma(count + 1) - math.lgamma(successes + 1) - math.lgamma(count - successes + 1)
    return choose - count * math.log(2.0)
