"""Comparisons as JSON: written whole or not at all, checked when read."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from typing import Any, TypeVar

from cpuinfer_helpers.errors import ArtifactError
from cpuinfer_helpers.machine.paths import given_path
from cpuinfer_helpers.processes.recipe_result import RecipeResult
from cpuinfer_helpers.processes.status import Status
from cpuinfer_helpers.recipes.registry import REFERENCE
from cpuinfer_helpers.saving.folders import write_text
from cpuinfer_helpers.saving.plain import read, write
from cpuinfer_helpers.saving.plain_json import read_plain_json

Wanted = TypeVar("Wanted")

_KIND = "cpuinfer comparison"
_FORMAT_VERSION = 2
# The first format did not say how many parameters the model has.
_WITHOUT_PARAMETERS = 1


def save(comparison: Any, path: str | os.PathLike[str]) -> None:
    """Write a comparison; an older file of that name is replaced.

    Raises
    ------
    ArtifactError
        If it cannot be written.
    """
    target = given_path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, as_text(comparison))
    except OSError as error:
        raise ArtifactError(f"{target} cannot be written: {error}; make room there or give another path") from error


def as_text(comparison: Any) -> str:
    """The JSON that :func:`save` writes."""
    data = write(comparison)
    for name, row in comparison.rows.items():
        data["rows"][name]["status"] = write(str(row.status))
    data = {"kind": _KIND, "format_version": _FORMAT_VERSION, **data}
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def load(wanted: type[Wanted], path: str | os.PathLike[str]) -> Wanted:
    """Read a comparison that :func:`save` wrote.

    Parameters
    ----------
    wanted
        The class of comparisons.
    path
        The file.

    Raises
    ------
    ArtifactError
        If the file is missing, damaged or of another kind or format.
    """
    source = given_path(path)
    try:
        data = read_plain_json(source)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{source} cannot be read as a comparison: {error}") from error
    if not isinstance(data, dict) or data.pop("kind", None) != _KIND:
        raise ArtifactError(f"{source} is not a comparison; give a file that Comparison.save() wrote")
    version = data.pop("format_version", None)
    if version == _WITHOUT_PARAMETERS:
        data["parameters"] = None
    elif version != _FORMAT_VERSION:
        raise ArtifactError(f"{source} has format {version!r:.80}, this version reads {_FORMAT_VERSION}; save it again")
    try:
        _read_statuses(data.get("rows"))
        comparison = read(wanted, data, "comparison")
        _check_rows(comparison)
    except (ValueError, TypeError, OverflowError) as error:
        raise ArtifactError(f"{source} is damaged: {error}") from error
    return comparison


def _read_statuses(rows: Any) -> None:
    """In the place of each row's status, which is one text in the file, its kind and its reason."""
    for row in rows.values() if isinstance(rows, dict) else ():
        if isinstance(row, dict) and "status" in row:
            row["status"] = dataclasses.asdict(Status.from_text(row["status"]))


def _check_rows(comparison: Any) -> None:
    if REFERENCE not in comparison.rows:
        raise ValueError(f"there is no row for {REFERENCE}")
    for name, row in comparison.rows.items():
        if row.recipe != name:
            raise ValueError(f"the row of {name} is of {row.recipe}")
        _check_row(row)
    for what in ("batch_size", "threads", "parameters", "price_per_hour", "flops"):
        value = getattr(comparison, what)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{what} is {value}")


def _check_row(row: RecipeResult) -> None:
    """Refuse times that nothing can take, and shares that cannot be."""
    seconds = {"load_s": row.load_s, "prepare_s": row.prepare_s, "first_call_s": row.first_call_s}
    for what, value in seconds.items():
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{what} of {row.recipe} is {value}")
    timing, speedup = row.timing, row.speedup
    if timing is not None and not (timing.samples and all(0 < sample < math.inf for sample in timing.samples)):
        raise ValueError(f"the times of {row.recipe} are not positive")
    # An interval may be open where there were too few samples to tell.
    if speedup is not None and not (0 < speedup.ratio < math.inf and speedup.low <= speedup.ratio <= speedup.high):
        raise ValueError(f"the speed-up of {row.recipe} is {speedup.ratio} [{speedup.low}, {speedup.high}]")
