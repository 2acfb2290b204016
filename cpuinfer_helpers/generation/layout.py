"""What a model keeps of each token: keys and values, layer by layer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache

from cpuinfer_helpers.errors import RecipeError, first_line
from cpuinfer_helpers.generation.positions import positions_of


@dataclass(frozen=True)
class Layout:
    """The shapes of keys and values of one token in one row.

    Attributes
    ----------
    keys, values
        For each layer the number of heads and the size of each.
    """

    keys: tuple[tuple[int, int], ...]
    values: tuple[tuple[int, int], ...]

    @property
    def numbers(self) -> int:
        """How many numbers are kept of each token."""
        return sum(heads * size for heads, size in (*self.keys, *self.values))

    def bytes_in(self, dtype: torch.dtype) -> int:
        """Bytes of what is kept of one token in one row."""
        return self.numbers * torch.empty(0, dtype=dtype).element_size()

    def new(self, batch: int, capacity: int, dtype: torch.dtype) -> list[torch.Tensor]:
        """Room for tokens: the keys of all layers, then the values, each (batch, heads, capacity, size)."""
        with torch.inference_mode(False):
            return [torch.zeros(batch, h, capacity, size, dtype=dtype) for h, size in (*self.keys, *self.values)]


class OwnCache(Cache):
    """A cache of ours that transformers takes for one of its own; what it holds is not transformers' business."""

    is_compileable = False
    is_initialized = True
    is_croppable = True

    def __init__(self) -> None:
        """The library's own constructor, which makes layers, is left out."""

    @property
    def layers(self) -> list[Any]:
        """Of transformers' kind there are none."""
        return []

    @property
    def is_sliding(self) -> list[bool]:
        """Nothing is forgotten."""
        return [False]

    @property
    def is_linear(self) -> list[bool]:
        """No layer keeps a state of fixed size."""
        return [False]

    @property
    def is_dummy(self) -> list[bool]:
        """Every layer keeps what it is given."""
        return [False]

    def __len__(self) -> int:
        return 1

    def get_max_cache_shape(self, layer_idx: int = 0) -> Any:
        """There is no limit."""
        return None

    def get_max_length(self, layer_idx: int | None = None) -> Any:
        """There is no limit, which transformers 5 says by -1 and version 4 by None."""
        return -1 if hasattr(Cache, "activate_past_recording") else None

    def get_mask_sizes(self, query: Any, layer_idx: int = 0) -> tuple[int, int]:
        """The number of tokens with the new ones, and where the first one stands."""
        new = query.shape[0] if isinstance(query, torch.Tensor) else query
        return self.get_seq_length() + new, 0

    def activate_past_recording(self) -> None:
        """Nothing is forgotten that would have to be kept."""


class NotingCache(OwnCache):
    """Notes what each layer stores."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Note them, and hand them out."""
        if layer_idx in self.seen:
            raise RecipeError(f"layer {layer_idx} stores keys and values twice for one token")
        self.seen[layer_idx] = key, value
        return key, value

    def get_seq_length(self, layer_idx: int | None = 0) -> int:
        """There were none before."""
        return 0


def named_arguments(model: torch.nn.Module, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that a model's ``forward`` has."""
    taken = names_taken(model)
    return {name: value for name, value in arguments.items() if name in taken}


def names_taken(model: torch.nn.Module) -> frozenset[str]:
    """The names of the arguments that a model's ``forward`` has.

    Where it only hands on what it is given, as a class derived from the model's may do, those of the forward behind it.
    """
    forwards = [model.forward, *(vars(kind)["forward"] for kind in type(model).__mro__ if "forward" in vars(kind))]
    names = [inspect.signature(forward).parameters for forward in forwards]
    return frozenset(next((known for known in names if "input_ids" in known), names[0]))


def layout_of(model: torch.nn.Module) -> Layout:
    """See what a model stores when it is fed two tokens.

    Raises
    ------
    RecipeError
        If it does not keep its tokens in one of transformers' caches, or keeps anything but keys and values.
    """
    cache, mask = NotingCache(), torch.ones(1, 2, dtype=torch.long)
    arguments = {
        "input_ids": torch.tensor([[3, 4]]),
        "attention_mask": mask,
        "position_ids": positions_of(mask, 2),
        "cache_position": torch.arange(2),
        "past_key_values": cache,
        "use_cache": True,
    }
    try:
        with torch.no_grad():
            model(**named_arguments(model, arguments))
    except RecipeError:
        raise
    except Exception as error:  # the model's own Python, which may want a cache of its own kind
        raise RecipeError(f"{type(model).__name__} does not run on a cache of ours: {first_line(error)}") from error
    return layout_from(cache, type(model).__name__, 2)


def layout_from(cache: NotingCache, name: str, tokens: int | None) -> Layout:
    """The layout of what was noted.

    Parameters
    ----------
    cache
        In which a model has stored something.
    name
        The model's class.
    tokens
        Of how many tokens; None for any number.

    Raises
    ------
    RecipeError
        If that is anything but keys and values of each layer.
    """
    stored = [cache.seen.get(layer) for layer in range(len(cache.seen))]
    if not stored or None in stored:
        raise RecipeError(
            f"{name} keeps something else of its tokens than keys and values for each layer; this recipe knows no "
            "other state"
        )
    for key, value in stored:
        if key.dim() != 4 or value.dim() != 4 or (tokens is not None and key.shape[2] != tokens):
            shape = tuple(key.shape)
            raise RecipeError(f"{name} stores keys of shape {shape}, not (batch, heads, {tokens or 'places'}, size)")
    return Layout(*(tuple((t.shape[1], t.shape[3]) for t in part) for part in zip(*stored, strict=True)))
