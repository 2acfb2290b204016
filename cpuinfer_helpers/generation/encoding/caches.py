"""A cache of ours with the two halves that a decoder asks for: its own tokens, and what it reads of the source."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from transformers.cache_utils import EncoderDecoderCache

from cpuinfer_helpers.errors import RecipeError, first_line
from cpuinfer_helpers.generation.encoding.sources import EncoderStates, called
from cpuinfer_helpers.generation.layout import Layout, NotingCache, OwnCache, layout_from


class CrossCache(OwnCache):
    """Hands out what was computed of the source.

    Parameters
    ----------
    tensors
        The keys of each layer, then the values, each (batch, heads, places, size).
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        half = len(tensors) // 2
        # By these names transformers 4 asks for them, and version 5 for the layers'.
        self.key_cache, self.value_cache = list(tensors[:half]), list(tensors[half:])
        self._layers = [
            SimpleNamespace(keys=keys, values=values)
            for keys, values in zip(self.key_cache, self.value_cache, strict=True)
        ]

    @property
    def layers(self) -> list[Any]:
        """Keys and values of each layer."""
        return self._layers

    def __len__(self) -> int:
        return len(self._layers)

    def get_seq_length(self, layer_idx: int | None = 0) -> Any:
        """Places of the source."""
        return self.key_cache[layer_idx or 0].shape[2]

    def update(self, *_: Any, **__: Any) -> Any:
        """Nothing is to be computed of a source again."""
        raise RecipeError("cross-attention computes keys and values of the source anew for every token")


class PairCache(EncoderDecoderCache):
    """Both halves.

    Parameters
    ----------
    own
        For the decoder's own tokens.
    cross
        For the source.
    filled
        In how many layers keys and values of the source are there already.
    """

    def __init__(self, own: OwnCache, cross: OwnCache, filled: int) -> None:
        self.self_attention_cache, self.cross_attention_cache = own, cross
        self.is_updated = dict.fromkeys(range(filled), True)


def layouts_of(model: torch.nn.Module, states: torch.Tensor, mask: torch.Tensor | None) -> tuple[Layout, Layout]:
    """See what a decoder stores of two tokens of its own, and of a source.

    Parameters
    ----------
    model
        Of an encoder and a decoder.
    states, mask
        What its encoder gave, and the mask of what that had read.

    Raises
    ------
    RecipeError
        If it does not keep them in one of transformers' caches, or keeps anything but keys and values.
    """
    kind = type(model).__name__
    own, cross = NotingCache(), NotingCache()
    batch = len(states)
    try:
        with torch.no_grad():
            called(
                model,
                {"encoder_outputs": EncoderStates(last_hidden_state=states), "attention_mask": mask},
                torch.tensor([[3, 4]]).expand(batch, 2),
                torch.ones(batch, 2, dtype=torch.long),
                torch.tensor([[0, 1]]).expand(batch, 2),
                past_key_values=PairCache(own, cross, 0),
                cache_position=torch.arange(2),
                use_cache=True,
            )
    except RecipeError:
        raise
    except Exception as error:  # the model's own Python, which may want a cache of its own kind
        raise RecipeError(f"{kind} does not run on a cache of ours: {first_line(error)}") from error
    return layout_from(own, kind, 2), layout_from(cross, kind, None)
