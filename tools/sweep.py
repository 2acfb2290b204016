"""Trace every model class that transformers' auto classes know for five tasks, or have it refused with a reason.

    python tools/sweep.py [--fresh] [--workers N] [--only NAME ...] [--sample] [--output FILE]

`make sweep` runs it, on the guide stack, in under 25 minutes on two cores. It goes on where it was stopped; results
are kept under build/sweep/.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# One thread for each class, and none started before the processes are forked.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from sweep import report, workers  # noqa: E402
from sweep.classes import all_cases  # noqa: E402
from sweep.sample import SAMPLE  # noqa: E402

from cpuinfer_helpers.artifacts import write_text  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make sweep", description=__doc__.splitlines()[0])
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--workers", type=int, default=2, help="classes at a time (default 2)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these classes")
    parser.add_argument("--sample", action="store_true", help="only the sample that make test runs")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to keep results, as JSON lines")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    here = report.versions()
    path = options.output or ROOT / "build" / "sweep" / f"transformers-{here['transformers']}.jsonl"
    if options.fresh:
        path.unlink(missing_ok=True)
    results = report.Results(path, here)
    cases = chosen(options)
    import_everything()
    try:
        run(cases, results, options.workers)
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on from here ({path})", file=sys.stderr)
        return 130
    rows = [results.found[case.name] for case in cases]
    minutes = (time.monotonic() - started) / 60
    text = f"{report.tables(rows, here)}\n\n{minutes:.1f} minutes for what was left to do"
    print(text)
    if not (options.only or options.sample or options.output):
        summary = {**report.summary(rows), "versions": here, "minutes": round(minutes, 1), "results": rows}
        write_text(path.with_suffix(".json"), json.dumps(summary, indent=1))
        write_text(path.with_suffix(".txt"), text + "\n")
    return int(any(row["outcome"] in report.NEVER for row in rows))


def chosen(options: argparse.Namespace) -> list:
    cases = all_cases()
    names = options.only or (SAMPLE if options.sample else None)
    if names is None:
        return cases
    known = {case.name for case in cases}
    unknown = [name for name in options.only or () if name not in known]
    if unknown:
        raise SystemExit(f"{unknown[0]!r} is not a class that the auto classes know here")
    return [case for case in cases if case.name in names]


def import_everything() -> None:
    """What every class needs, once, before the processes are forked."""
    import safetensors.torch  # noqa: F401
    import torch._dynamo
    import tqdm.auto  # noqa: F401
    import transformers.modeling_utils  # noqa: F401

    import cpuinfer_helpers  # noqa: F401

    torch.set_num_threads(1)
    gc.freeze()


def run(cases: Sequence, results: report.Results, count: int) -> None:
    left = [case for case in cases if case.name not in results.found]
    for number, result in enumerate(workers.run_all(left, count), 1):
        results.add(result)
        text = f"[{number}/{len(left)}] {result['seconds']:5.1f} s {result['name']}: {result['outcome']}"
        print(text + (f": {report.cause(result)[:150]}" if report.cause(result) else ""), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
