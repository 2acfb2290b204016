"""A step that is one frozen trace: keys and values are its inputs, which it writes to in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cpuinfer_helpers.errors import RecipeError, first_line
from cpuinfer_helpers.generation.layout import Layout, OwnCache, names_taken
from cpuinfer_helpers.generation.linears import put
from cpuinfer_helpers.generation.positions import attention_kinds, masks_of, positions_of
from cpuinfer_helpers.generation.step import State, Step
from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.tracing.trace import frozen_trace_by_position
from cpuinfer_helpers.tracing.traceable import without_loops_over_experts

# The example: two rows, one of them padded, that are fed three tokens after seven. With one row or one token a trace
# takes sizes of one for constants; without earlier tokens it takes the mask for a square.
_ROWS, _BEFORE, _FED, _PADDED = 2, 7, 3, 2
# Where keys and values are written in place there is room for more tokens than there are.
ROOM = _BEFORE + _FED + _BEFORE


class _WritingCache(OwnCache):
    """Writes keys and values to where they belong and hands out all so far, as operators that a trace can hold."""

    def __init__(self, tensors: Sequence[torch.Tensor], slots: torch.Tensor, total: Any) -> None:
        half = len(tensors) // 2
        self.stored = list(zip(tensors[:half], tensors[half:], strict=True))
        self.slots, self.total = slots, total

    def update(self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        return tuple(
            kept.index_copy_(2, self.slots, new.to(kept.dtype)).narrow(2, 0, self.total).to(new.dtype)
            for kept, new in zip(self.stored[layer_idx], (key, value), strict=True)
        )

    def get_seq_length(self, layer_idx: int | None = 0) -> Any:
        return self.total - self.slots.shape[0]


class _LastTokens(torch.nn.Module):
    """Computes logits of the wanted tokens only, in the place of a model's last linear layer."""

    def __init__(self, head: torch.nn.Module) -> None:
        super().__init__()
        self.head = head
        self.wanted: torch.Tensor | None = None

    @property
    def weight(self) -> torch.Tensor:
        """Some models look at it."""
        return self.head.weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.head(hidden if self.wanted is None else hidden.index_select(1, self.wanted))


