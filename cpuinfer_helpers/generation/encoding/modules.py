"""What cross-attention reads of a source, and a step of a decoder that reads it, as functions of tensors only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cpuinfer_helpers.generation.encoding.caches import CrossCache, Layouts, PairCache, as_tuples
from cpuinfer_helpers.generation.encoding.sources import EncoderStates, called
from cpuinfer_helpers.generation.layout import NotingCache
from cpuinfer_helpers.generation.traced_step import TraceableStep, masks_by_kind


class SourceReader(torch.nn.Module):
    """Computes what cross-attention keeps of a source.

    The whole decoder is run on one token to see it. What of that keys and values of the source do not depend on is
    dropped when the trace is frozen. Where their sizes are read from the decoder's own states, as in transformers 4, it
    stays, and a text costs one token more.

    Parameters
    ----------
    model
        Of an encoder and a decoder.
    kinds
        Kinds of attention, see :func:`~cpuinfer_helpers.generation.positions.attention_kinds`.
    by_tuples
        See :class:`~cpuinfer_helpers.generation.encoding.caches.Layouts`.
    """

    def __init__(self, model: torch.nn.Module, kinds: Sequence[str], *, by_tuples: bool) -> None:
        super().__init__()
        self.model, self.kinds, self.by_tuples = model, tuple(kinds), by_tuples

    def forward(self, states: torch.Tensor, *mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The keys of each layer, then the values, each (batch, heads, places, size).

        Parameters
        ----------
        states
            What the encoder gave.
        *mask
            Of what it had read, where the model reads one.
        """
        cross = NotingCache()
        first = torch.zeros_like(states[:, :1, 0], dtype=torch.long)
        masks = [torch.zeros_like(states[:, :1, :1, None])] * len(self.kinds)
        output = called(
            self.model,
            {"encoder_outputs": EncoderStates(last_hidden_state=states), "attention_mask": mask[0] if mask else None},
            first,
            as_mask(masks[0]) if self.by_tuples else masks_by_kind(self.kinds, masks),
            first,
            past_key_values=None if self.by_tuples else PairCache(NotingCache(), cross, 0),
            cache_position=torch.arange(1),
            use_cache=True,
        )
        if self.by_tuples:
            stored = [layer[2:] for layer in output.past_key_values]
        else:
            stored = [cross.seen[layer] for layer in range(len(cross.seen))]
        return tuple(tensor for part in zip(*stored, strict=True) for tensor in part)


class TraceableDecoderStep(TraceableStep):
    """A decoder as a function of tensors only.

    After the masks come the mask of the source where the model reads one, what cross-attention reads, and then the keys
    and values of its own tokens.

    Parameters
    ----------
    model, kinds
        See :class:`~cpuinfer_helpers.generation.traced_step.TraceableStep`.
    layouts
        What it stores.
    width
        Of what the encoder gives.
    reads_mask
        Whether the model reads a mask of its sources.
    """

    def __init__(
        self, model: torch.nn.Module, kinds: Sequence[str], layouts: Layouts, width: int, *, reads_mask: bool
    ) -> None:
        super().__init__(model, kinds)
        self.layers, self.by_tuples = len(layouts.cross.keys), layouts.by_tuples
        self.width, self.reads_mask = width, reads_mask

    def logits(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        masks: Sequence[torch.Tensor],
        kept: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """Of the new tokens."""
        mask, kept = (kept[0], kept[1:]) if self.reads_mask else (None, kept)
        cross, own = kept[: 2 * self.layers], kept[2 * self.layers :]
        # The encoder's states are looked at for their shape alone: all that is read of them is in the cache.
        shape = ids.shape[0], cross[0].shape[2], self.width
        states = torch.zeros(1, dtype=cross[0].dtype).expand(shape)
        given = {"encoder_outputs": EncoderStates(last_hidden_state=states), "attention_mask": mask}
        if self.by_tuples:
            return self._logits_by_tuples(given, ids, positions, slots, masks[0], own, cross)
        cache = PairCache(self.cache_of(own, slots, masks[0].shape[-1]), CrossCache(cross), self.layers)
        return called(
            self.model,
            given,
            ids,
            masks_by_kind(self.kinds, masks),
            positions,
            past_key_values=cache,
            cache_position=slots,
            use_cache=True,
        ).logits

    def _logits_by_tuples(
        self,
        given: Mapping[str, Any],
        ids: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        mask: torch.Tensor,
        own: Sequence[torch.Tensor],
        cross: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """The same of a decoder that appends to tuples: the new ones are written to where they belong afterwards."""
        new = slots.shape[0]
        before = mask.shape[-1] - new
        past = as_tuples([kept.narrow(2, 0, before) for kept in own], cross)
        output = called(self.model, given, ids, as_mask(mask), positions, past_key_values=past, use_cache=True)
        for part in (0, 1):
            for kept, layer in zip(own[part * self.layers :], output.past_key_values, strict=False):
                kept.index_copy_(2, slots, layer[part].narrow(2, before, new).to(kept.dtype))
        return output.logits


def as_mask(added: torch.Tensor) -> torch.Tensor:
    """1 for tokens and 0 for padding, of what is added to scores: the last token sees all that is no padding."""
    return (added[:, 0, -1] == 0).long()
