"""What one recipe did in its process: a row of a comparison."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from cpuinfer_helpers.display import Displayed, Table, format_bytes, format_seconds
from cpuinfer_helpers.processes.status import Status
from cpuinfer_helpers.receipts import Receipt
from cpuinfer_helpers.timing.results import Speedup, Timing, interval_text


@dataclass(frozen=True, repr=False)
class RecipeResult(Displayed):
    """What one recipe did; None stands for what was not measured.

    Attributes
    ----------
    recipe, precision
        Its name, and ``fp32``, ``bf16`` or ``int8``.
    status
        What became of it: a kind, such as ``successful``, ``lacks``, ``fell back``, ``crashed``, ``out of memory`` or
        ``timed out``, and the reason.
    emulated
        Whether the CPU lacks instructions for the precision.
    load_s, prepare_s, first_call_s
        Seconds to load the model, to build what runs, and of the very first call.
    warm_up_s
        Seconds that the first calls took beyond what as many later ones take.
    timing
        Times of a call; each sample is the median of one turn. None if it did not run to the end.
    speedup
        Against the reference, paired by round. None for the reference itself.
    group
        Recipes with the same number were measured in the same rounds.
    roofline_percent
        How much of the measured rate of matrix products in its precision it reaches.
    max_error
        Largest absolute difference from the reference's answers, on valid positions.
    label_agreement, labels
        Share of labels equal to the reference's, in percent, and how many were compared.
    resident_bytes
        Memory of its process after warm-up, all libraries included.
    runs
        What answered, from the receipt.
    receipt
        All that was seen of the preparation.
    """

    recipe: str
    precision: str
    status: Status
    emulated: bool = False
    load_s: float | None = None
    prepare_s: float | None = None
    first_call_s: float | None = None
    warm_up_s: float | None = None
    timing: Timing | None = None
    speedup: Speedup | None = None
    group: int | None = None
    roofline_percent: float | None = None
    max_error: float | None = None
    label_agreement: float | None = None
    labels: int = 0
    resident_bytes: int | None = None
    runs: str = ""
    receipt: Receipt | None = None

    @property
    def successful(self) -> bool:
        """Whether it was prepared, verified if asked, and measured to the end."""
        return self.status.successful

    @property
    def ratio(self) -> float | None:
        """How many times faster than the reference; 1 for the reference itself, None if it was not measured."""
        if self.timing is None:
            return None
        return 1.0 if self.speedup is None else self.speedup.ratio

    @property
    def verdict(self) -> str:
        """``faster``, ``slower``, ``no difference seen``, ``reference``, or nothing."""
        if self.timing is None:
            return ""
        return "reference" if self.speedup is None else self.speedup.verdict

    @property
    def calls_to_pay(self) -> int | None:
        """Number of calls after which preparation has paid for itself; None if it is not seen to be faster.

        What preparing and the first calls cost beyond later ones, divided by what each call gains on the reference.
        """
        if not self.speedup or self.timing is None or self.prepare_s is None:
            return None
        gain = self.timing.median * (self.speedup.ratio - 1.0)
        return math.ceil((self.prepare_s + (self.warm_up_s or 0.0)) / gain)

    def table(self) -> Table:
        """The row's fields below each other."""
        return Table(("recipe", self.recipe), tuple((name, text) for name, text in self.cells().items()))

    def cells(self) -> dict[str, str]:
        """All but the recipe's name as texts, by the columns of a comparison's table."""
        timing, speedup = self.timing, self.speedup
        return {
            "status": str(self.status),
            "load": _text(self.load_s, format_seconds),
            "prepare": _text(self.prepare_s, format_seconds),
            "first call": _text(self.first_call_s, format_seconds),
            "median": _text(timing, lambda t: format_seconds(t.median)),
            "95% interval": _text(timing, lambda t: interval_text(t.low, t.high)),
            "speed-up": _text(speedup, lambda s: f"{s.ratio:.2f}x"),
            "its interval": _text(speedup, lambda s: f"[{s.low:.2f}, {s.high:.2f}]"),
            "verdict": self.verdict,
            "of roofline": _text(self.roofline_percent, lambda percent: f"{percent:.0f}%"),
            "largest error": _text(self.max_error, lambda error: f"{error:.1e}"),
            "same labels": _text(self.label_agreement, lambda percent: _agreement_text(percent, self.labels)),
            "memory": _text(self.resident_bytes, format_bytes),
            "pays after": _text(self.calls_to_pay, lambda calls: f"{calls} calls" if calls != 1 else "1 call"),
            "what ran": self.runs + (", emulated" if self.emulated and self.runs else ""),
        }

    def numbers(self) -> dict[str, Any]:
        """The same as numbers and texts: seconds, ratios, percentages and bytes."""
        timing, speedup = self.timing, self.speedup
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("timing", "speedup", "receipt")}
        return plain | {
            "status": str(self.status),
            "median_s": timing.median if timing else None,
            "low_s": timing.low if timing else None,
            "high_s": timing.high if timing else None,
            "rounds": timing.calls if timing else None,
            "speedup": speedup.ratio if speedup is not None else None,
            "speedup_low": speedup.low if speedup is not None else None,
            "speedup_high": speedup.high if speedup is not None else None,
            "verdict": self.verdict,
            "calls_to_pay": self.calls_to_pay,
        }


def _text(value: Any, show: Any) -> str:
    return "" if value is None else show(value)


def _agreement_text(percent: float, labels: int) -> str:
    # 99.96% must not read as if all were equal.
    shown = f"{math.floor(percent * 10) / 10:.1f}".removesuffix(".0")
    return f"{shown}% of {labels}"
