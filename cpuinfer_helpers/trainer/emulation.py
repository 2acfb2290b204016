"""What emulated BF16 costs an evaluation: said before anything is prepared, and estimated by the first batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter as clock
from typing import Any

import numpy as np
import torch
from transformers.trainer_utils import has_length

from cpuinfer_helpers.display import format_seconds
from cpuinfer_helpers.errors import InputError, first_line
from cpuinfer_helpers.interface.copies import cast_copy, evaluation_copy, in_evaluation_mode
from cpuinfer_helpers.machine.report import EMULATED_BF16, machine_report
from cpuinfer_helpers.trainer.plan import EvaluationPlan

logger = logging.getLogger("cpuinfer_helpers")

# TorchScript makes its plans in the first two or three calls, which verification has made by then; oneDNN makes kernels
# for every new shape. What is left of that matters where a call itself is short: such a call is repeated, and the
# shortest counts. A batch that takes longer runs once, and what it did only once makes the estimate a little too high.
_LONG_S = 1.0
_MOST_CALLS = 3
# Enough for the eager model's usual speed; a larger batch is estimated by its number of rows.
_FP32_ROWS = 8


def why_emulated(plan: EvaluationPlan) -> str:
    """Why the BF16 that a plan wants is emulated here; empty if it is native, or the plan wants FP32."""
    return machine_report().why_emulated if plan.precision == "bf16" else ""


def emulation_text(plan: EvaluationPlan) -> str:
    """The same with what it costs, as receipts have it."""
    return (machine_report().emulation("bf16") or "") if plan.precision == "bf16" else ""


def warn_of_emulation(plan: EvaluationPlan, why: str) -> None:
    """Say that BF16 is emulated here, why, what it costs and what to do."""
    flags = [name for name in ("bf16", "bf16_full_eval") if plan.requested[name]]
    out = " and ".join(f"--{name} ({name}=True)" for name in flags)
    logger.warning("BF16 is emulated here: %s. It is %s; leave %s out to evaluate in FP32", why, EMULATED_BF16, out)


@dataclass
class Forecast:
    """How long an evaluation will take, told once by its first batch.

    Attributes
    ----------
    batches
        How many there are; None if that is not known.
    like_first
        How many batches of the first one's size they make; None if their sizes are not known.
    text
        What was told; empty before.
    """

    batches: int | None
    like_first: float | None = None
    text: str = ""

    @classmethod
    def of(cls, dataloader: Any, tokens: Sequence[int] | None = None) -> Forecast:
        """For the batches of a dataloader.

        Parameters
        ----------
        dataloader
            With a length or without.
        tokens
            Tokens in each batch, padding included, where that is known; of all processes together.
        """
        if not has_length(dataloader):
            return cls(None)
        batches = len(dataloader)
        return cls(batches, batches * float(np.mean(tokens)) / tokens[0] if tokens else None)

    def tell(self, seconds: float, fp32: float | str) -> None:
        """Log it, by what the first batch took in emulated BF16 and takes in FP32, or why that is not known."""
        basis = "the first batch" if self.like_first is None else "the first batch and the tokens of the others"
        bf16 = f"{self._whole(seconds)} for {self._count()} in emulated BF16"
        if isinstance(fp32, str):
            self.text = f"{bf16}, by {basis}; {fp32}"
        else:
            self.text = f"{bf16}; {self._whole(fp32)} in eager FP32, by {basis}"
        logger.warning("%s", self.text)

    def _count(self) -> str:
        if self.batches is None:
            return "each batch"
        return "1 batch" if self.batches == 1 else f"{self.batches} batches"

    def _whole(self, seconds: float) -> str:
        times = self.like_first or self.batches or 1
        return f"about {_duration(seconds * times)}"


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its seconds."""
    started = clock()
    result = call()
    return result, clock() - started


def shortest(call: Callable[[], Any], first: float | None = None) -> float:
    """Seconds of the shortest of a few calls; of one, if that is long.

    Parameters
    ----------
    call
        What is timed.
    first
        Seconds of a call that has been made already.
    """
    seconds = [timed(call)[1] if first is None else first]
    while sum(seconds) < _LONG_S and len(seconds) < _MOST_CALLS:
        seconds.append(timed(call)[1])
    return min(seconds)


def seconds_in_fp32(model: torch.nn.Module, batch: Mapping[str, Any]) -> float | str:
    """Seconds that the eager model takes for a batch in FP32, by a part of its rows; a text that says why not."""
    rows, times = _some_rows(batch)
    try:
        answer = _in_fp32(model)
        return times * shortest(lambda: answer(**rows))
    except Exception as error:  # the user's model may fail in any way, and the evaluation itself goes on
        return f"not known for eager FP32, which fails: {first_line(error)}"


def _in_fp32(model: torch.nn.Module) -> Callable[..., Any]:
    try:
        return cast_copy(evaluation_copy(model), torch.float32)
    except InputError:  # it cannot be copied
        return in_evaluation_mode(model)


def _some_rows(batch: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """The first rows of a batch, and how many times as many it has."""
    count = next((len(value) for value in batch.values() if isinstance(value, torch.Tensor) and value.dim()), 0)
    if count <= _FP32_ROWS:
        return dict(batch), 1.0
    rows = {name: value[:_FP32_ROWS] if _has_rows(value, count) else value for name, value in batch.items()}
    return rows, count / _FP32_ROWS


def _has_rows(value: Any, count: int) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == count


def _duration(seconds: float) -> str:
    # The limits are where rounding reaches the next unit.
    if seconds < 90:
        return format_seconds(seconds)
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
