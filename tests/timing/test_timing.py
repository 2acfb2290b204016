"""Measuring under a clock of our own, so that nothing here depends on the machine's speed."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import chain, repeat
from types import SimpleNamespace

import numpy
import pytest
import torch

from cpuinfer_helpers import InputError, count_flops, machine_report, measure, measure_interleaved, roofline
from cpuinfer_helpers.timing import measuring, results
from cpuinfer_helpers.timing import roofline as roofline_module
from cpuinfer_helpers.timing.results import Roofline, Speedup, Timing, Timings


class FakeClock:
    """A clock that only moves when a function made by :meth:`function` is called."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def function(self, seconds: Iterable[float], name: str = "") -> Callable[[], None]:
        durations: Iterator[float] = iter(seconds)

        def call() -> None:
            self.log.append(name)
            self.now += next(durations)

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    monkeypatch.setattr(measuring, "time", SimpleNamespace(perf_counter=fake.perf_counter))
    return fake


def make_timing(samples: Iterable[float], **values: object) -> Timing:
    settings = {"label": "", "first_call": 1.0, "warmup_calls": 6, "steady": True, "stopped_by": "calls", "threads": 2}
    return Timing(samples=tuple(samples), **{**settings, **values})  # type: ignore[arg-type]


# The interval of the median


def _exact_rank(count: int, confidence: Fraction) -> int:
    """Largest r with P(fewer than r of the samples lie below the median) <= (1 - confidence) / 2, in exact numbers."""
    rank, cumulative = 0, Fraction(0)
    for below in range(count):
        cumulative += Fraction(math.comb(count, below), 2**count)
        if cumulative > (1 - confidence) / 2:
            break
        rank = below + 1
    return rank


@pytest.mark.parametrize("count", [*range(6, 41), 99, 100, 500, 2000])
def test_interval_holds_the_order_statistics_that_exact_binomial_sums_give(count: int) -> None:
    samples = numpy.random.default_rng(count).permutation(count) + 1
    rank = _exact_rank(count, Fraction(95, 100))
    assert results.median_interval([float(s) for s in samples]) == (rank, count + 1 - rank)


def test_interval_against_a_published_table() -> None:
    """Ranks of 95% intervals of the median: (1, 6), (2, 9), (6, 15), (10, 21), (40, 61) for these sizes."""
    for count, ranks in {6: (1, 6), 10: (2, 9), 20: (6, 15), 30: (10, 21), 100: (40, 61)}.items():
        assert results.median_interval([float(i) for i in range(1, count + 1)]) == ranks


@pytest.mark.parametrize("count", [1, 2, 5])
def test_interval_of_too_few_samples_is_their_extremes(count: int) -> None:
    assert results.median_interval([float(i) for i in range(count)]) == (0.0, count - 1.0)


def test_interval_of_no_samples_is_an_error() -> None:
    with pytest.raises(InputError, match="no samples"):
        results.median_interval([])


@pytest.mark.parametrize("count", [7, 15, 40])
def test_interval_covers_the_true_median_as_often_as_it_says(count: int) -> None:
    draws = numpy.random.default_rng(7).exponential(size=(3000, count))
    intervals = [results.median_interval(list(row)) for row in draws]
    covered = sum(low <= math.log(2) <= high for low, high in intervals) / len(intervals)
    rank = _exact_rank(count, Fraction(95, 100))
    exact = 1 - 2 * sum(math.comb(count, k) for k in range(rank)) / 2**count
    # Four standard errors of a share of 3000: 0.004 each.
    assert covered == pytest.approx(exact, abs=0.016)
    assert exact >= 0.95


# Comparing


@pytest.mark.parametrize(
    ("low", "high", "truth", "verdict"),
    [
        (1.01, 2.0, True, "faster"),
        (1.0, 2.0, False, "no difference seen"),
        (0.9, 1.2, False, "no difference seen"),
        (0.5, 0.99, False, "slower"),
    ],
)
def test_speedup_is_true_only_if_its_interval_says_so(low: float, high: float, truth: bool, verdict: str) -> None:
    speedup = Speedup(ratio=1.1, low=low, high=high, paired=True)
    assert bool(speedup) is truth
    assert speedup.verdict == verdict
    assert verdict in str(speedup)
    assert speedup.table().rows[0][2] == verdict


def test_timings_of_the_same_rounds_are_compared_round_by_round() -> None:
    """Drift that meets both alike hides a steady 10% in the medians' intervals, not in the rounds' ratios."""
    drift = [1.0 + 0.1 * i for i in range(20)]
    slow, fast = make_timing(drift, round_id="a"), make_timing((d / 1.1 for d in drift), round_id="a")
    paired = fast.is_faster_than(slow)
    assert paired
    assert paired.paired
    assert (paired.low, paired.ratio, paired.high) == pytest.approx((1.1, 1.1, 1.1))
    apart = fast.is_faster_than(replace(slow, round_id="b"))
    assert not apart.paired
    assert not apart
    assert apart.verdict == "no difference seen"


