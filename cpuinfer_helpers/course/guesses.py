"""Guesses of the reader: written down before a measurement, kept, and compared with it in words."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path

from cpuinfer_helpers.display import format_seconds
from cpuinfer_helpers.errors import ArtifactError, InputError
from cpuinfer_helpers.machine.cache import cache_directory
from cpuinfer_helpers.machine.paths import given_path
from cpuinfer_helpers.saving.folders import write_text
from cpuinfer_helpers.timing.results import Speedup, Timing, interval_text

logger = logging.getLogger("cpuinfer_helpers")

# A number without an interval counts as hit within this share of it.
_CLOSE = 0.05


def check_guess(guess: float, measured: Timing | Speedup | float, unit: str = "") -> str:
    """Compare a guess with a measurement, in words.

    Parameters
    ----------
    guess
        In milliseconds for a :class:`Timing`, a ratio for a :class:`Speedup`, otherwise in the unit of ``measured``.
    measured
        A result with an interval, or a positive number, which counts as hit within 5%.
    unit
        Unit to show behind a number.

    Returns
    -------
    str
        Both figures, and whether the guess was right, too high or too low, and by how much.

    Raises
    ------
    InputError
        If the guess is not a positive number.
    """
    _check(guess, "check_guess")
    if isinstance(measured, Timing):
        value, low, high = (1e3 * seconds for seconds in (measured.median, measured.low, measured.high))
        unit, seen = " ms", f"{format_seconds(measured.median)} {interval_text(measured.low, measured.high)}"
    elif isinstance(measured, Speedup):
        value, low, high = measured.ratio, measured.low, measured.high
        unit, seen = "x", f"{value:.2f}x [{low:.2f}, {high:.2f}]"
    else:
        value, low, high = measured, measured * (1 - _CLOSE), measured * (1 + _CLOSE)
        seen = f"{value:.0f}{unit}" if value >= 100 else f"{value:.3g}{unit}"
    return f"You guessed {guess:g}{unit}, measured {seen}: {_verdict(guess, value, low, high)}."


def keep_guesses(guesses: Mapping[str, float], path: Path | None = None) -> Path:
    """Keep guesses for later notebooks; those kept before under other names stay.

    Parameters
    ----------
    guesses
        Positive numbers by name.
    path
        The file; ``guesses.json`` in the cache folder (``CPUINFER_CACHE``) unless given.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    InputError
        If a guess is not a positive number.
    ArtifactError
        If the file cannot be written.
    """
    for name, guess in guesses.items():
        _check(guess, f"keep_guesses: {name}")
    target = cache_directory() / "guesses.json" if path is None else given_path(path)
    together = {**kept_guesses(target), **guesses}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, json.dumps(together, indent=1))
    except OSError as error:
        raise ArtifactError(f"{target} cannot be written: {error}; set CPUINFER_CACHE to a folder that can") from error
    return target


def kept_guesses(path: Path | None = None) -> dict[str, float]:
    """Read the guesses kept by :func:`keep_guesses`.

    Parameters
    ----------
    path
        The file; ``guesses.json`` in the cache folder unless given.

    Returns
    -------
    dict of str to float
        Empty if none were kept, or, with a WARNING, if the file cannot be read.
    """
    source = cache_directory() / "guesses.json" if path is None else given_path(path)
    if not source.exists():
        return {}
    try:
        kept = json.loads(source.read_text(encoding="utf-8"))
        for name, guess in kept.items():
            _check(guess, name)
    except (OSError, ValueError, AttributeError, InputError) as error:
        logger.warning("the guesses in %s cannot be read and are left out: %s", source, error)
        return {}
    return kept


def _check(guess: object, what: str) -> None:
    if isinstance(guess, bool) or not isinstance(guess, (int, float)) or not 0 < guess < math.inf:
        raise InputError(f"{what}: {guess!r} is not a guess; give a positive number")


def _verdict(guess: float, value: float, low: float, high: float) -> str:
    if low <= guess <= high:
        return "right"
    direction, factor = ("high", guess / value) if guess > value else ("low", value / guess)
    if factor >= 2:
        return f"too {direction} by a factor of {factor:.1f}"
    return f"too {direction} by {100 * abs(guess / value - 1):.0f}%"
