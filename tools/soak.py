"""Trace, prepare with each backend and call with 24 shapes, in 8 threads at once, while another thread trains.

    python tools/soak.py [--threads N] [--turns N] [--compile]

`make soak` runs it, on the guide stack. The exit code is 1 if an answer, a gradient or the state of the process was not
as it should be.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tqdm.auto import tqdm  # noqa: E402

from tests import soak  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=8, help="threads that trace and prepare (default 8)")
    parser.add_argument("--turns", type=int, default=50, help="models that each thread makes and calls (default 50)")
    parser.add_argument("--compile", action="store_true", help="with torch.compile, which takes long")
    options = parser.parse_args(arguments)
    work = soak.Soak()
    ways = work.ways((*soak.RECIPES, *(["compile-fp32"] if options.compile else [])))
    for name, make in tqdm(ways.items(), desc="each way once", unit="way"):
        work.turn(name, make)
    before, started = soak.state(), time.monotonic()
    with tqdm(total=options.threads * options.turns, desc=f"{options.threads} threads", unit="turn") as progress:
        work.turn_over = progress.update
        try:
            work.run(ways, options.threads, options.turns)
        except KeyboardInterrupt:
            print("\nstopped; what was seen until then:", file=sys.stderr)
    changed = soak.changes(before, soak.state())
    print(table(work, ways, changed, time.monotonic() - started))
    return int(bool(work.faults or changed))


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