def test_timings_of_different_rounds_are_compared_by_the_ends_of_their_intervals() -> None:
    slow, fast = make_timing([2.0, 2.1, 2.2, 2.3, 2.4, 2.5]), make_timing([1.0, 1.1, 1.2, 1.3, 1.4, 1.5])
    speedup = fast.is_faster_than(slow)
    assert (speedup.low, speedup.high) == pytest.approx((2.0 / 1.5, 2.5 / 1.0))
    assert speedup.ratio == pytest.approx(2.25 / 1.25)
    assert speedup
    assert not speedup.paired
    assert not slow.is_faster_than(fast)
    assert slow.is_faster_than(fast).verdict == "slower"


def test_a_timing_is_not_faster_than_itself() -> None:
    same = make_timing([1.0, 1.2, 0.9, 1.1, 1.3, 0.8], round_id="a")
    assert same.is_faster_than(same).verdict == "no difference seen"


# Measuring


def test_first_call_is_kept_apart(clock: FakeClock) -> None:
    seen = measure(clock.function(chain([30.0], repeat(0.5))), label="call", budget_s=1000)
    assert seen.first_call == pytest.approx(30.0)
    assert seen.samples == pytest.approx([0.5] * seen.calls)
    assert (seen.median, seen.low, seen.high) == pytest.approx((0.5, 0.5, 0.5))
    assert (seen.steady, seen.stopped_by, seen.calls, seen.warmup_calls) == (True, "interval", 6, 6)
    assert seen.threads == torch.get_num_threads()
    assert str(seen) == "call: 500 ms [500 ms, 500 ms], 6 calls, first call 30.0 s"


def test_warm_up_goes_on_until_the_function_is_steady(clock: FakeClock) -> None:
    falling = [2.0 - 0.15 * i for i in range(10)]
    seen = measure(clock.function(chain(falling, repeat(0.5))), budget_s=1000)
    assert seen.steady
    assert seen.warmup_calls > 10
    assert seen.samples == pytest.approx([0.5] * seen.calls)


def test_a_function_that_never_settles_is_reported_as_unsteady(clock: FakeClock) -> None:
    seen = measure(clock.function(100 * 0.9**i for i in range(10000)), budget_s=1500)
    assert not seen.steady
    assert "still changing after warm-up" in str(seen)
    assert dict(zip(seen.table().columns, seen.table().rows[0], strict=True))["steady"] == "no"


def test_budget_is_kept(clock: FakeClock) -> None:
    seen = measure(clock.function(chain.from_iterable(repeat((1.0, 3.0)))), budget_s=60)
    assert seen.stopped_by == "budget"
    assert seen.steady
    # One call may still be running when the time is up.
    assert 60 <= clock.now <= 63
    assert seen.calls > 20


def test_at_least_six_calls_are_counted_however_short_the_budget(clock: FakeClock) -> None:
    seen = measure(clock.function(chain.from_iterable(repeat((1.0, 3.0)))), budget_s=0.001)
    assert (seen.calls, seen.stopped_by) == (6, "budget")


def test_largest_number_of_calls_ends_it(clock: FakeClock) -> None:
    seen = measure(clock.function(chain.from_iterable(repeat((1.0, 3.0)))), budget_s=1e6, max_calls=25)
    assert (seen.calls, seen.stopped_by) == (25, "calls")


def test_noise_is_measured_longer_than_quiet(clock: FakeClock) -> None:
    generator = numpy.random.default_rng(3)
    noisy = measure(clock.function(iter(lambda: float(generator.normal(1, 0.05)), None)), budget_s=1e6)
    assert noisy.stopped_by == "interval"
    assert noisy.calls > 20
    assert noisy.high - noisy.low <= 0.02 * noisy.median


def test_rounds_are_interleaved_and_their_order_rotates(clock: FakeClock) -> None:
    functions = {name: clock.function(repeat(seconds), name) for name, seconds in {"a": 1, "b": 2, "c": 4}.items()}
    timings = measure_interleaved(functions, budget_s=1000)
    counted = "".join(clock.log)[-6 * 3 :]
    assert counted == "abcbcacab" * 2
    assert [t.median for t in timings.values()] == [1, 2, 4]
    assert len({t.round_id for t in timings.values()}) == 1
    assert all(t.round_id for t in timings.values())
    assert timings.speedup("c").paired
    assert timings.speedup("c").ratio == pytest.approx(0.25)
    assert list(timings) == ["a", "b", "c"]


