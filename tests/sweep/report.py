"""The results of a sweep as text tables and as JSON, and the file that keeps them while it runs."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpuinfer_helpers.display import Table
from sweep.classes import TASKS
from sweep.trial import (
    FOREIGN,
    NO_EAGER,
    NOT_LOADED,
    OUTCOMES,
    OWN_SIZE,
    PREPARED,
    RECIPES,
    REFUSED,
    RIGHT,
    RIGHT_BY_SHAPE,
    STOPPED,
    TRACE,
    WRONG,
)

ROOT = Path(__file__).resolve().parents[2]
NEVER = (WRONG, FOREIGN, NOT_LOADED)
# What decides a result: the sweep itself, and those parts of the package that prepare, verify and save.
_PARTS = ("", "generation/**/", "recipes/**/", "tracing/", "verification/", "interface/", "saving/", "machine/")
_CODE = ("tests/sweep/*.py", *(f"cpuinfer_helpers/{part}*.py" for part in _PARTS))
Row = dict[str, Any]
Key = tuple[str, str, str]


def versions() -> dict[str, str]:
    """What a result holds for: versions of the libraries, and a sum over the code."""
    import torch
    import transformers

    digest = hashlib.sha256()
    for pattern in _CODE:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    return {"torch": torch.__version__, "transformers": transformers.__version__, "code": digest.hexdigest()[:12]}


class Results:
    """A file of JSON lines, one for each class, task and recipe; those of other versions or code do not count."""

    def __init__(self, path: Path, here: dict[str, str]) -> None:
        self.path, self.here = path, here
        self.found: dict[Key, Row] = {}
        if path.exists():
            self._read()

    def _read(self) -> None:
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the last line of a run that was cut off
                continue
            if row.get("versions") == self.here:
                self.found[key_of(row)] = row

    def add(self, result: Row) -> None:
        """Keep a result, in memory and on disk at once."""
        row = {**result, "versions": self.here}
        self.found[key_of(row)] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def key_of(row: Row) -> Key:
    """What a result is of: class, task and recipe."""
    return row["name"], row["task"], row["recipe"]


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts by outcome and shares of those that run in eager, of each recipe and of each task of it."""
    recipes = [recipe for recipe in RECIPES if any(row["recipe"] == recipe for row in rows)]
    return {recipe: _of_recipe([row for row in rows if row["recipe"] == recipe]) for recipe in recipes}


def _of_recipe(rows: Sequence[Row]) -> dict[str, Any]:
    tasks = [task for task in TASKS if any(row["task"] == task for row in rows)]
    by_task = {task: _counted([row for row in rows if row["task"] == task]) for task in tasks}
    return {**_counted(rows), "tasks": by_task}


def _counted(rows: Sequence[Row]) -> dict[str, Any]:
    counts = Counter(row["outcome"] for row in rows)
    running = len(rows) - counts[NO_EAGER]

    def share(*outcomes: str) -> float | None:
        return round(sum(counts[outcome] for outcome in outcomes) / running, 4) if running else None

    return {
        "classes": len(rows),
        "run in eager": running,
        "outcomes": {outcome: counts[outcome] for outcome in OUTCOMES},
        "share prepared": share(*PREPARED),
        "share right at every size": share(RIGHT, RIGHT_BY_SHAPE),
        "share with a single trace": share(RIGHT),
    }


def tables(rows: Sequence[Row], here: dict[str, str]) -> str:
    """Counts by recipe and by task, then every class that is not right at every size, with its cause."""
    numbers = summary(rows)
    parts = [str(_by_outcome(numbers, here)), *(str(_by_task(recipe, of)) for recipe, of in numbers.items())]
    for recipe in numbers:
        for outcome in OUTCOMES[1:-1]:
            parts += _named(rows, recipe, outcome)
    first = next(iter(numbers), TRACE)
    parts += _named(rows, first, NO_EAGER, title=NO_EAGER)
    parts += [
        _listed(rows, "Answers that other content does not change, so that equality proves little", _is_dull),
        _listed(rows, "Random answers", lambda row: bool(row.get("random"))),
        _listed(rows, "Differences no larger than what rounding does to the model itself", _by_rounding),
    ]
    return "\n\n".join(part for part in parts if part)


def _by_outcome(numbers: dict[str, Any], here: dict[str, str]) -> Table:
    counted = tuple(
        (outcome, *(str(of["outcomes"][outcome]) for of in numbers.values()))
        for outcome in OUTCOMES
        if any(of["outcomes"][outcome] for of in numbers.values()) or outcome in NEVER
    )
    shares = tuple(
        (name, *(f"{of[name] or 0:.1%}" for of in numbers.values()))
        for name in ("share prepared", "share right at every size", "share with a single trace")
    )
    running = max((of["run in eager"] for of in numbers.values()), default=0)
    classes = max((of["classes"] for of in numbers.values()), default=0)
    note = (
        f"{running} of {classes} run in eager; shares are of these. Only '{TRACE}' may make one for each shape. "
        f"transformers {here['transformers']}, torch {here['torch']}."
    )
    return Table(
        ("outcome", *numbers), (*counted, *shares), title="Every architecture", note=note, numeric=tuple(numbers)
    )


_SHORT = {
    RIGHT: "right",
    RIGHT_BY_SHAPE: "by shape",
    OWN_SIZE: "own size",
    REFUSED: "refused",
    WRONG: "wrong",
    FOREIGN: "foreign error",
    NOT_LOADED: "not loaded",
    STOPPED: "out of time",
    NO_EAGER: "no eager",
}


def _by_task(recipe: str, numbers: dict[str, Any]) -> Table:
    rows = tuple(
        (task, *(str(of["outcomes"][outcome]) for outcome in OUTCOMES), f"{of['share prepared'] or 0:.1%}")
        for task, of in numbers["tasks"].items()
    )
    columns = (*_SHORT.values(), "prepared")
    return Table(("task", *columns), rows, title=f"{recipe}, by task", numeric=columns)


def _named(rows: Sequence[Row], recipe: str, outcome: str, title: str = "") -> list[str]:
    chosen = [row for row in rows if row["recipe"] == recipe and row["outcome"] == outcome]
    named = sorted((row["name"], row["task"], cause(row)) for row in chosen)
    title = title or f"{recipe}: {outcome}"
    return [str(Table(("class", "task", "cause"), tuple(named), title=title))] if named else []


def _listed(rows: Sequence[Row], title: str, chosen: Any) -> str:
    names = dict.fromkeys(row["name"] for row in rows if chosen(row))
    return f"{title}: {', '.join(names)}" if names else ""


def _is_dull(row: Row) -> bool:
    return row.get("varies") is False


def _by_rounding(row: Row) -> bool:
    return bool(row.get("by rounding"))


def cause(row: Row) -> str:
    """Why a class is not simply right."""
    return row.get("reason") or row.get("how") or ""
