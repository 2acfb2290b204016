"""Comparisons of text generation as JSON: written whole or not at all, checked when read."""

from __future__ import annotations

import math
from typing import Any

from cpuinfer_helpers.compare.saved import FileFormat, check_seconds, check_speedup


def _check(comparison: Any) -> None:
    for row in comparison.rows.values():
        check_seconds(row, ("load_s", "prepare_s", "first_text_s"))
        check_speedup(row.speedup, row.recipe)
        check_speedup(row.token_speedup, row.recipe)
        if row.timing is not None:
            _check_timing(row.timing, row.recipe)
    for what in ("parameters", "new_tokens", "threads", "bandwidth"):
        value = getattr(comparison, what)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{what} is {value}")


def _check_timing(timing: Any, recipe: str) -> None:
    """Refuse texts without tokens, and times that nothing can take."""
    if not timing.turns:
        raise ValueError(f"{recipe} has written nothing")
    for turn in timing.turns:
        seconds = (turn.first_token, *turn.tokens)
        if not turn.tokens or not all(0 < value < math.inf for value in seconds):
            raise ValueError(f"the times of {recipe} are not positive")


FORMAT = FileFormat("cpuinfer comparison of text generation", 1, _check)
