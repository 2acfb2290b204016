"""Trace, prepare with each backend and call with 24 shapes, in 8 threads at once, while another thread trains.

    python tools/soak.py [--threads N] [--turns N] [--compiled N]

`make soak` runs it, on the guide stack. IPEX changes what else is made in its process, so its part has one of its own.
The exit code is 1 if an answer, a gradient or the state of the process was not as it should be.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tqdm.auto import tqdm  # noqa: E402

from cpuinfer_helpers.recipes import get_recipe  # noqa: E402
from tests import soak  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=8, help="threads that trace and prepare (default 8)")
    parser.add_argument("--turns", type=int, default=50, help="models made in each way and called (default 50)")
    parser.add_argument("--compiled", type=int, default=8, help="those by torch.compile, which takes long (default 8)")
    parser.add_argument("--ipex", action="store_true", help="only the part with IPEX")
    options = parser.parse_args(arguments)
    work = soak.Soak()
    ways = work.ways(soak.IPEX if options.ipex else (*soak.RECIPES, *soak.COMPILED))
    turns = {name: options.compiled if name in soak.COMPILED else options.turns for name in ways}
    failed = run(work, {name: make for name, make in ways.items() if turns[name]}, turns, options.threads)
    if options.ipex or not any(get_recipe(name).can_run for name in soak.IPEX):
        return int(failed)
    # Once more by traces too, as IPEX changes how they are made.
    words = ["--ipex", "--threads", str(options.threads), "--turns", str(options.turns)]
    return int(failed or subprocess.run([sys.executable, __file__, *words], check=False).returncode)


def run(work: soak.Soak, ways: Mapping, turns: Mapping[str, int], threads: int) -> bool:
    """Do it, show what was seen, and tell whether anything was wrong."""
    for name, make in tqdm(ways.items(), desc="each way once", unit="way"):
        work.turn(name, make)
    before, started = soak.state(), time.monotonic()
    total = sum(turns[name] for name in ways)
    with tqdm(total=total, desc=f"{threads} threads", unit="turn") as progress:
        work.turn_over = progress.update
        try:
            work.run(ways, threads, turns)
        except KeyboardInterrupt:
            print("\nstopped; what was seen until then:", file=sys.stderr)
    changed = soak.changes(before, soak.state())
    print(table(work, ways, changed, time.monotonic() - started))
    return bool(work.faults or changed)


def table(work: soak.Soak, ways: Sequence[str], changed: dict, seconds: float) -> str:
    """What was done, and every fault."""
    rows = [f"{'what':<24}{'times':>7}{'seconds each':>14}"]
    for name in ways:
        each = work.seconds[name] / max(1, work.done[name])
        rows.append(f"{name:<24}{work.done[name]:>7}{each:>14.2f}")
    rows.append(f"{'training steps':<24}{work.done['training steps']:>7}")
    rows += [f"FAULT {count} x {text}" for text, count in soak.Counter(work.faults).most_common()]
    rows += [f"CHANGED {name}: {was!r} became {became!r}" for name, (was, became) in changed.items()]
    rows.append(f"{len(work.faults)} faults, {len(changed)} changes of the process, in {seconds:.0f} s")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
