"""One frozen trace that writes keys and values in place, with weights in FP32, FP16, BF16 or 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers import graph
from cpuinfer_helpers.errors import RecipeError
from cpuinfer_helpers.generation import linears
from cpuinfer_helpers.generation.encoding.sources import has_encoder
from cpuinfer_helpers.generation.encoding.traced import trace_encoding_step
from cpuinfer_helpers.generation.layout import layout_of
from cpuinfer_helpers.generation.sensitivity import Made, Sensitivity, told
from cpuinfer_helpers.generation.step import GenerationRecipe, StepBuild, StepRequest, StoredStep
from cpuinfer_helpers.generation.stored import read_converted, write_converted
from cpuinfer_helpers.generation.traced_step import TracedStep, trace_step
from cpuinfer_helpers.generation.verification import MEAN_ERROR, sample_ids
from cpuinfer_helpers.generation.weights import Weights, limit_of, refuse_less_than_fp32, weights_of
from cpuinfer_helpers.interface.copies import attention_of, cast_copy, shared_copy
from cpuinfer_helpers.machine.report import machine_report, no_bf16_kernels
from cpuinfer_helpers.recipes.base import SEVEN_BITS
from cpuinfer_helpers.recipes.tools.rewriting import pack_linears

# Tokens on which it is seen which layers 8 bits are too few for.
_LOOKED_AT = 96
# What of the mean error that is allowed may be expected: first with few layers in more bits, then with more.
_SHARES_OF_ERROR = (0.7, 0.4)


def _fp32(model: torch.nn.Module) -> torch.nn.Module:
    refuse_less_than_fp32(model)
    copied = shared_copy(model)
    _without_conv1d(copied)
    return copied


def _fp16w(model: torch.nn.Module) -> torch.nn.Module:
    refuse_less_than_fp32(model)
    copied = shared_copy(model)
    _refuse_saturated(copied)
    _refuse_left(copied, linears.replace(copied, linears.Fp16Linear), "FP16")
    linears.replace_embedding(copied, linears.Fp16Embedding)
    return copied


def _int8(model: torch.nn.Module, kept: Made | None = None) -> torch.nn.Module:
    """With the layers that 8 bits are too few for kept in what they are said to be, by path."""
    refuse_less_than_fp32(model)
    copied, kept = shared_copy(model), kept or {}
    _refuse_left(copied, linears.replace(copied, linears.Int8Linear, kept), "8 bits")
    rows_in_16_bits = linears.Fp16Embedding in kept.values()
    linears.replace_embedding(copied, linears.Fp16Embedding if rows_in_16_bits else linears.Int8Embedding.of)
    return copied


def _bf16(model: torch.nn.Module) -> torch.nn.Module:
    copied = cast_copy(model, torch.bfloat16)
    _without_conv1d(copied)
    return copied


@dataclass(frozen=True)
class _Kind:
    """How a recipe stores weights, and what it computes in."""

    convert: Callable[[torch.nn.Module], torch.nn.Module]
    stored: str
    dtype: torch.dtype = torch.float32
    # What layers that are too sensitive may be stored in instead.
    besides: tuple[str, ...] = ()


_KINDS = {
    "fp32": _Kind(_fp32, "float32"),
    "fp16w": _Kind(_fp16w, "fp16"),
    "bf16": _Kind(_bf16, "bfloat16", torch.bfloat16),
    "int8": _Kind(_int8, "int8", besides=("fp16",)),
}


def _build(request: StepRequest) -> StepBuild:
    kind = _KINDS[request.precision]
    return _traced(kind, kind.convert(request.model), limit_of(request.model), request.prompts)


@dataclass(frozen=True)
class _Keeping(StepBuild):
    """With the layers that are not as the others, for saving."""

    kept: Made | None = None


def _build_int8(request: StepRequest) -> StepBuild:
    """All layers alike; where that is too far from the model's logits, with more bits for those that cost most."""
    build = _build(request)
    return build if has_encoder(request.model) else replace(build, otherwise=lambda: _kept_in_more_bits(request))


def _kept_in_more_bits(request: StepRequest) -> StepBuild:
    ids = sample_ids(request.config, request.prompts, _LOOKED_AT)[None]
    model = shared_copy(request.model)
    sensitivity = Sensitivity(model, ids, torch.ones_like(ids))

    def build(shares: Sequence[float]) -> StepBuild:
        kept = sensitivity.keeping(shares[0] * MEAN_ERROR["int8"])
        built = _traced(_KINDS["int8"], _int8(request.model, kept), limit_of(request.model), request.prompts)
        made = _Keeping(**{field.name: getattr(built, field.name) for field in fields(built)}, kept=kept)
        evidence = {**built.evidence, "layers with more bits": told(kept)} if kept else built.evidence
        return replace(made, evidence=evidence, otherwise=(lambda: build(shares[1:])) if shares[1:] else None)

    return build(_SHARES_OF_ERROR)


