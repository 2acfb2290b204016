"""Prepare every model class that transformers' auto classes know for thirteen tasks, and compare it with the model.

    python tools/sweep.py [--fresh] [--workers N] [--tasks TASK ...] [--recipes RECIPE ...] [--only NAME ...] [--sample]
                          [--every N] [--output FILE]

Each class is traced and prepared by each recipe, or refused with a reason. `make sweep` runs it, on the guide stack,
in about an hour on two cores. It goes on where it was stopped; results are kept under build/sweep/.
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
from sweep.classes import SPEECH, TASKS, WRITING_TASKS, Case, all_cases  # noqa: E402
from sweep.sample import SAMPLE  # noqa: E402
from sweep.trial import RECIPES  # noqa: E402
from sweep.writing import WRITING  # noqa: E402

from cpuinfer_helpers.saving.folders import write_text  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    started = time.monotonic()
    here = report.versions()
    path = options.output or ROOT / "build" / "sweep" / f"transformers-{here['transformers']}.jsonl"
    if options.fresh:
        path.unlink(missing_ok=True)
    results = report.Results(path, here)
    jobs = chosen(options)
    import_everything()
    try:
        run(jobs, results, options.workers)
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on from here ({path})", file=sys.stderr)
        return 130
    rows = [results.found[case.name, case.task, recipe] for case, recipes in jobs for recipe in recipes]
    minutes = (time.monotonic() - started) / 60
    text = f"{report.tables(rows, here)}\n\n{minutes:.1f} minutes for what was left to do"
    print(text)
    if not _is_partial(options):
        keep(
            path,
            {"summary": report.summary(rows), "versions": here, "minutes": round(minutes, 1), "results": rows},
            text,
        )
    return int(any(row["outcome"] in report.NEVER for row in rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make sweep", description=__doc__.splitlines()[0])
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--workers", type=int, default=2, help="classes at a time (default 2)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", choices=list(TASKS), help="only these tasks")
    parser.add_argument(
        "--recipes",
        nargs="+",
        metavar="RECIPE",
        choices=RECIPES,
        default=list(RECIPES),
        help="only these (default all)",
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these classes")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth class of each task")
    parser.add_argument("--sample", action="store_true", help="only the sample that make test runs")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to keep results, as JSON lines")
    return parser


def _is_partial(options: argparse.Namespace) -> bool:
    less = options.only or options.sample or options.output or options.tasks or options.every > 1
    return bool(less) or set(options.recipes) != set(RECIPES)


def keep(path: Path, numbers: dict, text: str) -> None:
    """Write what a whole sweep found beside its results."""
    write_text(path.with_suffix(".json"), json.dumps(numbers, indent=1))
    write_text(path.with_suffix(".txt"), text + "\n")


def chosen(options: argparse.Namespace) -> list[workers.Job]:
    """Which classes, each with the recipes that it is prepared by."""
    cases = [case for case in all_cases() if not options.tasks or case.task in options.tasks]
    if options.sample:
        return [(case, tuple(SAMPLE[case.name])) for case in cases if case.name in SAMPLE]
    if options.only:
        unknown = [name for name in options.only if name not in {case.name for case in cases}]
        if unknown:
            raise SystemExit(f"{unknown[0]!r} is not a class that the auto classes know here for these tasks")
        cases = [case for case in cases if case.name in options.only]
    return [(case, _recipes_for(case, options.recipes)) for case in _every(cases, options.every)]


def _recipes_for(case: Case, wanted: Sequence[str]) -> tuple[str, ...]:
    """Those that are wanted; only some models write, and of those for speech nothing else is tried."""
    if case.task == SPEECH:
        return tuple(name for name in wanted if name == WRITING)
    return tuple(name for name in RECIPES if name in wanted and (name != WRITING or case.task in WRITING_TASKS))


def _every(cases: Sequence[Case], step: int) -> list[Case]:
    by_task = {task: [case for case in cases if case.task == task] for task in TASKS}
    return [case for of_task in by_task.values() for case in of_task[::step]]


def import_everything() -> None:
    """What every class needs, once, before the processes are forked."""
    import safetensors.torch  # noqa: F401
    import torch._dynamo
    import tqdm.auto  # noqa: F401
    import transformers.modeling_utils  # noqa: F401

    import cpuinfer_helpers  # noqa: F401

    torch.set_num_threads(1)
    gc.freeze()


def run(jobs: Sequence[workers.Job], results: report.Results, count: int) -> None:
    """Run what has no result yet, and tell of each as it comes."""
    left = [(case, _missing(case, recipes, results)) for case, recipes in jobs]
    left = [(case, recipes) for case, recipes in left if recipes]
    total = sum(len(recipes) for _, recipes in left)
    for number, result in enumerate(workers.run_all(left, count), 1):
        results.add(result)
        cause = report.cause(result)
        text = f"[{number}/{total}] {result.get('seconds', 0):5.1f} s {result['name']}, {result['recipe']}"
        print(f"{text}: {result['outcome']}" + (f": {cause[:150]}" if cause else ""), file=sys.stderr, flush=True)


def _missing(case: Case, recipes: Sequence[str], results: report.Results) -> tuple[str, ...]:
    return tuple(recipe for recipe in recipes if (case.name, case.task, recipe) not in results.found)


if __name__ == "__main__":
    sys.exit(main())
