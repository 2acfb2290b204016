"""IPEX prepared in other ways than its recipes do it, to see what each choice fuses and what it costs.

None of them is in the registry: hand them to ``compare`` or ``fusion_reports`` as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from cpuinfer_helpers.errors import RecipeError
from cpuinfer_helpers.interface.adapter import named_inputs
from cpuinfer_helpers.interface.copies import attention_of
from cpuinfer_helpers.recipes.backends import ipex
from cpuinfer_helpers.recipes.base import Build, Recipe, Request
from cpuinfer_helpers.tracing.trace import frozen_trace

# FP32's linear layers by oneDNN, which has fused ones, in place of MKL, which has none.
_ONEDNN_LINEAR = {"auto_kernel_selection": True}


def _eager_attention_fp32(request: Request) -> Build:
    model = ipex.packed(ipex.own_copy(request.model, "eager"), **_ONEDNN_LINEAR)
    return ipex.build_of(request, frozen_trace(model, request.inputs, random_is_constant=request.verified), model)


def _mkl_linear_fp32(request: Request) -> Build:
    model = ipex.packed(ipex.own_copy(request.model, "eager"))
    return ipex.build_of(request, frozen_trace(model, request.inputs, random_is_constant=request.verified), model)


def _not_frozen_fp32(request: Request) -> Build:
    model = ipex.packed(ipex.own_copy(request.model, "eager"), **_ONEDNN_LINEAR)
    with torch.no_grad():
        module = torch.jit.trace(
            named_inputs(model, request.inputs),
            example_kwarg_inputs=request.inputs.tensors,
            check_trace=False,
            strict=False,
        )
    build = ipex.build_of(request, (module, ()), model)
    return replace(build, runs="ScriptModule of IPEX, not frozen", frozen=False)


def _flash_mha_bf16(request: Request) -> Build:
    # The recipe records the way to the heads as a transpose, which this pattern does not match.
    return _under_autocast(request, "eager")


def _sdpa_bf16(request: Request) -> Build:
    return _under_autocast(request, "sdpa")


def _under_autocast(request: Request, attention: str) -> Build:
    model = ipex.packed(ipex.own_copy(request.model, attention), dtype=torch.bfloat16)
    # As in the recipe: around the model, and without a cache whose entries would become constants of the graph.
    model.forward = torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False)(model.forward)
    build = ipex.build_of(request, frozen_trace(model, request.inputs, random_is_constant=request.verified), model)
    if "bfloat16" not in build.linear_dtypes:
        raise RecipeError(f"no linear layer ran in BF16, so this would be no BF16 model: {dict(build.linear_dtypes)}")
    return build


def _untraced_fp32(request: Request) -> Build:
    return _untraced(request, ipex.packed(ipex.own_copy(request.model, "sdpa"), **_ONEDNN_LINEAR))


def _untraced_bf16(request: Request) -> Build:
    model = ipex.packed(ipex.own_copy(request.model, "sdpa"), dtype=torch.bfloat16)
    model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)
    return _untraced(request, model)


def _untraced(request: Request, model: torch.nn.Module) -> Build:
    adapter = named_inputs(model, request.inputs)
    kernels = ipex.kernels(adapter, request.inputs.tensors)
    if not kernels:
        raise RecipeError("no kernel of IPEX ran: it has nothing to offer to this model")
    return Build(
        adapter.run_model,
        runs="the eager model with IPEX's kernels",
        evidence={"IPEX kernels": ipex.counts_text(kernels)},
        attention=attention_of(model),
    )


def _variant(name: str, summary: str, build: Callable[[Request], Build]) -> Recipe:
    precision = name.rpartition("-")[2]
    usual = next(recipe for recipe in ipex.RECIPES if recipe.precision == precision)
    return replace(usual, name=name, summary=summary, build=build)


IPEX_VARIANTS = {
    variant.name: variant
    for variant in (
        _variant(
            "ipex-eager-attention-fp32", "oneDNN linear layers, eager attention: all fusions", _eager_attention_fp32
        ),
        _variant("ipex-mkl-linear-fp32", "the same with IPEX's default linear layers, MKL's", _mkl_linear_fp32),
        _variant("ipex-not-frozen-fp32", "oneDNN linear layers, eager attention, traced only", _not_frozen_fp32),
        _variant("ipex-flash-mha-bf16", "eager attention, fused into one operator", _flash_mha_bf16),
        _variant("ipex-untraced-fp32", "oneDNN linear layers, PyTorch's own attention, no graph", _untraced_fp32),
        _variant("ipex-untraced-bf16", "BF16 weights and autocast, PyTorch's own attention, no graph", _untraced_bf16),
        _variant("ipex-sdpa-bf16", "PyTorch's own fused attention", _sdpa_bf16),
    )
}