def test_first_function_is_the_reference(clock: FakeClock) -> None:
    functions = {"slow": clock.function(repeat(3.0)), "fast": clock.function(repeat(1.5))}
    timings = measure_interleaved(functions, budget_s=100)
    assert timings.speedup("fast")
    assert timings.speedup("slow").verdict == "no difference seen"
    rows = {row[0]: row for row in timings.table().rows}
    assert rows["fast"][1:5] == ("1.50 s", "[1.50 s, 1.50 s]", "2.00x", "[2.00, 2.00]")


def test_garbage_collection_is_off_while_counting_and_on_afterwards(clock: FakeClock) -> None:
    seen: list[bool] = []
    step = clock.function(repeat(1.0))
    measure(lambda: (seen.append(gc.isenabled()), step()), budget_s=100)
    assert seen[-6:] == [False] * 6
    assert gc.isenabled()


def test_garbage_collection_is_restored_when_the_function_raises(clock: FakeClock) -> None:
    step, calls = clock.function(repeat(1.0)), iter(range(100))

    def fails_while_counting() -> None:
        step()
        if next(calls) == 8:
            raise KeyError("inside")

    with pytest.raises(KeyError):
        measure(fails_while_counting, budget_s=100)
    assert gc.isenabled()


def test_garbage_collection_that_was_off_stays_off(clock: FakeClock) -> None:
    gc.disable()
    try:
        measure(clock.function(repeat(1.0)), budget_s=100)
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget_s": 0}, "budget_s is 0"),
        ({"budget_s": float("nan")}, "budget_s is nan"),
        ({"relative_width": -0.1}, "relative_width is -0.1"),
        ({"max_calls": 0}, "max_calls is 0"),
        ({"max_calls": 5}, "max_calls is 5.*at least 6"),
        ({"max_calls": 7.5}, "max_calls is 7.5"),
    ],
)
def test_numbers_that_cannot_be_used_are_named(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure(lambda: None, **arguments)


def test_what_is_no_function_is_named() -> None:
    with pytest.raises(InputError, match="float, not a function"):
        measure(1.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'b' is a Tensor"):
        measure_interleaved({"a": lambda: None, "b": torch.ones(1)})  # type: ignore[dict-item]
    with pytest.raises(InputError, match="nothing to measure"):
        measure_interleaved({})


def test_what_the_function_raises_comes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        measure(lambda: 1 / 0)


# Floating-point operations and the roofline


def _flops_of_bert(batch: int, length: int) -> int:
    """Two layers, 32 wide, 64 inside, 2 heads, one output layer for start and end; a multiply and an add are two."""
    tokens, width, inner = batch * length, 32, 64
    projections = 4 * 2 * tokens * width * width
    feed_forward = 2 * 2 * tokens * width * inner
    attention = 2 * 2 * batch * length * length * width
    return 2 * (projections + feed_forward + attention) + 2 * tokens * width * 2


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padding", [0, 4])
def test_flops_are_those_worked_out_by_hand(new_bert, new_inputs, attention: str, padding: int) -> None:
    model = new_bert(attention=attention)
    assert count_flops(model, new_inputs(3, 10, padding=padding)) == _flops_of_bert(3, 10)


ROOFLINE = Roofline(
    rates={"fp32": 200e9, "bf16": 900e9},
    kernels={"fp32": "b", "bf16": "default linear"},
    native={"fp32": True, "bf16": False},
    tried=(("fp32", "a", 100e9), ("fp32", "b", 200e9), ("bf16", "default linear", 900e9), ("bf16", "c", 0.0)),
    threads=2,
)


def test_percent_of_the_roofline() -> None:
    half_a_second = make_timing([0.5] * 6)
    assert ROOFLINE.percent(half_a_second, flops=50 * 10**9) == pytest.approx(50.0)
    assert ROOFLINE.percent(half_a_second, flops=45 * 10**9, precision="bf16") == pytest.approx(10.0)
    assert ROOFLINE.shortest(flops=50 * 10**9) == pytest.approx(0.25)
    with pytest.raises(InputError, match=r"'int8'.*fp32, bf16"):
        ROOFLINE.percent(half_a_second, flops=1, precision="int8")


def test_table_of_the_roofline_shows_what_was_tried() -> None:
    assert ROOFLINE.table().rows == (
        ("fp32", "200", "b", "native", "a 100, b 200"),
        ("bf16", "900", "default linear", "emulated", "default linear 900, c: cannot run here"),
    )


def test_shortest_time_is_operations_by_rate() -> None:
    assert ROOFLINE.shortest(50 * 10**9) == pytest.approx(50e9 / ROOFLINE.rates["fp32"])
    assert ROOFLINE.shortest(9 * 10**9, "bf16") == pytest.approx(9e9 / ROOFLINE.rates["bf16"])
    with pytest.raises(InputError, match="int8"):
        ROOFLINE.shortest(1, "int8")


def test_limits_name_each_kernel_that_ran() -> None:
    tried = (("fp32", "default linear", 50e9), ("fp32", "packed", 100e9), ("bf16", "missing", 0.0), ("bf16", "x", 2e11))
    table = replace(ROOFLINE, tried=tried).limits(10 * 10**9)
    assert table.rows == (
        ("fp32", "default linear", "50", "200 ms", "1.0x"),
        ("fp32", "packed", "100", "100 ms", "2.0x"),
        ("bf16", "x", "200", "50 ms", "4.0x"),
    )
    assert "10.0 GFLOP" in table.note


def test_table_of_timings_shows_the_percentage(clock: FakeClock) -> None:
    functions = {"eager": clock.function(repeat(1.0)), "bf16": clock.function(repeat(0.5))}
    timings = measure_interleaved(
        functions, budget_s=100, roofline=ROOFLINE, flops=90 * 10**9, precisions={"bf16": "bf16"}
    )
    column = timings.table().columns.index("of roofline")
    assert [row[column] for row in timings.table().rows] == ["45%", "20%"]


@pytest.mark.parametrize("given", [{"roofline": ROOFLINE}, {"flops": 1}])
def test_table_of_timings_without_all_that_the_percentage_needs(given: dict[str, object]) -> None:
    timings = Timings({"eager": make_timing([1.0] * 6)}, **given)  # type: ignore[arg-type]
    assert "of roofline" not in timings.table().columns
    assert len(timings.table().rows[0]) == len(timings.table().columns)
    assert "eager" in str(timings)


def test_precision_without_a_rate_is_refused_before_anything_is_measured() -> None:
    calls: list[int] = []
    with pytest.raises(InputError, match="int8"):
        measure_interleaved({"a": lambda: calls.append(1)}, roofline=ROOFLINE, flops=1, precisions={"a": "int8"})
    with pytest.raises(InputError, match=r"'eagr'.*one of eager"):
        measure_interleaved({"eager": lambda: calls.append(1)}, precisions={"eagr": "bf16"})
    assert not calls


def test_plot_of_timings_has_a_bar_for_each() -> None:
    pytest.importorskip("matplotlib", reason="charts need matplotlib")
    timings = Timings({"a": make_timing([0.1] * 6), "b": make_timing([0.2] * 6)})
    (axes,) = timings.plot().axes
    assert [patch.get_width() for patch in axes.patches] == pytest.approx([100.0, 200.0])


@pytest.fixture
def small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline_module, "_GEMM_SHAPES", ((8, 64, 64),))


@pytest.mark.cpu
@pytest.mark.usefixtures("small_products")
def test_roofline_of_this_machine() -> None:
    report = machine_report()
    seen = roofline(budget_s=0.01, report=report)
    assert {"fp32", "bf16"} <= set(seen.rates)
    assert ("int8" in {precision for precision, _, _ in seen.tried}) is report.int8_native
    for precision, rate in seen.rates.items():
        tried = {kernel: r for p, kernel, r in seen.tried if p == precision}
        assert rate == max(tried.values()) == tried[seen.kernels[precision]] > 0
    assert seen.native["fp32"]
    assert seen.native["bf16"] is report.bf16_native
    assert seen.threads == torch.get_num_threads()


@pytest.mark.usefixtures("small_products")
def test_roofline_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    roofline(("fp32",), budget_s=0.001)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("small_products")
@pytest.mark.parametrize("error", [NotImplementedError(), RuntimeError("no such kernel\nmore"), AttributeError("x")])
def test_kernel_that_this_build_lacks_is_reported_and_does_not_stop(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def absent(rows: int, inner: int, outer: int) -> Callable[[], object]:
        raise error

    monkeypatch.setitem(roofline_module._GEMM_KERNELS["fp32"], "absent kernel", absent)
    seen = roofline(("fp32",), budget_s=0.001)
    assert ("fp32", "absent kernel", 0.0) in seen.tried
    assert seen.rates["fp32"] > 0
    assert "absent kernel: cannot run here" in str(seen)


def test_roofline_names_an_unknown_precision() -> None:
    with pytest.raises(InputError, match=r"'fp8'.*fp32, bf16, int8"):
        roofline(("fp8",))


@pytest.mark.usefixtures("small_products")
def test_int8_is_left_out_where_it_is_not_native() -> None:
    report = replace(machine_report(), isa=("AVX2",))
    seen = roofline(("fp32", "int8"), budget_s=0.001, report=report)
    assert list(seen.rates) == ["fp32"]
