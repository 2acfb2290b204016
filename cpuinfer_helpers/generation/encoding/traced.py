"""A step of an encoder and a decoder whose parts are frozen traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cpuinfer_helpers.errors import RecipeError, TraceError
from cpuinfer_helpers.generation.encoding.caches import layouts_of
from cpuinfer_helpers.generation.encoding.modules import SourceReader, TraceableDecoderStep
from cpuinfer_helpers.generation.encoding.sources import MASK, encoded, example_sources, reads_mask, source_name
from cpuinfer_helpers.generation.layout import Layout
from cpuinfer_helpers.generation.positions import attention_kinds
from cpuinfer_helpers.generation.step import EncodingStep, Sources
from cpuinfer_helpers.generation.traced_step import ROOM, TracedState, TracedStep, example_of, traced
from cpuinfer_helpers.generation.weights import modules_called
from cpuinfer_helpers.tracing.each_shape import TracedEachShape
from cpuinfer_helpers.tracing.trace import TracedModel, trace_model


class EncodedState(TracedState):
    """Keys and values of the decoder's own tokens, and those of the source, which are never written to.

    Parameters
    ----------
    layout, batch, capacity, dtype
        See :class:`~cpuinfer_helpers.generation.traced_step.TracedState`.
    given
        The mask of the source where the model reads one, and what cross-attention reads.
    """

    def __init__(
        self, layout: Layout, batch: int, capacity: int, dtype: torch.dtype, given: Sequence[torch.Tensor]
    ) -> None:
        super().__init__(layout, batch, capacity, dtype)
        self.given = list(given)

    def inputs(self) -> list[torch.Tensor]:
        """What the trace is given of it."""
        return [*self.given, *self.tensors]

    def _reorder(self, rows: torch.Tensor) -> None:
        super()._reorder(rows)
        self.given = [tensor.index_select(0, rows) for tensor in self.given]


@dataclass(frozen=True)
class Traces:
    """What runs: an encoder, what computes keys and values of its states, and a step of the decoder."""

    encoder: TracedModel
    reader: torch.jit.ScriptModule
    decoder: torch.jit.ScriptModule


class TracedEncodingStep(EncodingStep, TracedStep):
    """Runs the traces.

    Parameters
    ----------
    traces
        The traces.
    layout, kinds, dtype, limit
        See :class:`~cpuinfer_helpers.generation.traced_step.TracedStep`.
    inputs_name, reads_mask
        See :class:`~cpuinfer_helpers.generation.step.EncodingStep`.
    """

    def __init__(
        self,
        traces: Traces,
        layout: Layout,
        kinds: dict[str, int | None],
        dtype: torch.dtype,
        limit: int | None,
        *,
        inputs_name: str,
        reads_mask: bool,
    ) -> None:
        super().__init__(traces.decoder, layout, kinds, dtype, limit)
        self.traces, self.inputs_name, self.reads_mask = traces, inputs_name, reads_mask

    def _encode(self, inputs: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        given = {self.inputs_name: inputs.to(self.dtype) if inputs.is_floating_point() else inputs}
        if mask is not None and MASK in self.traces.encoder.inputs.tensors:
            given[MASK] = mask
        with torch.no_grad():
            return self.traces.encoder(**given)[0]

    def _begin(self, sources: Sources, capacity: int) -> EncodedState:
        mask = () if sources.mask is None else (sources.mask,)
        with torch.no_grad():
            given = (*mask, *self.traces.reader(sources.states.to(self.dtype), *mask))
        return EncodedState(self.layout, sources.batch, capacity, self.dtype, given)


@dataclass(frozen=True)
class TracedEncoding:
    """A step, and what was seen when it was made.

    Attributes
    ----------
    step
        The step.
    cross
        What is kept of each place of a source.
    used
        The ids of the modules of the model that a token goes through, the encoder's not among them.
    evidence, warnings
        For the receipt.
    """

    step: TracedEncodingStep
    cross: Layout
    used: frozenset[int]
    evidence: Mapping[str, str]
    warnings: tuple[str, ...]


def trace_encoding_step(
    model: torch.nn.Module,
    prompts: Mapping[str, torch.Tensor],
    limit: int | None,
    *,
    dtype: torch.dtype = torch.float32,
) -> TracedEncoding:
    """Trace a model of an encoder and a decoder as a step.

    Parameters
    ----------
    model
        A copy that nobody else uses; it is changed.
    prompts
        The example: what the encoder reads.
    limit
        The most tokens that a row may have.
    dtype
        Of its floating-point numbers, keys and values.

    Raises
    ------
    RecipeError
        If one of its parts cannot be traced.
    """
    # What stands in the place of other layers was made in training mode.
    name = source_name(model.eval())
    source, mask = _source(model, prompts, name, dtype)
    kinds = attention_kinds(model.config.get_text_config(decoder=True))
    encoder = _traced_encoder(model, name, source, mask)
    with torch.no_grad():
        states = encoded(model, name, source, mask)
    masks = () if mask is None else (mask,)
    layouts = layouts_of(model, states, mask)
    reader, of_reader = traced(SourceReader(model, tuple(kinds), by_tuples=layouts.by_tuples), (states, *masks))
    with torch.no_grad():
        read = reader(states, *masks)
    _refuse_other_layout(read, layouts.cross, states)
    adapter = TraceableDecoderStep(model, tuple(kinds), layouts, states.shape[-1], reads_mask=mask is not None)
    example = _example(layouts.own, kinds, dtype, (*masks, *read))
    with torch.no_grad():
        used = modules_called(model, lambda: adapter(*example))
    decoder, of_decoder = traced(adapter, example)
    traces, reads = Traces(encoder, reader, decoder), mask is not None
    step = TracedEncodingStep(traces, layouts.own, kinds, dtype, limit, inputs_name=name, reads_mask=reads)
    return TracedEncoding(step, layouts.cross, used, _evidence(encoder), (*of_reader, *of_decoder))


def _source(
    model: torch.nn.Module, prompts: Mapping[str, torch.Tensor], name: str, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What an encoder is traced with; no mask where the model reads none."""
    source, mask = example_sources(prompts, name)
    source = source.to(dtype) if source.is_floating_point() else source
    if not reads_mask(model, name, source):
        return source, None
    return source, torch.ones(source.shape[:2], dtype=torch.long) if mask is None else mask


