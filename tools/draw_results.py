"""Draw the README's picture, docs/comparison.png, from the table of recipes in docs/results.md.

    python tools/draw_results.py

It is the picture that a comparison's `.plot()` gives, by the same function, of the recipes that are named here.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cpuinfer_helpers.display import bar_chart  # noqa: E402

RESULTS = ROOT / "docs" / "results.md"
PICTURE = ROOT / "docs" / "comparison.png"
TITLE = "BERT-base question answering, one row of 384 tokens, AMD EPYC (Zen 5), two cores"
UNIT = "milliseconds a call (median, 95% interval)"
# The reference, tracing by itself, and the fastest of each precision.
SHOWN = (
    "eager-fp32",
    "torchscript-fp32",
    "ipex-fp32",
    "onednn-graph-fp32",
    "openvino-fp32",
    "eager-bf16",
    "ipex-bf16",
    "onednn-graph-bf16",
    "openvino-bf16",
    "openvino-int8",
    "ipex-int8",
)
# | `name` | 376 [368, 387], 1.01x | ...: the first shape, whose best times are in bold.
ROW = re.compile(
    r"^\| `(?P<name>[\w-]+)` \| \**(?P<median>[\d.]+)\** \[(?P<low>[\d.]+), (?P<high>[\d.]+)\]", re.MULTILINE
)


class Time(NamedTuple):
    """Milliseconds of one call, with the ends of the interval."""

    median: float
    low: float
    high: float


def times(text: str) -> dict[str, Time]:
    """The times of every recipe in the table, for the first shape."""
    table = text[text.index("\n## Every recipe\n") :].partition("\n## ")[2].partition("\n## ")[0]
    return {row["name"]: Time(*(float(row[key]) for key in ("median", "low", "high"))) for row in ROW.finditer(table)}


def main() -> int:
    found = times(RESULTS.read_text(encoding="utf-8"))
    medians, lows, highs = zip(*(found[name] for name in SHOWN), strict=True)
    chart = bar_chart(SHOWN, medians, lows, highs, unit=UNIT, title=TITLE)
    chart.savefig(PICTURE, dpi=100, metadata={"Software": None})
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