class TraceableStep(torch.nn.Module):
    """A causal language model as a function of tensors only.

    Parameters
    ----------
    model
        A copy that nobody else uses; it is changed.
    kinds
        Kinds of attention, see :func:`~cpuinfer_helpers.generation.positions.attention_kinds`.
    """

    def __init__(self, model: torch.nn.Module, kinds: Sequence[str]) -> None:
        super().__init__()
        self.model, self.kinds, self._taken = model, tuple(kinds), names_taken(model)
        # In a tuple, so that it is no part of this module a second time.
        self._head = (_put_last_tokens(model),)

    def forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        wanted: torch.Tensor,
        *tensors: torch.Tensor,
    ) -> torch.Tensor:
        """Logits of the wanted tokens.

        Parameters
        ----------
        ids, positions
            Of the new tokens, (batch, new tokens).
        slots
            Where their keys and values are stored, (new tokens,).
        wanted
            Which of the new tokens logits are wanted of, (wanted tokens,).
        *tensors
            A mask for each kind of attention, then the keys of each layer, then the values.

        Returns
        -------
        torch.Tensor
            (batch, wanted tokens, vocabulary)
        """
        head = self._head[0]
        if head is None:
            return self.of_all(ids, positions, slots, *tensors).index_select(1, wanted)
        head.wanted = wanted
        logits = self.of_all(ids, positions, slots, *tensors)
        head.wanted = None
        return logits

    def of_all(
        self, ids: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, *tensors: torch.Tensor
    ) -> torch.Tensor:
        """Logits of all new tokens; arguments as for :meth:`forward`."""
        masks, kept = tensors[: len(self.kinds)], tensors[len(self.kinds) :]
        return self.logits(ids, positions, slots, masks, kept)

    def logits(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        masks: Sequence[torch.Tensor],
        kept: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """Of the new tokens, or of the wanted ones where the model's last layer is told of these."""
        arguments = {
            "input_ids": ids,
            "attention_mask": masks_by_kind(self.kinds, masks),
            "position_ids": positions,
            "cache_position": slots,
            "past_key_values": self.cache_of(kept, slots, masks[0].shape[-1]),
            "use_cache": True,
            "return_dict": True,
        }
        return self.model(**{name: value for name, value in arguments.items() if name in self._taken}).logits

    def cache_of(self, kept: Sequence[torch.Tensor], slots: torch.Tensor, total: Any) -> OwnCache:
        """What the model is handed to keep its tokens in.

        Parameters
        ----------
        kept
            The keys of each layer, then the values.
        slots
            Where those of the new tokens belong.
        total
            Number of tokens with the new ones.
        """
        return _WritingCache(kept, slots, total)


def masks_by_kind(kinds: Sequence[str], masks: Sequence[torch.Tensor]) -> Any:
    """Masks as a model takes them: by the kind of attention where it has several."""
    return masks[0] if len(masks) == 1 else dict(zip(kinds, masks, strict=True))


def _put_last_tokens(model: torch.nn.Module) -> _LastTokens | None:
    head = model.get_output_embeddings()
    path = next((path for path, part in model.named_modules() if part is head and path), None)
    if head is None or path is None:
        return None
    wrapped = _LastTokens(head)
    put(model, path, wrapped)
    return wrapped


class TracedState(State):
    """Keys and values in tensors that are longer than what is stored in them."""

    def __init__(self, layout: Layout, batch: int, capacity: int, dtype: torch.dtype) -> None:
        super().__init__(batch, capacity)
        self.layout, self.dtype = layout, dtype
        self.tensors = layout.new(batch, capacity, dtype)

    def inputs(self) -> list[torch.Tensor]:
        """What the trace is given of it."""
        return self.tensors

    def _crop(self, length: int) -> None:
        """What is behind the length is written over before it is read."""

    def _reorder(self, rows: torch.Tensor) -> None:
        self._copy_to(self.layout.new(len(rows), self.capacity, self.dtype), rows)

    def _grow(self, capacity: int) -> None:
        self._copy_to(self.layout.new(self.batch, capacity, self.dtype), torch.arange(self.batch))

    def _copy_to(self, new: list[torch.Tensor], rows: torch.Tensor) -> None:
        for old, tensor in zip(self.tensors, new, strict=True):
            tensor[:, :, : self.length] = old[:, :, : self.length].index_select(0, rows)
        self.tensors = new


class TracedStep(Step):
    """Runs a trace of a :class:`TraceableStep`.

    Parameters
    ----------
    module
        The trace.
    layout
        What it stores of each token.
    kinds
        Kinds of attention, see :func:`~cpuinfer_helpers.generation.positions.attention_kinds`.
    dtype
        Of keys, values and masks.
    limit
        The most tokens that a row may have.
    """

    def __init__(
        self,
        module: torch.jit.ScriptModule,
        layout: Layout,
        kinds: dict[str, int | None],
        dtype: torch.dtype,
        limit: int | None,
    ) -> None:
        self.module, self.layout, self.kinds, self.dtype, self.limit = module, layout, kinds, dtype, limit

    def _new_state(self, batch: int, capacity: int) -> TracedState:
        return TracedState(self.layout, batch, capacity, self.dtype)

    def _feed(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, state: TracedState, last: int
    ) -> torch.Tensor:
        with torch.no_grad():
            return self.module(*self._inputs(ids, mask, positions, state, last))

    def _inputs(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, state: TracedState, last: int
    ) -> tuple[torch.Tensor, ...]:
        """What a :class:`TraceableStep` takes."""
        fed = ids.shape[1]
        slots = torch.arange(state.length, state.length + fed)
        wanted = torch.arange(fed - last, fed)
        return (ids, positions, slots, wanted, *masks_of(self.kinds, mask, state.length, self.dtype), *state.inputs())


def trace_step(
    model: torch.nn.Module, config: Any, layout: Layout, limit: int | None, *, dtype: torch.dtype = torch.float32
) -> tuple[TracedStep, tuple[str, ...]]:
    """Trace a causal language model as a step.

    Parameters
    ----------
    model
        A copy that nobody else uses; it is changed.
    config
        Of what writes the text.
    layout
        What it stores of each token.
    limit
        The most tokens that a row may have.
    dtype
        Of its floating-point numbers, keys and values.

    Returns
    -------
    step : TracedStep
    warnings : tuple of str
        Those that tracing raised.

    Raises
    ------
    RecipeError
        If it cannot be traced.
    """
    kinds = attention_kinds(config)
    example = example_of(layout, kinds, dtype, room=ROOM)
    module, warnings = traced(TraceableStep(model, tuple(kinds)), example)
    return TracedStep(module, layout, kinds, dtype, limit), warnings


def traced(adapter: TraceableStep, example: Sequence[torch.Tensor]) -> tuple[torch.jit.ScriptModule, tuple[str, ...]]:
    """The frozen trace of a step, and the warnings that tracing raised.

    Raises
    ------
    RecipeError
        If it cannot be traced.
    """
    without_loops_over_experts(adapter.model)
    try:
        with switches.held(), torch.inference_mode(False):
            return frozen_trace_by_position(adapter.model, adapter.eval(), example)
    except Exception as error:  # tracing runs the model's own Python, which may raise anything
        raise RecipeError(f"tracing fails: {first_line(error)}") from error


def example_of(
    layout: Layout, kinds: dict[str, int | None], dtype: torch.dtype, *, room: int = _BEFORE
) -> tuple[torch.Tensor, ...]:
    """What a :class:`TraceableStep` is traced with.

    Parameters
    ----------
    layout
        What it stores of each token.
    kinds
        Kinds of attention.
    dtype
        Of masks, keys and values.
    room
        For how many tokens keys and values have room; unless given, for those only that stand before the new ones.
    """
    total = _BEFORE + _FED
    mask = torch.ones(_ROWS, total, dtype=torch.long)
    mask[-1, :_PADDED] = 0
    ids = torch.arange(_ROWS * _FED).reshape(_ROWS, _FED) + 1
    slots, wanted = torch.arange(_BEFORE, total), torch.arange(_FED - 2, _FED)
    masks = masks_of(kinds, mask, _BEFORE, dtype)
    return (ids, positions_of(mask, _FED), slots, wanted, *masks, *layout.new(_ROWS, room, dtype))