def _example(
    own: Layout, kinds: dict[str, int | None], dtype: torch.dtype, given: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """What a decoder's step is traced with: what is given of sources stands between masks and keys, for two rows."""
    ids, positions, slots, wanted, *others = example_of(own, kinds, dtype, room=ROOM)
    masks, kept = others[: len(kinds)], others[len(kinds) :]
    return (ids, positions, slots, wanted, *masks, *(tensor[: len(ids)] for tensor in given), *kept)


def _evidence(encoder: TracedModel) -> dict[str, str]:
    how = "a ScriptModule for each shape" if isinstance(encoder, TracedEachShape) else "ScriptModule, frozen"
    return {"encoder": f"{how}, verified ({encoder.receipt.checks_summary()})"}


def _traced_encoder(model: torch.nn.Module, name: str, source: torch.Tensor, mask: torch.Tensor | None) -> TracedModel:
    encoder = model.get_encoder()
    inputs = {name: source}
    if mask is not None and MASK in _arguments(encoder):
        inputs[MASK] = mask
    try:
        return trace_model(encoder, inputs, on_failure="raise", each_shape=True)
    except TraceError as error:
        raise RecipeError(f"its encoder: {error}") from error


def _arguments(module: torch.nn.Module) -> Any:
    import inspect

    return inspect.signature(module.forward).parameters


def _refuse_other_layout(given: Sequence[torch.Tensor], cross: Layout, states: torch.Tensor) -> None:
    sizes = [(tensor.shape[1], tensor.shape[3]) for tensor in given]
    if sizes != [*cross.keys, *cross.values] or any(len(tensor) != len(states) for tensor in given):
        raise RecipeError("its cross-attention keeps other keys and values when it is traced than when it is not")
