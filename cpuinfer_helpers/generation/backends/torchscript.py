"""One frozen trace that writes keys and values in place, with weights in FP32, FP16, BF16 or 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from cpuinfer_helpers import graph
from cpuinfer_helpers.errors import RecipeError
from cpuinfer_helpers.generation import linears
from cpuinfer_helpers.generation.layout import layout_of
from cpuinfer_helpers.generation.step import GenerationRecipe, StepBuild, StepRequest
from cpuinfer_helpers.generation.traced_step import trace_step
from cpuinfer_helpers.generation.weights import limit_of, weights_of
from cpuinfer_helpers.interface.copies import attention_of, cast_copy, shared_copy
from cpuinfer_helpers.machine.report import machine_report
from cpuinfer_helpers.recipes.base import SEVEN_BITS
from cpuinfer_helpers.recipes.tools.rewriting import pack_linears

_Make = Callable[[str, torch.nn.Module], torch.nn.Module]


def _build_fp32(request: StepRequest) -> StepBuild:
    _refuse_less(request.model, "FP32")
    model = shared_copy(request.model)
    linears.replace(model, lambda _, layer: _plain(layer, torch.float32))
    return _traced(request, model, torch.float32, "float32")


def _build_fp16w(request: StepRequest) -> StepBuild:
    _refuse_less(request.model, "FP32")
    model = shared_copy(request.model)
    _refuse_saturated(model)
    left = linears.replace(model, lambda _, layer: linears.Fp16Linear(layer))
    _refuse_left(model, left, "FP16")
    return _traced(request, model, torch.float32, "fp16")


def _build_int8(request: StepRequest) -> StepBuild:
    _refuse_less(request.model, "FP32")
    model = shared_copy(request.model)
    reduce_range = machine_report().int8_sums_overflow
    left = linears.replace(model, lambda _, layer: linears.Int8Linear(layer, reduce_range=reduce_range))
    _refuse_left(model, left, "8 bits")
    build = _traced(request, model, torch.float32, "int8")
    fewer = f"; of what is multiplied {SEVEN_BITS}" if reduce_range else ""
    return replace(build, compute=f"int8 by int8, a scale for each row{fewer}; the rest float32")


def _build_bf16(request: StepRequest) -> StepBuild:
    model = cast_copy(request.model, torch.bfloat16)
    linears.replace(model, lambda _, layer: _plain(layer, torch.bfloat16))
    build = _traced(request, model, torch.bfloat16, "bfloat16")
    # A plain BF16 product of one row reads its weight at half the speed of a packed one.
    packed = pack_linears(build.module)
    return replace(build, evidence={"linear layers": str(packed)})


def _plain(layer: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """The layer, or a plain one in the place of transformers' ``Conv1D``, whose weight lies the other way."""
    return layer if isinstance(layer, torch.nn.Linear) else linears.Linear(layer, dtype)


def _traced(request: StepRequest, model: torch.nn.Module, dtype: torch.dtype, stored: str) -> StepBuild:
    weights = weights_of(model)
    layout, limit = layout_of(cast_copy(request.model, dtype)), limit_of(request.model)
    step, warnings = trace_step(model, request.config, layout, limit, dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    return StepBuild(
        step=step,
        runs="ScriptModule, frozen",
        weights=weights.dtypes,
        compute=name,
        cache=name,
        attention=attention_of(model) or "the model's own",
        converted=weights.by_dtype.get(stored, 0),
        layers=weights.layers,
        weight_bytes=weights.read,
        graph_nodes=graph.node_counts(step.module.graph),
        warnings=warnings,
        module=step.module,
    )


def _refuse_less(model: torch.nn.Module, wanted: str) -> None:
    """Raise where the model's own weights have fewer bits than what is computed in."""
    less = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32, torch.float64}
    if less:
        names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in less))
        raise RecipeError(f"the model's own weights are {names}; call model.float() first for {wanted}")


def _refuse_saturated(model: torch.nn.Module) -> None:
    counts = {path: linears.saturated(layer) for path, layer in linears.linear_layers(model).items()}
    worst = {path: count for path, count in counts.items() if count}
    if worst:
        path, count = next(iter(worst.items()))
        raise RecipeError(f"FP16 has no number for {count} of the weights of {path}: they are beyond 65504")


def _refuse_left(model: torch.nn.Module, left: dict[str, str], kind: str) -> None:
    """Raise where fewer layers were converted than were asked for."""
    if left:
        path, reason = next(iter(left.items()))
        raise RecipeError(f"{len(left)} linear layers cannot have weights in {kind}: {path}, because {reason}")
    others = linears.other_matrices(model)
    if others:
        numbers = sum(p.numel() for p in others.values())
        raise RecipeError(
            f"{numbers:,} weights are in no linear layer and would stay as they are, the first ones in "
            f"{next(iter(others))}; this recipe knows linear layers only"
        )


RECIPES = (
    GenerationRecipe("torchscript-fp32", "one frozen trace that writes its cache in place", _build_fp32),
    GenerationRecipe("torchscript-fp16w", "the same with weights stored in FP16, computed in FP32", _build_fp16w),
    GenerationRecipe("torchscript-bf16", "the same with weights, products and cache in BF16", _build_bf16),
    GenerationRecipe("torchscript-int8", "the same with weights stored in 8 bits", _build_int8),
)
