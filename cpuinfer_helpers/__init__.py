"""Real tracing, measuring and choosing for transformer inference on a CPU.

Nothing is called traced, fused, BF16 or faster until it has been seen to be so, on this machine, with the same answers.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from cpuinfer_helpers.bettertransformer import (
    FastPathUse,
    fast_path_use,
    reverse_bettertransformer,
    to_bettertransformer,
)
from cpuinfer_helpers.compare import (
    Comparison,
    FusionReports,
    MixedLengths,
    RecipeScores,
    compare,
    compare_mixed_lengths,
    fusion_reports,
    realistic_lengths,
    score_recipes,
)
from cpuinfer_helpers.course.families import FamilyComparison, compare_families
from cpuinfer_helpers.errors import (
    ArtifactError,
    BuildError,
    CpuInferError,
    DataError,
    InputError,
    RecipeError,
    TraceError,
    log_as_printable,
)
from cpuinfer_helpers.fusion import FusionReport, fusion_report
from cpuinfer_helpers.interface.flops import count_flops
from cpuinfer_helpers.machine.report import MachineReport, machine_report
from cpuinfer_helpers.machine.switches import freed_memory_kept, threads
from cpuinfer_helpers.optimize import OptimizedModel, load_optimized, optimize
from cpuinfer_helpers.receipts import Receipt
from cpuinfer_helpers.recipes import PreparedModel, Recipe, RecipeList, get_recipe, list_recipes, prepare
from cpuinfer_helpers.tasks import LoadedModel, Score, Task, load_model, load_task
from cpuinfer_helpers.timing.measuring import measure, measure_interleaved, seconds_of
from cpuinfer_helpers.timing.results import Roofline, Speedup, Timing, Timings
from cpuinfer_helpers.timing.roofline import roofline
from cpuinfer_helpers.tracing.trace import TracedModel, trace_model

if TYPE_CHECKING:
    from cpuinfer_helpers.trainer import JitTrainer, JitTrainingArguments, TrainerVerdict, verify_trainer

__version__ = "0.1.0"

# Of this package only; a filter of a logger sees its own records.
logging.getLogger(__name__).addFilter(log_as_printable)

__all__ = [
    "ArtifactError",
    "BuildError",
    "Comparison",
    "CpuInferError",
    "DataError",
    "FamilyComparison",
    "FastPathUse",
    "FusionReport",
    "FusionReports",
    "InputError",
    "JitTrainer",
    "JitTrainingArguments",
    "LoadedModel",
    "MachineReport",
    "MixedLengths",
    "OptimizedModel",
    "PreparedModel",
    "Receipt",
    "Recipe",
    "RecipeError",
    "RecipeList",
    "RecipeScores",
    "Roofline",
    "Score",
    "Speedup",
    "Task",
    "Timing",
    "Timings",
    "TraceError",
    "TracedModel",
    "TrainerVerdict",
    "compare",
    "compare_families",
    "compare_mixed_lengths",
    "count_flops",
    "fast_path_use",
    "freed_memory_kept",
    "fusion_report",
    "fusion_reports",
    "get_recipe",
    "list_recipes",
    "load_model",
    "load_optimized",
    "load_task",
    "machine_report",
    "measure",
    "measure_interleaved",
    "optimize",
    "prepare",
    "realistic_lengths",
    "reverse_bettertransformer",
    "roofline",
    "score_recipes",
    "seconds_of",
    "threads",
    "to_bettertransformer",
    "trace_model",
    "verify_trainer",
]
# They are classes of transformers', whose import takes seconds and is not for those who only measure.
_OF_THE_TRAINER = ("JitTrainer", "JitTrainingArguments", "TrainerVerdict", "verify_trainer")


def __getattr__(name: str) -> Any:
    if name not in _OF_THE_TRAINER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cpuinfer_helpers import trainer

    return getattr(trainer, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
