"""What a prepared model does on inputs of mixed lengths: measured in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from cpuinfer_helpers.timing import measure_interleaved, seconds_of

_CALLS_UNTIL_STEADY = 3

Inputs = Mapping[str, torch.Tensor]


def measure_mixed_lengths(
    prepared: Callable[..., Any], mixed: Sequence[Inputs], padded: Sequence[Inputs], budget_s: float
) -> dict[str, Any]:
    """Run a mix of lengths as it comes, and padded, in interleaved rounds.

    Parameters
    ----------
    prepared
        Called with keyword inputs.
    mixed, padded
        The same inputs at their own lengths, and all at one length.
    budget_s
        Seconds for each of the two ways.

    Returns
    -------
    dict
        ``seconds`` and ``padded_seconds`` (median of a pass), ``gain`` with ``gain_low`` and ``gain_high``, ``unseen``
        (the slowest of the first three calls at a length divided by later ones at that length) and ``memory_bytes``
        (growth of resident memory over all lengths).
    """
    import psutil

    resident = psutil.Process().memory_info().rss
    # A backend may compile at the first call, or look at one or two first.
    passes = [_each(prepared, mixed) for _ in range(_CALLS_UNTIL_STEADY)]
    _run_all(prepared, mixed)
    later = [min(seconds_of(lambda inputs=inputs: prepared(**inputs)) for _ in range(2)) for inputs in mixed]
    grown = psutil.Process().memory_info().rss - resident
    timings = measure_interleaved(
        {"padded": lambda: _run_all(prepared, padded), "mixed": lambda: _run_all(prepared, mixed)}, budget_s=budget_s
    )
    gain = timings.speedup("mixed")
    return {
        "seconds": timings["mixed"].median,
        "padded_seconds": timings["padded"].median,
        "gain": gain.ratio,
        "gain_low": gain.low,
        "gain_high": gain.high,
        "unseen": max(max(early) / steady for *early, steady in zip(*passes, later, strict=True)),
        "memory_bytes": max(0, grown),
    }


def _each(prepared: Callable[..., Any], inputs: Sequence[Inputs]) -> list[float]:
    """Seconds of one call for each input."""
    return [seconds_of(lambda tensors=tensors: prepared(**tensors)) for tensors in inputs]


def _run_all(prepared: Callable[..., Any], inputs: Sequence[Inputs]) -> None:
    for tensors in inputs:
        prepared(**tensors)
