"""Where tokens stand in their texts, and which of them each may attend to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from cpuinfer_helpers.errors import InputError

# What layers attend to: everything before, or the last tokens only.
FULL = "full_attention"
SLIDING = "sliding_attention"
CHUNKED = "chunked_attention"

_OF_DECODER = "decoder_attention_mask"


def check_left_padding(mask: torch.Tensor, name: str = "attention_mask") -> None:
    """Raise where padding stands anywhere but on the left.

    Parameters
    ----------
    mask
        1 for tokens and 0 for padding, (batch, tokens).
    name
        Of the argument that it is.

    Raises
    ------
    InputError
        After padding on the right the next token would be written behind the padding, where no model has learned to
        read it: the answers are wrong without an error.
    """
    if mask.dim() != 2:
        raise InputError(f"{name} has {mask.dim()} dimensions; give one of shape (batch, tokens)")
    # Transformers puts the token that a decoder begins with before the padding, where no row has it.
    begun = name == _OF_DECODER and mask.shape[1] > 1 and bool(mask[:, 0].all())
    given = mask[:, 1:] if begun else mask
    wrong = (given[:, 1:] < given[:, :-1]).any(dim=1)
    if bool(wrong.any()):
        raise InputError(
            f"row {int(wrong.nonzero()[0])} of {name} is padded on the right or in the middle; pad prompts on the "
            "left: tokenizer.padding_side = 'left'"
        )
    if not bool(mask[:, -1].all()):
        raise InputError(f"a row of {name} has no token at all; leave such rows out")


def positions_of(mask: torch.Tensor, new: int) -> torch.Tensor:
    """Each of the last ``new`` tokens' place in its text, padding not counted, as transformers' ``generate`` does."""
    positions = mask.long().cumsum(dim=-1) - 1
    return positions.masked_fill_(mask == 0, 1)[:, -new:]


def attention_kinds(config: Any) -> dict[str, int | None]:
    """What the layers of a model attend to, with the number of tokens where that is limited."""
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    sizes = {FULL: None, SLIDING: window, CHUNKED: getattr(config, "attention_chunk_size", None)}
    found = dict.fromkeys(getattr(config, "layer_types", None) or ())
    if not found:
        return {SLIDING: window} if window else {FULL: None}
    return {kind: sizes.get(kind) for kind in found}


def window_of(config: Any) -> int | None:
    """The smallest number of tokens that a layer of the model is limited to; None where none is."""
    return min((size for size in attention_kinds(config).values() if size), default=None)


def masks_of(
    kinds: Mapping[str, int | None], mask: torch.Tensor, start: int, dtype: torch.dtype
) -> tuple[torch.Tensor, ...]:
    """For each kind of attention what is added to the scores of the tokens from ``start`` on.

    Parameters
    ----------
    kinds
        See :func:`attention_kinds`.
    mask
        1 for tokens and 0 for padding, (batch, tokens).
    start
        The first token that attends.
    dtype
        Of the scores.

    Returns
    -------
    tuple of torch.Tensor
        Of shape (batch, 1, tokens from ``start`` on, tokens): 0 where a token may be attended to, the dtype's lowest
        number elsewhere.
    """
    total = mask.shape[1]
    keys = torch.arange(total)
    queries = torch.arange(start, total)[:, None]
    causal = keys <= queries
    tokens = mask.bool()[:, None, None, :]
    first = total - mask.long().sum(dim=1)[:, None, None, None]
    return tuple(
        _added(tokens & _seen(kind, size, keys, queries, first) & causal, dtype) for kind, size in kinds.items()
    )


def _seen(kind: str, size: int | None, keys: torch.Tensor, queries: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """What a kind of attention sees; chunks begin with each row's first token."""
    if size is None or kind == FULL:
        return torch.ones((), dtype=torch.bool)
    if kind == CHUNKED:
        return (keys - first).div(size, rounding_mode="floor") == (queries - first).div(size, rounding_mode="floor")
    return keys > queries - size


def _added(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
