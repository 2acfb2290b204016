"""Every recipe and peer on BERT-base question answering: the tables that the figures in docs/results.md come from.

`make bench` runs it. It takes about an hour on two cores; --recipes and --shapes make it shorter.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cpuinfer_helpers as cpu  # noqa: E402
from cpuinfer_helpers.compare import MixedLengths  # noqa: E402
from cpuinfer_helpers.display import Table  # noqa: E402

SHAPES = ("1x384", "1x128", "8x384")
PEERS = ("openvino", "onnxruntime", "compile")
# (precision, peer, largest share of the peer's time that the best of our own recipes may take)
TARGETS = (
    ("fp32", "openvino-fp32", 1.00),
    ("fp32", "onnxruntime-fp32", 0.90),
    ("fp32", "compile-fp32", 0.50),
    ("bf16", "openvino-bf16", 1.00),
    ("int8", "openvino-int8", 0.95),
)
SMALLEST_SHARE_OF_BF16_RATE = 85.0
SMALLEST_GAIN_OF_MIXED_LENGTHS = 1.8


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    output = ROOT / "build"
    output.mkdir(exist_ok=True)
    print(cpu.machine_report(), flush=True)
    task = cpu.load_task("question-answering")
    recipes = options.recipes.split(",") if options.recipes else None
    calibration = task.calibration_inputs(64)
    for shape in options.shapes.split(","):
        batch, length = (int(part) for part in shape.split("x"))
        comparison = cpu.compare(
            task.model, task.inputs(batch, length), recipes, calibration=calibration, budget_s=options.budget
        )
        print(f"\n## Batch {batch}, {length} tokens\n{comparison}\n\n{ratios(comparison)}", flush=True)
        comparison.save(output / f"bench-{shape}.json")
    if not options.no_mix:
        mixed = cpu.compare_mixed_lengths(task, recipes, calibration=calibration, budget_s=options.budget / 2)
        print(f"\n## Mixed lengths\n{mixed}\n\n{_mixed_targets(mixed)}", flush=True)
        (output / "bench-mixed.json").write_text(json.dumps(mixed.to_dict(), indent=1), encoding="utf-8")
    if not options.no_families:
        families = cpu.compare_families()
        print(f"\n## Model families\n{families}\n\n{families.benefits()}", flush=True)
    if not options.no_scores:
        scores = cpu.score_recipes(task, recipes)
        print(f"\n## Answers\n{scores}", flush=True)
    return 0


def ratios(comparison: cpu.Comparison) -> Table:
    """The best of our own recipes against each peer at its precision."""
    rows = []
    for precision, peer, limit in TARGETS:
        best = _best_of_ours(comparison, precision)
        if best is None or not _ran(comparison, peer):
            rows.append((precision, best or "none ran", peer, "", f"{limit:.2f}", "not measured"))
            continue
        # Both ratios are against the reference of the same rounds, so that groups do not matter.
        share = comparison.rows[peer].ratio / comparison.rows[best].ratio
        rows.append((precision, best, peer, f"{share:.2f}", f"{limit:.2f}", "reached" if share <= limit else "missed"))
    best = _best_of_ours(comparison, "bf16")
    percent = comparison.rows[best].roofline_percent if best else None
    if percent is not None:
        verdict = "reached" if percent >= SMALLEST_SHARE_OF_BF16_RATE else "missed"
        rows.append(("bf16", best, "measured rate of products", f"{percent:.0f}%", "85%", verdict))
    columns = ("precision", "our best", "against", "its time is", "at most (rate: at least)", "target")
    return Table(columns, tuple(rows), title="Our best recipe's time as a share of each peer's", numeric=columns[3:5])


def _mixed_targets(mixed: MixedLengths) -> Table:
    rows = tuple(
        (name, f"{row.gain:.2f}x", "reached" if row.gain >= SMALLEST_GAIN_OF_MIXED_LENGTHS else "missed")
        for name, row in mixed.rows.items()
        if row.gain == row.gain
    )
    return Table(("recipe", "gain", f"target {SMALLEST_GAIN_OF_MIXED_LENGTHS}x"), rows, numeric=("gain",))


def _best_of_ours(comparison: cpu.Comparison, precision: str) -> str | None:
    ours = [
        name
        for name in comparison.rows
        if _ran(comparison, name) and name.endswith(f"-{precision}") and not name.startswith(PEERS)
    ]
    return min(ours, key=lambda name: comparison.rows[name].timing.median, default=None)


def _ran(comparison: cpu.Comparison, name: str) -> bool:
    return name in comparison.rows and comparison.rows[name].successful


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--recipes", help="names with commas between them; all unless given")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="batch x length, with commas between them")
    parser.add_argument("--budget", type=float, default=8.0, help="seconds of measuring for each recipe and shape")
    parser.add_argument("--no-families", action="store_true", help="leave out the model families")
    parser.add_argument("--no-mix", action="store_true", help="leave out the mix of lengths")
    parser.add_argument("--no-scores", action="store_true", help="leave out the task's metric")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
