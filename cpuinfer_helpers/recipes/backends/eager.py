"""Eager PyTorch, as the model comes: the reference, and BF16 autocast."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from cpuinfer_helpers.interface.adapter import named_inputs
from cpuinfer_helpers.interface.copies import attention_of
from cpuinfer_helpers.interface.outputs import take_apart
from cpuinfer_helpers.recipes.base import Build, Recipe, Request, Tensors


def _build_fp32(request: Request) -> Build:
    return _build(request, "the eager model", nullcontext)


def _build_bf16(request: Request) -> Build:
    runs = "the eager model under BF16 autocast"
    return _build(request, runs, lambda: torch.autocast("cpu", dtype=torch.bfloat16))


def _build(request: Request, runs: str, precision: Callable[[], AbstractContextManager]) -> Build:
    constants = named_inputs(request.model, request.inputs).constants
    model = request.eager()

    def answer(tensors: dict[str, torch.Tensor]) -> Tensors:
        with precision():
            return take_apart(model(**tensors, **constants))[0]

    evidence = {"calls": "a fresh copy for each, because calls change this model"} if model.fresh else {}
    return Build(answer, runs=runs, evidence=evidence, attention=attention_of(request.model))


RECIPES = (
    Recipe("eager-fp32", "the model as it comes: the reference", _build_fp32),
    Recipe("eager-bf16", "the model under BF16 autocast", _build_bf16),
)
