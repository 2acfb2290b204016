"""Comparisons as JSON: written whole or not at all, checked when read."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpuinfer_helpers.artifacts import write_text
from cpuinfer_helpers.compare.comparison import Comparison, RecipeResult
from cpuinfer_helpers.errors import ArtifactError
from cpuinfer_helpers.receipts import Check, Receipt
from cpuinfer_helpers.recipes.registry import REFERENCE
from cpuinfer_helpers.timing import Roofline, Speedup, Timing

_KIND = "cpuinfer comparison"
_FORMAT_VERSION = 1
_CLASSES = (Comparison, RecipeResult, Timing, Speedup, Receipt, Check, Roofline)
# JSON has no such numbers.
_SPECIAL = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def save(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Write a comparison; an older file of that name is replaced.

    Raises
    ------
    ArtifactError
        If it cannot be written.
    """
    target = Path(path).expanduser()
    data = {"kind": _KIND, "format_version": _FORMAT_VERSION, **_plain(dataclasses.asdict(comparison))}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, json.dumps(data, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise ArtifactError(f"{target} cannot be written: {error}; make room there or give another path") from error


def load(path: str | os.PathLike[str]) -> Comparison:
    """Read a comparison that :func:`save` wrote.

    Raises
    ------
    ArtifactError
        If the file is missing, damaged or of another kind or format.
    """
    source = Path(path).expanduser()
    try:
        data = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{source} cannot be read as a comparison: {error}") from error
    if not isinstance(data, dict) or data.pop("kind", None) != _KIND:
        raise ArtifactError(f"{source} is not a comparison; give a file that Comparison.save() wrote")
    version = data.pop("format_version", None)
    if version != _FORMAT_VERSION:
        raise ArtifactError(f"{source} has format {version!r}, this version reads {_FORMAT_VERSION}; save it again")
    try:
        comparison = _restore(Comparison, data, "comparison")
        _check_rows(comparison)
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{source} is damaged: {error}") from error
    return comparison


def _check_rows(comparison: Comparison) -> None:
    if REFERENCE not in comparison.rows:
        raise ValueError(f"there is no row for {REFERENCE}")
    for name, row in comparison.rows.items():
        if row.recipe != name:
            raise ValueError(f"the row of {name} is of {row.recipe}")
        if row.timing is not None and (not row.timing.samples or min(row.timing.samples) <= 0):
            raise ValueError(f"the times of {name} are not positive")
    if comparison.batch_size < 1:
        raise ValueError(f"batch_size is {comparison.batch_size}")


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return next(text for text, number in _SPECIAL.items() if number == value or (text == "NaN" and value != value))
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value


def _restore(wanted: Any, value: Any, where: str) -> Any:
    """A value of the wanted type, dataclasses included; ValueError names the place of anything else."""
    if wanted in _CLASSES:
        return _restore_class(wanted, value, where)
    if wanted is Any:
        return value
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _restore(arguments[0], value, where)
    if origin is tuple:
        return _restore_tuple(arguments, value, where)
    if origin is not None and issubclass(origin, Mapping):
        _expect(isinstance(value, dict), where, "an object", value)
        return {key: _restore(arguments[1], entry, f"{where}.{key}") for key, entry in value.items()}
    if wanted is float:
        value = _SPECIAL.get(value, value) if isinstance(value, str) else value
        _expect(isinstance(value, (int, float)) and not isinstance(value, bool), where, "a number", value)
        return float(value)
    _expect(
        isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool)), where, wanted.__name__, value
    )
    return value


def _restore_class(wanted: type, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), where, "an object", value)
    hints = typing.get_type_hints(wanted)
    names = [field.name for field in dataclasses.fields(wanted)]
    for name in names:
        _expect(name in value, f"{where}.{name}", "there", "missing")
    for name in value:
        _expect(name in names, f"{where}.{name}", "a known field", "unknown")
    return wanted(**{name: _restore(hints[name], value[name], f"{where}.{name}") for name in names})


def _restore_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    _expect(isinstance(value, list), where, "a list", value)
    if arguments[-1] is Ellipsis:
        return tuple(_restore(arguments[0], entry, f"{where}[{i}]") for i, entry in enumerate(value))
    _expect(len(value) == len(arguments), where, f"a list of {len(arguments)}", value)
    return tuple(_restore(t, entry, f"{where}[{i}]") for i, (t, entry) in enumerate(zip(arguments, value, strict=True)))


def _expect(holds: bool, where: str, what: str, seen: Any) -> None:
    if not holds:
        raise ValueError(f"{where} should be {what}, and is {seen!r}"[:300])
