"""The model itself, as a step: the reference, and the same in BF16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.generation.layout import layout_of, named_arguments
from cpuinfer_helpers.generation.step import GenerationRecipe, State, Step, StepBuild, StepRequest, StoredStep
from cpuinfer_helpers.generation.weights import limit_of, weights_of
from cpuinfer_helpers.interface.copies import attention_of, cast_copy, untouched
from cpuinfer_helpers.saving.weights import read_model, write_model


class EagerState(State):
    """One of transformers' own caches, which grows with every token."""

    def __init__(self, batch: int, capacity: int) -> None:
        from transformers.cache_utils import DynamicCache

        super().__init__(batch, capacity)
        self.cache = DynamicCache()

    def _crop(self, length: int) -> None:
        # Removing from the end is what both versions of transformers understand by a negative number.
        if length < self.length:
            self.cache.crop(length - self.length)

    def _reorder(self, rows: torch.Tensor) -> None:
        self.cache.batch_select_indices(rows)

    def _grow(self, capacity: int) -> None:
        """It has no room that could be full."""


class EagerStep(Step):
    """Calls the model.

    Parameters
    ----------
    model
        A copy that nobody else uses.
    limit
        The most tokens that a row may have.
    """

    def __init__(self, model: torch.nn.Module, limit: int | None) -> None:
        self.model, self.limit = model, limit

    def _new_state(self, batch: int, capacity: int) -> EagerState:
        return EagerState(batch, capacity)

    def _feed(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, state: EagerState, last: int
    ) -> torch.Tensor:
        arguments: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": positions,
            "cache_position": torch.arange(state.length, state.length + ids.shape[1]),
            "past_key_values": state.cache,
            "use_cache": True,
            "logits_to_keep": last,
            "return_dict": True,
        }
        with torch.no_grad():
            output = self.model(**named_arguments(self.model, arguments))
        return output.logits[:, -last:]


def _build_fp32(request: StepRequest) -> StepBuild:
    return _build(request, untouched(request.model))


def _build_bf16(request: StepRequest) -> StepBuild:
    return _build(request, cast_copy(request.model, torch.bfloat16))


def _export(request: StepRequest, build: StepBuild, folder: Path) -> dict[str, Any]:
    return write_model(build.step.model, folder)


def _restore(stored: StoredStep, folder: Path) -> StepBuild:
    return _build_of(read_model(stored.details, folder, None), stored.limit)


def _build(request: StepRequest, model: torch.nn.Module) -> StepBuild:
    return _build_of(model, limit_of(request.model))


def _build_of(model: torch.nn.Module, limit: int | None) -> StepBuild:
    weights = weights_of(model)
    return StepBuild(
        step=EagerStep(model, limit),
        runs="the eager model, step by step",
        weights=weights.dtypes,
        compute=weights.dtypes,
        cache=weights.dtypes,
        attention=attention_of(model) or "the model's own",
        converted=weights.layers,
        layers=weights.layers,
        weight_bytes=weights.read,
        token_bytes=layout_of(model).bytes_in(next(model.parameters()).dtype),
    )


RECIPES = (
    GenerationRecipe(
        "eager-fp32",
        "the model itself: what all others are compared with",
        _build_fp32,
        export=_export,
        restore=_restore,
    ),
    GenerationRecipe(
        "eager-bf16",
        "the model itself with weights, products and cache in BF16",
        _build_bf16,
        export=_export,
        restore=_restore,
    ),
)
