"""Plain TorchScript: trace and freeze, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers import graph
from cpuinfer_helpers.artifacts import MODULE_FILE
from cpuinfer_helpers.recipes.base import Build, Recipe, Request, Stored
from cpuinfer_helpers.recipes.copies import attention_of
from cpuinfer_helpers.serialised import read_module, write_module
from cpuinfer_helpers.signature import BoundInputs
from cpuinfer_helpers.tracing import frozen_trace


def _build_fp32(request: Request) -> Build:
    return build_of_trace(*frozen_trace(request.model, request.inputs), request.model, request.inputs)


def _build_bf16(request: Request) -> Build:
    # Autocast's weight cache would become constants of the graph (FACTS section 3, item 6).
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        traced = frozen_trace(request.model, request.inputs)
    # Looked at outside of autocast, as calls run it: TorchScript makes another plan for calls under autocast.
    return build_of_trace(*traced, request.model, request.inputs)


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
