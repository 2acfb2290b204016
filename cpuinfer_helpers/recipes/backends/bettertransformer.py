"""BetterTransformer: encoder layers on PyTorch's fused kernel, padding left out by nested tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import torch

from cpuinfer_helpers.bettertransformer import FastEncoderLayer, FastPathUse, fast_path_use, to_bettertransformer
from cpuinfer_helpers.errors import RecipeError
from cpuinfer_helpers.interface.adapter import named_inputs
from cpuinfer_helpers.interface.copies import cast_copy
from cpuinfer_helpers.machine.report import no_bf16_kernels
from cpuinfer_helpers.recipes.base import Build, Recipe, Request, Tensors

_MASK = "attention_mask"


def _build_fp32(request: Request) -> Build:
    return _build(request, torch.float32, "FP32")


def _build_bf16(request: Request) -> Build:
    return _build(request, torch.bfloat16, "BF16")


def _build(request: Request, dtype: torch.dtype, precision: str) -> Build:
    converted = to_bettertransformer(request.model)
    # A model in half precision keeps it where FP32 was asked for, as it does in the reference.
    if dtype is not torch.float32:
        converted = cast_copy(converted, dtype)
    run_model = named_inputs(converted, request.inputs).run_model

    def answer(tensors: dict[str, torch.Tensor]) -> Tensors:
        if dtype is torch.float32:
            return run_model(tensors)
        return run_model({name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()})

    example = dict(request.inputs.tensors)
    plain = _seen(converted, answer, example)
    padded = _padded(example)
    evidence = {
        "fast path, example": str(plain),
        "fast path, padded": str(_seen(converted, answer, padded)) if padded else "the example has no attention mask",
    }
    weights = Counter(str(weight.dtype).removeprefix("torch.") for weight in converted.parameters())
    return Build(
        answer,
        runs=f"PyTorch's fast path for encoder layers, {precision}",
        evidence=evidence,
        attention="in the fast path",
        weight_dtypes=dict(weights.most_common()),
    )


def _seen(
    converted: torch.nn.Module,
    answer: Callable[[dict[str, torch.Tensor]], Tensors],
    inputs: dict[str, torch.Tensor],
) -> FastPathUse:
    """What the profiler saw of a call; every call of an encoder layer must have run the fused kernel."""
    calls: list[str] = []
    layers = {name: part for name, part in converted.named_modules() if isinstance(part, FastEncoderLayer)}
    hooks = [layer.register_forward_hook(lambda *_, name=name: calls.append(name)) for name, layer in layers.items()]
    try:
        use = fast_path_use(lambda **tensors: answer(tensors), inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if use.layers != len(calls) or len(set(calls)) != len(layers):
        raise RecipeError(
            f"the profiler saw {use.layers} layers on the fast path, for {len(calls)} calls of the model's "
            f"{len(layers)} encoder layers"
        )
    return use


def _padded(example: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """The example with the second half of its last row padded; None where there is no mask to say so."""
    mask = example.get(_MASK)
    if mask is None or mask.dim() != 2 or mask.shape[1] < 2:
        return None
    mask = torch.ones_like(mask)
    mask[-1, mask.shape[1] // 2 :] = 0
    return {**example, _MASK: mask}


def _no_fast_path() -> str | None:
    if torch.backends.mha.get_fastpath_enabled():
        return None
    return "the fast path is switched off: call torch.backends.mha.set_fastpath_enabled(True)"


RECIPES = (
    Recipe(
        "bettertransformer-fp32",
        "encoder layers on PyTorch's fused kernel, padding left out",
        _build_fp32,
        obstacle=_no_fast_path,
    ),
    Recipe(
        "bettertransformer-bf16",
        "the same with weights and activations in BF16",
        _build_bf16,
        obstacle=lambda: _no_fast_path() or no_bf16_kernels(),
    ),
)
