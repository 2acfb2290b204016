"""What `make test` runs: ruff, the unit tests, then every notebook through nbval in fast mode.

    python tools/check.py [part of a notebook's name ...]

Names choose notebooks; without any, everything runs. Each notebook has a process of its own, one after the
other: side by side they would disturb each other's timings.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CELL_SECONDS = 300
NOTHING_COLLECTED = 5  # pytest's exit code
# The same on every machine: small sizes, no hub, and nothing from the user's cache of it.
TEST_ENVIRONMENT = {"CPUINFER_FAST": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(ROOT / ".state" / "no-hub-cache")}


@dataclass(frozen=True)
class Step:
    """One command, and what to call it in the summary."""

    name: str
    command: list[str]


@dataclass(frozen=True)
class Outcome:
    name: str
    code: int
    seconds: float

    def __str__(self) -> str:
        status = "passed" if self.code == 0 else f"FAILED (exit code {self.code})"
        if self.code == NOTHING_COLLECTED:
            status = "FAILED (nothing in it was run)"
        return f"{self.name:<40} {self.seconds:7.1f} s  {status}"


def notebooks(parts: list[str]) -> list[Path]:
    """The course's notebooks in order, or those whose name holds one of the parts."""
    found = sorted((ROOT / "notebooks").glob("[0-9][0-9]-*.ipynb"))
    return [path for path in found if not parts or any(part in path.name for part in parts)]


def unit_steps() -> list[Step]:
    return [
        Step("ruff", [sys.executable, "-m", "ruff", "check", "."]),
        Step("unit tests", [sys.executable, "-m", "pytest"]),
    ]


def notebook_step(path: Path) -> Step:
    # nbval-lax compares only the cells that ask for it; randomly would run a notebook's cells out of order.
    nbval = ["--nbval-lax", "--nbval-current-env", f"--nbval-cell-timeout={CELL_SECONDS}"]
    command = [sys.executable, "-m", "pytest", *nbval, "-p", "no:randomly", str(path.relative_to(ROOT))]
    return Step(path.name, command)


def run(step: Step) -> Outcome:
    print(f"\n=== {step.name}", flush=True)
    start = time.monotonic()
    code = subprocess.run(step.command, cwd=ROOT, env={**os.environ, **TEST_ENVIRONMENT}).returncode
    return Outcome(step.name, code, time.monotonic() - start)


def main(parts: list[str]) -> int:
    chosen = notebooks(parts)
    if parts and not chosen:
        print(f"No notebook's name holds any of: {' '.join(parts)}", file=sys.stderr)
        return 2
    steps = ([] if parts else unit_steps()) + [notebook_step(path) for path in chosen]
    outcomes = [run(step) for step in steps]
    print("\n=== summary")
    for outcome in outcomes:
        print(outcome)
    if not chosen:
        print("There is no notebook yet in notebooks/.")
    return int(any(outcome.code for outcome in outcomes))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
