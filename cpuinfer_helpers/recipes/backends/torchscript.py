"""Plain TorchScript: trace and freeze, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers import graph
from cpuinfer_helpers.interface.copies import attention_of, untouched
from cpuinfer_helpers.interface.inputs import BoundInputs
from cpuinfer_helpers.recipes.base import Build, Recipe, Request, Stored
from cpuinfer_helpers.saving.folders import MODULE_FILE
from cpuinfer_helpers.saving.tensors import read_module, write_module
from cpuinfer_helpers.tracing.trace import frozen_trace
from cpuinfer_helpers.tracing.traceable import without_loops_over_experts
from cpuinfer_helpers.verification.variations import with_padding

_Trace = tuple[torch.jit.ScriptModule, tuple[str, ...]]


def _build_fp32(request: Request) -> Build:
    return _build(request, _traced)


def _build_bf16(request: Request) -> Build:
    return _build(request, _traced_under_autocast)


def _build(request: Request, trace: Callable[..., _Trace], *, padded: bool = False) -> Build:
    model = untouched(request.model)
    if model is not request.model:
        without_loops_over_experts(model)
    build = build_of_trace(*trace(request, model, padded), model, request.inputs)
    if padded:
        return replace(build, evidence={**build.evidence, "traced with": "padding in the example"})
    if with_padding(request.config, request.inputs.tensors) is None:
        return build
    return replace(build, otherwise=lambda: _build(request, trace, padded=True))


def _traced(request: Request, model: torch.nn.Module, padded: bool) -> _Trace:
    return frozen_trace(model, request.inputs, padded=padded, random_is_constant=request.verified)


def _traced_under_autocast(request: Request, model: torch.nn.Module, padded: bool) -> _Trace:
    # With autocast's cache of weights the trace would hold their casts as constants. The graph is looked at outside of
    # autocast, as calls run it: TorchScript makes another plan for calls under autocast.
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        return _traced(request, model, padded)


def build_of_trace(
    module: torch.jit.ScriptModule, warnings: tuple[str, ...], model: torch.nn.Module, inputs: BoundInputs
) -> Build:
    """What a backend that ends in a frozen trace hands back, with what was seen of it on the example."""
    ran = graph.executed_graph(module, inputs.tensors)
    return Build(
        answer=lambda tensors: module(**tensors),
        runs="ScriptModule, frozen",
        module=module,
        attention=attention_of(model),
        frozen=True,
        graph_nodes=graph.node_counts(ran),
        weight_dtypes=graph.weight_dtypes(module, ran),
        linear_dtypes=graph.linear_dtypes(module, inputs.tensors),
        warnings=warnings,
    )


def export_trace(request: Request, build: Build, folder: Path) -> dict[str, Any]:
    """Write the ScriptModule that runs."""
    write_module(build.module, folder / MODULE_FILE)
    return {}


def load_trace(folder: Path) -> torch.jit.ScriptModule:
    """Read what :func:`export_trace` wrote."""
    return read_module(folder / MODULE_FILE)


def _restore(stored: Stored, folder: Path) -> Build:
    module = load_trace(folder)
    return Build(answer=lambda tensors: module(**tensors), runs="ScriptModule, frozen", module=module)


RECIPES = (
    Recipe("torchscript-fp32", "traced and frozen", _build_fp32, export=export_trace, restore=_restore),
    Recipe(
        "torchscript-bf16", "traced under BF16 autocast and frozen", _build_bf16, export=export_trace, restore=_restore
    ),
)