def _traced(kind: _Kind, model: torch.nn.Module, limit: int | None, prompts: Mapping[str, torch.Tensor]) -> StepBuild:
    if has_encoder(model):
        return _encoding_traced(kind, model, limit, prompts)
    weights, attention = weights_of(model), attention_of(model) or "the model's own"
    config = model.config.get_text_config(decoder=True)
    step, warnings = trace_step(model, config, layout_of(model), limit, dtype=kind.dtype)
    return _described(kind, step, weights, attention, warnings)


def _encoding_traced(
    kind: _Kind, model: torch.nn.Module, limit: int | None, prompts: Mapping[str, torch.Tensor]
) -> StepBuild:
    attention = attention_of(model) or "the model's own"
    # Before the last layer is wrapped for tracing, which is then counted once.
    stored = weights_of(model)
    made = trace_encoding_step(model, prompts, limit, dtype=kind.dtype)
    weights = replace(stored, read=weights_of(model, made.used).read)
    build = _described(kind, made.step, weights, attention, made.warnings)
    evidence = {**made.evidence, **_left_as_they_are(kind, model), **build.evidence}
    return replace(build, source_bytes=made.cross.bytes_in(kind.dtype), evidence=evidence)


def _left_as_they_are(kind: _Kind, model: torch.nn.Module) -> dict[str, str]:
    convolutions = _convolutions_read_once(model) if kind.stored in ("fp16", "int8") else {}
    if not convolutions:
        return {}
    numbers = sum(weight.numel() for weight in convolutions.values())
    how = f"float32, {len(convolutions)} of the encoder with {numbers:,} weights, read once for each source"
    return {"convolutions": how}


def _described(kind: _Kind, step: TracedStep, weights: Weights, attention: str, warnings: tuple[str, ...]) -> StepBuild:
    name = str(kind.dtype).removeprefix("torch.")
    build = StepBuild(
        step=step,
        runs="ScriptModule, frozen",
        weights=weights.dtypes,
        compute=name,
        cache=name,
        attention=attention,
        converted=sum(weights.by_dtype.get(stored, 0) for stored in (kind.stored, *kind.besides)),
        layers=weights.layers,
        weight_bytes=weights.read,
        token_bytes=step.layout.bytes_in(kind.dtype),
        graph_nodes=graph.node_counts(step.module.graph),
        warnings=warnings,
        module=step.module,
    )
    if kind.stored == "int8":
        fewer = f"; of what is multiplied {SEVEN_BITS}" if machine_report().int8_sums_overflow else ""
        return replace(build, compute=f"int8 by int8, a scale for each row{fewer}; the rest float32")
    if kind.dtype == torch.bfloat16 and no_bf16_kernels() is None:
        # A plain BF16 product of one row reads its weight at half the speed of a packed one.
        return replace(build, evidence={"linear layers": str(pack_linears(step.module))})
    return build


def _export(request: StepRequest, build: StepBuild, folder: Path) -> dict[str, Any]:
    kept = getattr(build, "kept", None)
    model = _int8(request.model, kept) if kept else _KINDS[request.precision].convert(request.model)
    return write_converted(model, folder)


def _restore(stored: StoredStep, folder: Path) -> StepBuild:
    model = read_converted(stored.details, stored.model_class, stored.config, folder)
    return _traced(_KINDS[stored.precision], model, stored.limit, stored.prompts)


def _without_conv1d(model: torch.nn.Module) -> None:
    """Plain linear layers in the place of transformers' ``Conv1D``, whose weights lie the other way."""
    for path, layer in linears.linear_layers(model).items():
        if not isinstance(layer, torch.nn.Linear) and linears.why_not_replaced(layer) is None:
            bias = None if layer.bias is None else layer.bias.detach()
            linears.put(model, path, linears.PlainLinear(linears.plain_weight(layer).detach(), bias))


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
    for name in _convolutions_read_once(model):
        others.pop(name, None)
    if others:
        numbers = sum(p.numel() for p in others.values())
        raise RecipeError(
            f"{numbers:,} weights are in no linear layer and would stay as they are, the first ones in "
            f"{next(iter(others))}; this recipe knows linear layers only"
        )


def _convolutions_read_once(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights of an encoder's convolutions by name: they stay as they are, and no token reads them."""
    if not has_encoder(model):
        return {}
    convolutions = [
        part for part in model.get_encoder().modules() if isinstance(part, (torch.nn.Conv1d, torch.nn.Conv2d))
    ]
    weights = {id(part.weight) for part in convolutions}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in weights}


def _recipe(precision: str, summary: str, **further: Any) -> GenerationRecipe:
    build = _build_int8 if precision == "int8" else _build
    return GenerationRecipe(f"torchscript-{precision}", summary, build, export=_export, restore=_restore, **further)


RECIPES = (
    _recipe("fp32", "one frozen trace that writes its cache in place"),
    _recipe("fp16w", "the same with weights stored in FP16, computed in FP32"),
    _recipe("bf16", "the same with weights, products and cache in BF16"),
    _recipe("int8", "the same with weights and products in 8 bits", in_8_bits=True),
)
