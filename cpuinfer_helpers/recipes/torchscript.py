"""Plain TorchScript: trace and freeze, nothing else."""

from __future__ import annotations

import torch

from cpuinfer_helpers.recipes.base import Build, Recipe, Request
from cpuinfer_helpers.recipes.copies import attention_of
from cpuinfer_helpers.tracing import TracedModel, trace_model


def _build_fp32(request: Request) -> Build:
    return build_of_trace(trace(request, request.model), request.model)


def _build_bf16(request: Request) -> Build:
    # Autocast's weight cache would become constants of the graph (FACTS section 3, item 6).
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        traced = trace(request, request.model)
    return build_of_trace(traced, request.model)


def trace(request: Request, model: torch.nn.Module) -> TracedModel:
    """Trace and freeze a model with the request's inputs; the recipe's own verification comes later."""
    inputs = {**request.inputs.tensors, **request.inputs.constants}
    return trace_model(model, inputs, verify=False, on_failure="raise")


def build_of_trace(traced: TracedModel, model: torch.nn.Module, **changes: object) -> Build:
    """What a backend that ends in a traced module hands back; ``changes`` replace fields."""
    module, seen = traced.module, traced.receipt
    fields = {
        "answer": lambda tensors: module(**tensors),
        "runs": "ScriptModule, frozen",
        "module": module,
        "attention": attention_of(model),
        "frozen": seen.frozen,
        "graph_nodes": seen.graph_nodes,
        "weight_dtypes": seen.weight_dtypes,
        "linear_dtypes": seen.linear_dtypes,
        "warnings": seen.warnings,
    }
    return Build(**{**fields, **changes})


RECIPES = (
    Recipe("torchscript-fp32", "traced and frozen", _build_fp32),
    Recipe("torchscript-bf16", "traced under BF16 autocast and frozen", _build_bf16),
)
