"""The results of a sweep as a text table and as JSON, and the file that keeps them while it runs."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpuinfer_helpers.display import Table
from sweep.trial import CRASH, NO_EAGER, NOT_LOADED, OUTCOMES, RIGHT, RIGHT_BY_SHAPE, WRONG

ROOT = Path(__file__).resolve().parents[2]
NEVER = (WRONG, CRASH, NOT_LOADED)
# What decides a result: the package's core and the sweep itself.
_CODE = ("tests/sweep/*.py", "cpuinfer_helpers/*.py")


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
    """A file of JSON lines, one for each class; results of other versions or other code do not count."""

    def __init__(self, path: Path, here: dict[str, str]) -> None:
        self.path, self.here = path, here
        self.found: dict[str, dict[str, Any]] = {}
        if path.exists():
            self._read()

    def _read(self) -> None:
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the last line of a run that was cut off
                continue
            if row.get("versions") == self.here:
                self.found[row["name"]] = row

    def add(self, result: dict[str, Any]) -> None:
        """Keep a result, in memory and on disk at once."""
        row = {**result, "versions": self.here}
        self.found[row["name"]] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts by outcome, and the share of those that run in eager which are traced and right."""
    counts = Counter(row["outcome"] for row in rows)
    running = len(rows) - counts[NO_EAGER]
    right = counts[RIGHT] + counts[RIGHT_BY_SHAPE]
    return {
        "classes": len(rows),
        "run in eager": running,
        "outcomes": {outcome: counts[outcome] for outcome in OUTCOMES},
        "share traced and right": round(right / running, 4) if running else None,
        "share with a single trace": round(counts[RIGHT] / running, 4) if running else None,
    }


def tables(rows: Sequence[dict[str, Any]], here: dict[str, str]) -> str:
    """Counts, then every class that has not a single right trace, with its cause."""
    numbers = summary(rows)
    counted = tuple((outcome, str(count)) for outcome, count in numbers["outcomes"].items())
    share, single = numbers["share traced and right"] or 0, numbers["share with a single trace"] or 0
    note = (
        f"{numbers['run in eager']} of {numbers['classes']} run in eager; of those {share:.1%} are traced and right, "
        f"{single:.1%} with a single trace. transformers {here['transformers']}, torch {here['torch']}."
    )
    parts = [str(Table(("outcome", "classes"), counted, title="Every architecture", note=note, numeric=("classes",)))]
    for outcome in OUTCOMES[1:]:
        named = sorted((row["name"], cause(row)) for row in rows if row["outcome"] == outcome)
        if named:
            parts.append(str(Table(("class", "cause"), tuple(named), title=outcome)))
    dull = [row["name"] for row in rows if row.get("varies") is False]
    if dull:
        parts.append(f"Answers that other content does not change, so that equality proves little: {', '.join(dull)}")
    return "\n\n".join(parts)


def cause(row: dict[str, Any]) -> str:
    return row.get("reason") or row.get("how") or ""
