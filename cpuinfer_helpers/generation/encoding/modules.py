"""What cross-attention reads of a source, and a step of a decoder that reads it, as functions of tensors only."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cpuinfer_helpers.generation.encoding.caches import CrossCache, PairCache
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
    """

    def __init__(self, model: torch.nn.Module, kinds: Sequence[str]) -> None:
        super().__init__()
        self.model, self.kinds = model, tuple(kinds)

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
        called(
            self.model,
            {"encoder_outputs": EncoderStates(last_hidden_state=states), "attention_mask": mask[0] if mask else None},
            first,
            masks_by_kind(self.kinds, [torch.zeros_like(states[:, :1, :1, None])] * len(self.kinds)),
            first,
            past_key_values=PairCache(NotingCache(), cross, 0),
            cache_position=torch.arange(1),
            use_cache=True,
        )
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
    layers
        How many have cross-attention.
    width
        Of what the encoder gives.
    reads_mask
        Whether the model reads a mask of its sources.
    """

    def __init__(
        self, model: torch.nn.Module, kinds: Sequence[str], layers: int, width: int, *, reads_mask: bool
    ) -> None:
        super().__init__(model, kinds)
        self.layers, self.width, self.reads_mask = layers, width, reads_mask

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
        return called(
            self.model,
            {"encoder_outputs": EncoderStates(last_hidden_state=states), "attention_mask": mask},
            ids,
            masks_by_kind(self.kinds, masks),
            positions,
            past_key_values=PairCache(self.cache_of(own, slots, masks[0].shape[-1]), CrossCache(cross), self.layers),
            cache_position=slots,
            use_cache=True,
        ).logits
