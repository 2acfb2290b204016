"""A cache of ours with the two halves that a decoder asks for: its own tokens, and what it reads of the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Layouts:
    """What a decoder stores of a token and of a place of a source.

    Attributes
    ----------
    own, cross
        Of its own tokens, and of the source.
    by_tuples
        Whether it takes and returns tuples, as some do in transformers 4, in place of a cache.
    """

    own: Layout
    cross: Layout
    by_tuples: bool = False


def layouts_of(model: torch.nn.Module, states: torch.Tensor, mask: torch.Tensor | None) -> Layouts:
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
        If it keeps anything but keys and values.
    """
    kind = type(model).__name__
    own, cross = NotingCache(), NotingCache()
    try:
        _fed_two(model, states, mask, past_key_values=PairCache(own, cross, 0))
    except RecipeError:
        raise
    except Exception as error:  # the model's own Python, which may want a cache of its own kind
        tuples = _tuples_of(model, states, mask)
        if tuples is None:
            raise RecipeError(f"{kind} does not run on a cache of ours: {first_line(error)}") from error
        own, cross = _noted(tuples, 0), _noted(tuples, 2)
        return Layouts(layout_from(own, kind, 2), layout_from(cross, kind, None), by_tuples=True)
    return Layouts(layout_from(own, kind, 2), layout_from(cross, kind, None))


def _fed_two(model: torch.nn.Module, states: torch.Tensor, mask: torch.Tensor | None, **further: Any) -> Any:
    batch = len(states)
    with torch.no_grad():
        return called(
            model,
            {"encoder_outputs": EncoderStates(last_hidden_state=states), "attention_mask": mask},
            torch.tensor([[3, 4]]).expand(batch, 2),
            torch.ones(batch, 2, dtype=torch.long),
            torch.tensor([[0, 1]]).expand(batch, 2),
            cache_position=torch.arange(2),
            use_cache=True,
            **further,
        )


def _tuples_of(model: torch.nn.Module, states: torch.Tensor, mask: torch.Tensor | None) -> Any:
    """For each layer keys and values of its own tokens and of the source; None if it returns something else."""
    try:
        past = _fed_two(model, states, mask).past_key_values
    except Exception:  # what has failed before tells more
        return None
    fours = isinstance(past, tuple) and all(isinstance(layer, tuple) and len(layer) == 4 for layer in past)
    return past if fours and past else None


def _noted(tuples: Sequence[Sequence[torch.Tensor]], first: int) -> NotingCache:
    noting = NotingCache()
    for layer, kept in enumerate(tuples):
        noting.update(kept[first], kept[first + 1], layer)
    return noting


def as_tuples(own: Sequence[torch.Tensor], cross: Sequence[torch.Tensor]) -> tuple[tuple[torch.Tensor, ...], ...]:
    """The keys of each layer, then the values, of both halves, as a decoder takes them that takes tuples."""
    layers = len(own) // 2
    return tuple((own[n], own[layers + n], cross[n], cross[layers + n]) for n in range(layers))


class TupleCache:
    """What such a decoder returned last, for a state to crop and reorder."""

    tuples: tuple[tuple[torch.Tensor, ...], ...] | None = None

    def crop(self, length: int) -> None:
        """Take away so many tokens as the negative number says."""
        self.tuples = tuple(
            (keys[:, :, :length], values[:, :, :length], *source) for keys, values, *source in self.tuples
        )

    def batch_select_indices(self, rows: torch.Tensor) -> None:
        """Keep these rows."""
        self.tuples = tuple(tuple(tensor.index_select(0, rows) for tensor in layer) for layer in self.tuples)
