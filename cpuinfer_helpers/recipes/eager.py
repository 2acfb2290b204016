"""Eager PyTorch, as the model comes: the reference, and BF16 autocast."""

from __future__ import annotations

import torch

from cpuinfer_helpers.adapter import named_inputs
from cpuinfer_helpers.recipes.base import Build, Recipe, Request, Tensors
from cpuinfer_helpers.recipes.copies import attention_of


def _build_fp32(request: Request) -> Build:
    adapter = named_inputs(request.model, request.inputs)
    return Build(adapter.run_model, runs="the eager model", attention=attention_of(request.model))


def _build_bf16(request: Request) -> Build:
    adapter = named_inputs(request.model, request.inputs)

    def answer(tensors: dict[str, torch.Tensor]) -> Tensors:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return adapter.run_model(tensors)

    return Build(answer, runs="the eager model under BF16 autocast", attention=attention_of(request.model))


RECIPES = (
    Recipe("eager-fp32", "the model as it comes: the reference", _build_fp32),
    Recipe("eager-bf16", "the model under BF16 autocast", _build_bf16),
)
