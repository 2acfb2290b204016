"""The model itself, as a step: the reference, and the same in BF16."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.generation.encoding.caches import TupleCache, layouts_of
from cpuinfer_helpers.generation.encoding.sources import (
    EncoderStates,
    called,
    encoded,
    example_sources,
    has_encoder,
    reads_mask,
    source_name,
    start_token,
)
from cpuinfer_helpers.generation.layout import Layout, layout_of, named_arguments
from cpuinfer_helpers.generation.step import (
    EncodingStep,
    GenerationRecipe,
    Sources,
    State,
    Step,
    StepBuild,
    StepRequest,
    StoredStep,
)
from cpuinfer_helpers.generation.weights import Weights, limit_of, modules_called, weights_of
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


class EagerSourceState(EagerState):
    """The same of both halves, and what the encoder gave."""

    def __init__(self, sources: Sources, capacity: int, *, by_tuples: bool = False) -> None:
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache

        super().__init__(sources.batch, capacity)
        self.cache = TupleCache() if by_tuples else EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.sources = sources

    def _reorder(self, rows: torch.Tensor) -> None:
        if self.length:
            super()._reorder(rows)
        mask = self.sources.mask
        self.sources = Sources(self.sources.states[rows], None if mask is None else mask[rows])


class EagerEncodingStep(EncodingStep, EagerStep):
    """Calls a model of an encoder and a decoder.

    Parameters
    ----------
    model, limit
        See :class:`EagerStep`.
    inputs_name, reads_mask
        See :class:`~cpuinfer_helpers.generation.step.EncodingStep`.
    """

    def __init__(self, model: torch.nn.Module, limit: int | None, *, inputs_name: str, reads_mask: bool) -> None:
        super().__init__(model, limit)
        self.inputs_name, self.reads_mask = inputs_name, reads_mask
        # As some models of transformers 4 keep their tokens.
        self.by_tuples = False

    def _encode(self, inputs: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        dtype = next(self.model.parameters()).dtype
        with torch.no_grad():
            return encoded(
                self.model, self.inputs_name, inputs.to(dtype) if inputs.is_floating_point() else inputs, mask
            )

    def _begin(self, sources: Sources, capacity: int) -> EagerSourceState:
        return EagerSourceState(sources, capacity, by_tuples=self.by_tuples)

    def _feed(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, state: EagerSourceState, last: int
    ) -> torch.Tensor:
        states = EncoderStates(last_hidden_state=state.sources.states)
        with torch.no_grad():
            output = called(
                self.model,
                {"encoder_outputs": states, "attention_mask": state.sources.mask},
                ids,
                mask,
                positions,
                past_key_values=state.cache.tuples if self.by_tuples else state.cache,
                cache_position=torch.arange(state.length, state.length + ids.shape[1]),
                use_cache=True,
            )
        if self.by_tuples:
            state.cache.tuples = output.past_key_values
        return output.logits[:, -last:]


def _build_fp32(request: StepRequest) -> StepBuild:
    return _build(request, untouched(request.model))


def _build_bf16(request: StepRequest) -> StepBuild:
    return _build(request, cast_copy(request.model, torch.bfloat16))


def _export(request: StepRequest, build: StepBuild, folder: Path) -> dict[str, Any]:
    return write_model(build.step.model, folder)


def _restore(stored: StoredStep, folder: Path) -> StepBuild:
    return _build_of(read_model(stored.details, folder, None), stored.limit, stored.prompts)


def _build(request: StepRequest, model: torch.nn.Module) -> StepBuild:
    return _build_of(model, limit_of(request.model), request.prompts)


def _build_of(model: torch.nn.Module, limit: int | None, prompts: Mapping[str, torch.Tensor]) -> StepBuild:
    if has_encoder(model):
        return _encoding_build(model, limit, prompts)
    layout = layout_of(model)
    return _described(model, EagerStep(model, limit), layout, None, weights_of(model))


def _encoding_build(model: torch.nn.Module, limit: int | None, prompts: Mapping[str, torch.Tensor]) -> StepBuild:
    name, dtype = source_name(model), next(model.parameters()).dtype
    source, mask = example_sources(prompts, name)
    source = source.to(dtype) if source.is_floating_point() else source
    step = EagerEncodingStep(model, limit, inputs_name=name, reads_mask=reads_mask(model, name, source))
    sources = step.encode(source, mask)
    layouts = layouts_of(model, sources.states, sources.mask)
    step.by_tuples = layouts.by_tuples
    state = step.new_state(sources.batch, 2, sources)
    ids = torch.full((sources.batch, 1), start_token(model))
    first = torch.ones_like(ids)
    # What the first token alone goes through, such as keys and values of the source, is not read again.
    step.feed(ids, first, 0 * first, state)
    used = modules_called(model, lambda: step.feed(ids, first.repeat(1, 2), first, state))
    return _described(model, step, layouts.own, layouts.cross, weights_of(model, used))


def _described(
    model: torch.nn.Module, step: EagerStep, layout: Layout, cross: Layout | None, weights: Weights
) -> StepBuild:
    dtype = next(model.parameters()).dtype
    return StepBuild(
        step=step,
        runs="the eager model, step by step",
        weights=weights.dtypes,
        compute=weights.dtypes,
        cache=weights.dtypes,
        attention=attention_of(model) or "the model's own",
        converted=weights.layers,
        layers=weights.layers,
        weight_bytes=weights.read,
        token_bytes=layout.bytes_in(dtype),
        source_bytes=cross.bytes_in(dtype) if cross else 0,
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
