"""What `make test` runs: ruff, the unit tests, then every notebook through nbval in fast mode.

    python tools/check.py [--avx2] [part of a notebook's name ...]

Names choose notebooks; without any, everything runs. As many processes as there are usable cores run side by side:
nothing that is tested depends on how fast the machine is.

With --avx2, what depends on the CPU's instruction sets (tests marked `cpu`, and some of the notebooks) runs with this
CPU held back to AVX2, as many cloud machines are. Where the CPU has no more than that, nothing is left to run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import IO

from cpuinfer_helpers.machine.report import machine_report

ROOT = Path(__file__).resolve().parent.parent
CELL_SECONDS = 300
NOTHING_COLLECTED = 5  # pytest's exit code
# Seen of a process of tests with those that it starts: up to 3 GB.
BYTES_PER_PROCESS = 4 * 2**30
# The same on every machine: small sizes, no hub, and nothing from the user's cache of it.
TEST_ENVIRONMENT = {
    "CPUINFER_FAST": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_CACHE": str(ROOT / ".state" / "no-hub-cache"),
    # Threads that spin while they wait take the cores from other processes: notebooks took four times as long.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Otherwise whatever imports torch.compile's backend, as IPEX does, starts processes that import PyTorch to wait.
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
}
# PyTorch's and IPEX's own loops; oneDNN, wherever it is built in; OpenVINO. Each reads its variable when it is loaded.
AVX2_ONLY = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OV_CPU_MAX_ISA": "AVX2"}
# On BF16 and INT8: what they show differs most from one CPU to another. The current stack's tests do without.
NOTEBOOKS_ON_AVX2 = {"guide": ("05-", "08-"), "current": ()}

_printing = Lock()


@dataclass(frozen=True)
class Step:
    """One command, what to call it in the summary, and variables of its own."""

    name: str
    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)


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


def process_count() -> int:
    """How many processes of tests run well side by side on this machine."""
    machine = machine_report()
    return max(1, min(machine.cores, machine.memory_available // BYTES_PER_PROCESS))


def notebooks(parts: Sequence[str]) -> list[Path]:
    """The course's notebooks in order, or those whose name holds one of the parts."""
    found = sorted((ROOT / "notebooks").glob("[0-9][0-9]-*.ipynb"))
    return [path for path in found if not parts or any(part in path.name for part in parts)]


def unit_steps() -> list[Step]:
    """Ruff and all tests."""
    return [Step("ruff", [sys.executable, "-m", "ruff", "check", "."]), side_by_side("unit tests")]


def avx2_steps() -> list[Step]:
    """The tests that see the CPU's instruction sets."""
    return [on_avx2(side_by_side("unit tests", "-m", "cpu"))]


def side_by_side(name: str, *words: str) -> Step:
    """Tests in several processes; those of a file in one, because they share what is slow to prepare."""
    count = process_count()
    command = [sys.executable, "-m", "pytest", "-n", str(count), "--dist", "loadfile", *words]
    # A thread for each core, all processes together. With more, small operators wait for threads without a core.
    return Step(name, command, {"OMP_NUM_THREADS": str(max(1, machine_report().cores // count))})


def notebook_step(path: Path) -> Step:
    # nbval-lax compares only the cells that ask for it; randomly would run a notebook's cells out of order.
    nbval = ["--nbval-lax", "--nbval-current-env", f"--nbval-cell-timeout={CELL_SECONDS}"]
    command = [sys.executable, "-m", "pytest", *nbval, "-p", "no:randomly", str(path.relative_to(ROOT))]
    return Step(path.name, command)


def on_avx2(step: Step) -> Step:
    """The same step with the CPU held back."""
    return replace(step, name=f"{step.name}, AVX2", environment={**step.environment, **AVX2_ONLY})


def run(step: Step, output: IO[bytes] | None = None) -> Outcome:
    """Run a step; what it prints goes to ``output`` if one is given."""
    if output is None:
        print(f"\n=== {step.name}", flush=True)
    start = time.monotonic()
    environment = {**os.environ, **TEST_ENVIRONMENT, **step.environment}
    code = subprocess.run(step.command, cwd=ROOT, env=environment, stdout=output, stderr=output).returncode
    return Outcome(step.name, code, time.monotonic() - start)


def run_together(steps: Sequence[Step]) -> list[Outcome]:
    """Run steps side by side; each one's output is printed in one piece."""
    with ThreadPoolExecutor(process_count()) as pool:
        return list(pool.map(_run_quietly, steps))


def _run_quietly(step: Step) -> Outcome:
    with tempfile.TemporaryFile() as output:
        outcome = run(step, output)
        output.seek(0)
        with _printing:
            print(f"\n=== {step.name}\n{output.read().decode(errors='replace')}", flush=True)
    return outcome


def steps_of(parts: Sequence[str], avx2: bool) -> tuple[list[Step], list[Step]]:
    """What runs one after the other, and then the notebooks, which run side by side."""
    chosen = notebooks(parts)
    if not avx2:
        return [] if parts else unit_steps(), [notebook_step(path) for path in chosen]
    if not parts:
        usual = NOTEBOOKS_ON_AVX2.get(machine_report().stack, ("",))
        chosen = [path for path in chosen if path.name.startswith(usual)]
    return [] if parts else avx2_steps(), [on_avx2(notebook_step(path)) for path in chosen]


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="tools/check.py", description="run ruff, the tests and the notebooks")
    parser.add_argument("--avx2", action="store_true", help="what depends on the CPU, with it held back to AVX2")
    parser.add_argument("parts", nargs="*", metavar="part", help="of a notebook's name: only such notebooks")
    options = parser.parse_args(words)
    if options.avx2 and "AVX512" not in machine_report().isa:
        print("This CPU has no AVX512, so there is nothing to hold back: the other tests have run on AVX2 or less.")
        return 0
    first, together = steps_of(options.parts, options.avx2)
    if options.parts and not together:
        print(f"No notebook's name holds any of: {' '.join(options.parts)}", file=sys.stderr)
        return 2
    outcomes = [run(step) for step in first] + run_together(together)
    print("\n=== summary")
    for outcome in outcomes:
        print(outcome)
    if not notebooks(()):
        print("There is no notebook yet in notebooks/.")
    return int(any(outcome.code for outcome in outcomes))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
