"""Real tracing, measuring and choosing for transformer inference on a CPU.

Nothing is called traced, fused, BF16 or faster until it has been seen to be so, on this machine, with the same answers.

What stands here is what is called, made, loaded or caught; ``README.md`` beside this file says what each name is for. A
class that is only returned is documented in the room that it comes from.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from cpuinfer_helpers.bettertransformer import fast_path_use, reverse_bettertransformer, to_bettertransformer
from cpuinfer_helpers.compare import (
    Comparison,
    compare,
    compare_mixed_lengths,
    fusion_reports,
    realistic_lengths,
    score_recipes,
)
from cpuinfer_helpers.course.families import compare_families
from cpuinfer_helpers.errors import (
    ArtifactError,
    BuildError,
    CpuInferError,
    DataError,
    InputError,
    RecipeError,
    TraceError,
)
from cpuinfer_helpers.errors import log_as_printable as _log_as_printable
from cpuinfer_helpers.fusion import fusion_report
from cpuinfer_helpers.interface.flops import count_flops
from cpuinfer_helpers.machine.report import machine_report
from cpuinfer_helpers.machine.switches import freed_memory_kept, threads
from cpuinfer_helpers.machine.versions import OWN_VERSION as _OWN_VERSION
from cpuinfer_helpers.optimize import OptimizedModel, load_optimized, optimize
from cpuinfer_helpers.recipes import PreparedModel, Recipe, get_recipe, list_recipes, prepare
from cpuinfer_helpers.saving.kinds import loaded_by as _loaded_by
from cpuinfer_helpers.tasks import load_model, load_task
from cpuinfer_helpers.timing.measuring import measure, measure_interleaved, seconds_of
from cpuinfer_helpers.timing.roofline import roofline
from cpuinfer_helpers.tracing.trace import TracedModel, trace_model

if TYPE_CHECKING:
    from cpuinfer_helpers.generation import (
        Generator,
        compare_generators,
        list_generation_recipes,
        measure_generation,
        optimize_generator,
        prepare_generator,
    )
    from cpuinfer_helpers.trainer import JitTrainer, JitTrainingArguments, verify_trainer

__version__ = _OWN_VERSION

_loaded_by("cpuinfer_helpers.generation.loading", kind="cpuinfer-generator")
# Of this package only; a filter of a logger sees its own records.
logging.getLogger(__name__).addFilter(_log_as_printable)

__all__ = [
    "ArtifactError",
    "BuildError",
    "Comparison",
    "CpuInferError",
    "DataError",
    "Generator",
    "InputError",
    "JitTrainer",
    "JitTrainingArguments",
    "OptimizedModel",
    "PreparedModel",
    "Recipe",
    "RecipeError",
    "TraceError",
    "TracedModel",
    "compare",
    "compare_families",
    "compare_generators",
    "compare_mixed_lengths",
    "count_flops",
    "fast_path_use",
    "freed_memory_kept",
    "fusion_report",
    "fusion_reports",
    "get_recipe",
    "list_generation_recipes",
    "list_recipes",
    "load_model",
    "load_optimized",
    "load_task",
    "machine_report",
    "measure",
    "measure_generation",
    "measure_interleaved",
    "optimize",
    "optimize_generator",
    "prepare",
    "prepare_generator",
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
# They are made of classes of transformers', whose import takes seconds and is not for those who only measure.
_OF_THE_TRAINER = ("JitTrainer", "JitTrainingArguments", "verify_trainer")
_OF_GENERATION = (
    "Generator",
    "compare_generators",
    "list_generation_recipes",
    "measure_generation",
    "optimize_generator",
    "prepare_generator",
)


def __getattr__(name: str) -> Any:
    if name in _OF_THE_TRAINER:
        from cpuinfer_helpers import trainer as room
    elif name in _OF_GENERATION:
        from cpuinfer_helpers import generation as room
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(room, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
