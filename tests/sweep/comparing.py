"""When two answers count as the same: a rule of the sweep's own, so that it does not share the package's mistakes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

# The same FP32 operators in another order differ by about 1e-6 of the usual answer for each layer.
RELATIVE, ABSOLUTE = 1e-4, 1e-6
# Of a column's values, how large those are that set its tolerance: an outlier must not widen it.
_QUANTILE = 0.9
# So many rows tell what a column usually holds; of fewer, it is what all columns hold.
_ROWS = 8
# A column that happens to be small is allowed the rounding of a tenth of what the columns usually hold.
_FLOOR = 0.1
# Values from here on that occur more than once, and are this many times what else there is or so large a share of it,
# are no answers but constants, such as those that mask scores.
_CONSTANT, _BEYOND, _SHARE = 1e3, 100, 0.02


def error_size(wanted: torch.Tensor, seen: torch.Tensor, valid: torch.Tensor | None = None) -> float | None:
    """Largest difference on valid positions, in tolerances; None if the shapes differ.

    Integers, infinities and repeated large constants must be equal. Any other value may differ by a share of itself,
    or of what its column (index of the last dimension) usually holds, whichever is more.
    """
    if wanted.shape != seen.shape:
        return None
    if valid is not None and wanted.shape[: valid.dim()] == valid.shape:
        wanted, seen = wanted[valid], seen[valid]
    if not wanted.numel():
        return 0.0
    if not wanted.is_floating_point():
        return 0.0 if torch.equal(wanted, seen.to(wanted.dtype)) else float("inf")
    wanted, seen = wanted.double(), seen.double()
    exact = _exact(wanted)
    same = (wanted == seen) | (wanted.isnan() & seen.isnan())
    if not same[exact].all() or not seen[~exact].isfinite().all():
        return float("inf")
    sizes = torch.where(exact, torch.nan, wanted.abs())
    allowed = RELATIVE * torch.maximum(sizes, _usual(sizes)) + ABSOLUTE
    errors = torch.where(same, 0.0, (wanted - seen).abs() / allowed)
    return errors.max().item()


def _exact(wanted: torch.Tensor) -> torch.Tensor:
    """Where a value is not finite, or a large constant."""
    values, places, counts = wanted.unique(return_inverse=True, return_counts=True)
    repeated = (values.abs() >= _CONSTANT) & (counts > 1)
    others = wanted[~repeated[places] & wanted.isfinite()].abs()
    beyond = values.abs() >= _BEYOND * (others.median() if others.numel() else 0.0)
    return ~wanted.isfinite() | (repeated & (beyond | (counts >= _SHARE * wanted.numel())))[places]


def _usual(sizes: torch.Tensor) -> torch.Tensor:
    """What each column usually holds, not counting what is not a number."""
    if sizes.dim() < 2 or sizes.numel() < _ROWS * sizes.shape[-1]:
        # Of two or three values it is the largest.
        return sizes.flatten().nanquantile(_QUANTILE, interpolation="nearest").nan_to_num(0.0).expand_as(sizes)
    columns = sizes.reshape(-1, sizes.shape[-1])
    usual = columns.nanquantile(_QUANTILE, dim=0, interpolation="lower").nan_to_num(0.0)
    return usual.clamp(min=_FLOOR * usual.median().item())


def flat(output: Any, path: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of an output by its path."""
    if isinstance(output, torch.Tensor):
        return {path or "output": output}
    entries = output.items() if isinstance(output, Mapping) else ()
    if isinstance(output, (tuple, list)):
        entries = ((str(number), entry) for number, entry in enumerate(output))
    found: dict[str, torch.Tensor] = {}
    for key, entry in entries:
        found |= flat(entry, f"{path}.{key}" if path else str(key))
    return found
