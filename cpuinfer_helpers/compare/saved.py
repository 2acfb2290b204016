"""Comparisons as JSON: written whole or not at all, checked when read."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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

# The first format did not say how many parameters the model has.
_WITHOUT_PARAMETERS = 1


@dataclass(frozen=True)
class FileFormat:
    """How a kind of comparison is written.

    Attributes
    ----------
    kind
        What the file says that it is.
    version
        Of what is written.
    check
        Refuses, by a ValueError, values that cannot be.
    upgrade
        Changes what a file of an older version holds, and tells whether it could.
    """

    kind: str
    version: int
    check: Callable[[Any], None]
    upgrade: Callable[[dict[str, Any], Any], bool] = lambda data, version: False


def save(comparison: Any, path: str | os.PathLike[str], form: FileFormat | None = None) -> None:
    """Write a comparison; an older file of that name is replaced.

    Parameters
    ----------
    comparison
        A dataclass with ``rows``.
    path
        The file.
    form
        That of :class:`~cpuinfer_helpers.compare.result.Comparison` unless given.

    Raises
    ------
    ArtifactError
        If it cannot be written.
    """
    target = given_path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, as_text(comparison, form))
    except OSError as error:
        raise ArtifactError(f"{target} cannot be written: {error}; make room there or give another path") from error


def as_text(comparison: Any, form: FileFormat | None = None) -> str:
    """The JSON that :func:`save` writes."""
    form = form or _COMPARISON
    data = write(comparison)
    for name, row in comparison.rows.items():
        data["rows"][name]["status"] = write(str(row.status))
    data = {"kind": form.kind, "format_version": form.version, **data}
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def load(wanted: type[Wanted], path: str | os.PathLike[str], form: FileFormat | None = None) -> Wanted:
    """Read a comparison that :func:`save` wrote.

    Parameters
    ----------
    wanted
        The class of comparisons.
    path
        The file.
    form
        As for :func:`save`.

    Raises
    ------
    ArtifactError
        If the file is missing, damaged or of another kind or format.
    """
    form = form or _COMPARISON
    source = given_path(path)
    try:
        data = read_plain_json(source)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{source} cannot be read as a comparison: {error}") from error
    if not isinstance(data, dict) or data.pop("kind", None) != form.kind:
        raise ArtifactError(f"{source} is not a comparison; give a file that {wanted.__name__}.save() wrote")
    version = data.pop("format_version", None)
    if version != form.version and not form.upgrade(data, version):
        raise ArtifactError(f"{source} has format {version!r:.80}, this version reads {form.version}; save it again")
    try:
        _read_statuses(data.get("rows"))
        comparison = read(wanted, data, "comparison")
        check_names(comparison)
        form.check(comparison)
    except (ValueError, TypeError, OverflowError) as error:
        raise ArtifactError(f"{source} is damaged: {error}") from error
    return comparison


def _read_statuses(rows: Any) -> None:
    """In the place of each row's status, which is one text in the file, its kind and its reason."""
    for row in rows.values() if isinstance(rows, dict) else ():
        if isinstance(row, dict) and "status" in row:
            row["status"] = dataclasses.asdict(Status.from_text(row["status"]))


def check_names(comparison: Any) -> None:
    """Raise a ValueError where a row is of another recipe than its name says, or the reference has none."""
    if REFERENCE not in comparison.rows:
        raise ValueError(f"there is no row for {REFERENCE}")
    for name, row in comparison.rows.items():
        if row.recipe != name:
            raise ValueError(f"the row of {name} is of {row.recipe}")


def check_seconds(row: Any, names: Sequence[str]) -> None:
    """Raise a ValueError where a row has seconds that nothing can take; None is possible."""
    for what in names:
        value = getattr(row, what)
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{what} of {row.recipe} is {value}")


def check_speedup(speedup: Any, recipe: str) -> None:
    """Raise a ValueError for a speed-up that cannot be; None is possible."""
    # An interval may be open where there were too few samples to tell.
    if speedup is not None and not (0 < speedup.ratio < math.inf and speedup.low <= speedup.ratio <= speedup.high):
        raise ValueError(f"the speed-up of {recipe} is {speedup.ratio} [{speedup.low}, {speedup.high}]")


def _upgrade(data: dict[str, Any], version: Any) -> bool:
    if version != _WITHOUT_PARAMETERS:
        return False
    data["parameters"] = None
    return True


def _check(comparison: Any) -> None:
    for row in comparison.rows.values():
        _check_row(row)
    for what in ("batch_size", "threads", "parameters", "price_per_hour", "flops"):
        value = getattr(comparison, what)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{what} is {value}")


def _check_row(row: RecipeResult) -> None:
    """Refuse times that nothing can take, and shares that cannot be."""
    check_seconds(row, ("load_s", "prepare_s", "first_call_s"))
    timing = row.timing
    if timing is not None and not (timing.samples and all(0 < sample < math.inf for sample in timing.samples)):
        raise ValueError(f"the times of {row.recipe} are not positive")
    check_speedup(row.speedup, row.recipe)


_COMPARISON = FileFormat("cpuinfer comparison", 2, _check, _upgrade)
