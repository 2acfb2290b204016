"""Which positions are no padding, read from the mask that a model hands to its layers."""

from __future__ import annotations

import torch

from cpuinfer_helpers.errors import RecipeError

# A mask that is added to the scores holds 0 for what is kept and a large negative number for what is not; models were
# seen to use -1e4 and the most negative number of the dtype.
_HIDDEN = -1e3


def valid_positions(mask: object, batch: int, length: int) -> torch.Tensor | None:
    """The positions that are no padding.

    Parameters
    ----------
    mask
        What the model made of its attention mask: None where nothing is padded; (batch, length) with one for what is
        kept; or (batch or 1, heads or 1, queries or 1, length), either boolean with True for what is kept, or
        floating with zero for what is kept and a large negative number for the rest.
    batch, length
        Of the hidden states.

    Returns
    -------
    torch.Tensor or None
        Boolean, (batch, length); None if nothing is padded. A row of nothing but padding keeps its first position:
        there is no right answer for it, and none must be not-a-number.

    Raises
    ------
    RecipeError
        If the mask does more than hide padded positions.

    Examples
    --------
    >>> valid_positions(torch.tensor([[1, 1, 0]]), batch=1, length=3)
    tensor([[ True,  True, False]])
    >>> valid_positions(torch.zeros(1, 1, 1, 3), batch=1, length=3) is None
    True
    """
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor) or mask.dim() not in (2, 4) or mask.shape[-1] != length:
        shape = list(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise RecipeError(f"the attention mask of the layers is {shape}; the fast path takes padding masks only")
    keep = _kept_of_all_queries(mask) if mask.dim() == 4 else _ones(mask)
    if bool(keep.all()):
        return None
    keep = keep.expand(batch, length)
    first = keep[:, :1] | ~keep.any(dim=1, keepdim=True)
    return torch.cat([first, keep[:, 1:]], dim=1)


def _kept_of_all_queries(mask: torch.Tensor) -> torch.Tensor:
    """Positions that every query of every head sees, as (batch or 1, length)."""
    one = mask[:, :1, :1]
    same = all(mask.shape[dim] == 1 or mask.stride(dim) == 0 for dim in (1, 2)) or bool((mask == one).all())
    if not same:
        raise RecipeError(
            "the attention mask differs from query to query or from head to head (causal, or given with three "
            "dimensions); the fast path takes padding masks only"
        )
    rows = one[:, 0, 0]
    if rows.dtype == torch.bool:
        return rows
    if not rows.is_floating_point():
        raise RecipeError(f"the attention mask of the layers is {rows.dtype}; the fast path takes boolean or floating")
    keep = rows == 0
    if not bool((keep | (rows <= _HIDDEN)).all()):
        raise RecipeError("the attention mask adds a bias to the scores; the fast path takes padding masks only")
    return keep


def _ones(mask: torch.Tensor) -> torch.Tensor:
    keep = mask != 0
    if mask.dtype != torch.bool and not bool((mask == keep).all()):
        raise RecipeError("the attention mask holds other numbers than 0 and 1; the fast path takes padding masks only")
    return keep
