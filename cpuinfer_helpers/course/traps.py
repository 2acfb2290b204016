"""Ways of writing text that go wrong without a word, each as a recipe of one's own that the package is asked about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cpuinfer_helpers.generation.backends.eager import EagerStep
from cpuinfer_helpers.generation.layout import layout_of
from cpuinfer_helpers.generation.linears import Int8Linear, linear_layers, put
from cpuinfer_helpers.generation.positions import attention_kinds, positions_of
from cpuinfer_helpers.generation.stateful import convert
from cpuinfer_helpers.generation.stateful_seen import cache_dtype
from cpuinfer_helpers.generation.stateful_step import StatefulStep
from cpuinfer_helpers.generation.step import GenerationRecipe, Step, StepBuild, StepRequest
from cpuinfer_helpers.generation.weights import limit_of, weights_of
from cpuinfer_helpers.interface.copies import cast_copy, shared_copy, with_attention
from cpuinfer_helpers.machine.signal_stack import signal_stack_kept
from cpuinfer_helpers.recipes.backends.openvino import settings
from cpuinfer_helpers.recipes.tools.quiet import libraries_quiet

AS_IT_COMES, TOLD = "asked for FP32", "told to keep FP32 too"


def openvino_steps(model: torch.nn.Module) -> dict[str, StatefulStep]:
    """One model, converted once and compiled twice: asked for FP32, and told in what to keep keys and values, too.

    Parameters
    ----------
    model
        A causal language model of transformers' in FP32. It is left as it was.
    """
    import openvino

    kinds = attention_kinds(model.config.get_text_config(decoder=True))
    with signal_stack_kept(), libraries_quiet():
        copied = with_attention(cast_copy(model, torch.float32), "sdpa")
        converted, _ = convert(copied, kinds, layout_of(model))
        asked = settings("f32")
        ways = {AS_IT_COMES: asked, TOLD: {**asked, "KV_CACHE_PRECISION": "f32"}}
        compiled = {name: openvino.Core().compile_model(converted, "CPU", way) for name, way in ways.items()}
    return {name: StatefulStep(one, kinds, torch.float32, limit_of(model)) for name, one in compiled.items()}


def logits_in_pieces(step: Step, ids: torch.Tensor) -> torch.Tensor:
    """Logits of every token of texts, the first half fed at once and the rest one by one, as a text is written.

    Parameters
    ----------
    step
        What is fed.
    ids
        Texts without padding, (rows, tokens).
    """
    rows, length = ids.shape
    mask, state, seen = torch.ones_like(ids), step.new_state(rows, length), []
    for new in (length // 2, *[1] * (length - length // 2)):
        start, end = state.length, state.length + new
        seen.append(step.feed(ids[:, start:end], mask[:, :end], positions_of(mask[:, :end], new), state, last=None))
    return torch.cat(seen, dim=1)


def _openvino_build(request: StepRequest) -> StepBuild:
    step, weights, layout = (
        openvino_steps(request.model)[AS_IT_COMES],
        weights_of(request.model),
        layout_of(request.model),
    )
    return StepBuild(
        step=step,
        runs="OpenVINO compiled model with variables",
        weights=weights.dtypes,
        compute="float32",
        cache=cache_dtype(step),
        attention="OpenVINO's",
        converted=weights.layers,
        layers=weights.layers,
        weight_bytes=weights.read,
        token_bytes=layout.numbers,
    )


def _linears_build(request: StepRequest) -> StepBuild:
    model = shared_copy(request.model)
    for path, layer in linear_layers(model).items():
        if isinstance(layer, torch.nn.Linear):
            put(model, path, Int8Linear.of(layer.weight.detach(), layer.bias))
    weights = weights_of(model)
    return StepBuild(
        step=EagerStep(model, limit_of(request.model)),
        runs="the eager model, step by step",
        weights=weights.dtypes,
        compute="float32",
        cache="float32",
        attention="the model's own",
        converted=weights.by_dtype.get("int8", 0),
        layers=weights.layers,
        weight_bytes=weights.read,
        token_bytes=layout_of(model).bytes_in(torch.float32),
    )


OPENVINO_AS_IT_COMES = GenerationRecipe(
    "openvino-asked-fp32", "OpenVINO asked for FP32 and for nothing else", _openvino_build, ("openvino>=2024.4",)
)
LINEARS_ONLY = GenerationRecipe("linears-only-int8", "8 bits for every nn.Linear, found by its class", _linears_build)


def continued(
    model: Any, tokenizer: Any, prompts: Sequence[str], side: str | None = None, **settings: Any
) -> list[str]:
    """What a model writes after prompts: one by one, or all at once with padding on a side of them.

    Parameters
    ----------
    model, tokenizer
        Of transformers'.
    prompts
        Texts.
    side
        ``left`` or ``right``; each text alone, without padding, unless given.
    **settings
        Of ``generate()``.
    """
    batches = [prompts] if side else [[prompt] for prompt in prompts]
    texts = []
    for batch in batches:
        inputs = padded(tokenizer, batch, side or "left")
        tokens = model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]
        texts += [tokenizer.decode(row, skip_special_tokens=True).strip() for row in tokens]
    return texts


def padded(tokenizer: Any, prompts: Sequence[str], side: str) -> dict[str, torch.Tensor]:
    """Token ids and mask of prompts, with padding on a side of the shorter ones."""
    return dict(tokenizer(list(prompts), padding=True, padding_side=side, return_tensors="pt"))
