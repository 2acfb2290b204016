"""What counts as the same answer: how far each value of an output may lie from the model's own."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch

# Positions that are no padding, boolean: of the inputs, or of the inputs and of the frames that are made of them.
Valid = torch.Tensor | tuple[torch.Tensor, ...] | None

# Largest difference that passes, as a share of the scale of the answers. The same operations in another order or fused
# differ by a few units in the last place for each layer: about 1e-6 in FP32 over 12 layers, so 1e-4 leaves room for
# 100 times that and is far below any difference that a wrong mask or length makes. BF16 keeps 8 bits (2**-8 = 0.004
# for one rounding).
_RELATIVE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# For a model that computes in less than its reference. BF16: as above. INT8: with random weights
# BERT-base's answers were seen to err by 0.03 of the largest on inputs like those of calibration, and by 0.38 on 3 x 7
# tokens; whether labels survive that is what the task's metric says.
_PRECISION_TOLERANCE = {"bf16": 5e-2, "int8": 0.5}
# For answers near zero: what is left when numbers of about one cancel in FP32.
_ABSOLUTE_TOLERANCE = 1e-6

# Answers whose magnitudes lie further apart than this, with nothing in between, are no answers of the same kind: 2**6.
_GAP_IN_BITS = 6
_MOST_BITS = 1100
# Fewer small values than this share of all are near zero by chance, and no kind of their own.
_SMALLEST_KIND = 0.05
# From so many rows on, the largest value of a column tells its scale.
_ROWS_FOR_COLUMNS = 8
# A column's scale is at least this share of the largest among columns of its magnitude.
_SHARE_OF_LARGEST = 0.01
# What models write over scores that must not be chosen: -1e4 and beyond, always the same number.
_MASKING = 1e4
# Whatever is computed beside other numbers carries two units of their last place in FP32; a single value that is small
# may be so by chance, and carries what the others do.
_ROUNDING, _ROUNDING_OF_ONE = 2**-22, 2**-17
# Rounding a constant to BF16 changes it by at most 2**-8; casting the lowest FP32 number to BF16 by as much.
_CONSTANT_IN_LESS = 2**-7


@dataclass(frozen=True)
class Difference:
    """The value of an output that lies farthest from the model's, measured by how far it may.

    Attributes
    ----------
    error
        Absolute difference.
    allowed
        Largest difference that passes there.
    """

    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether the answers count as the same."""
        return self.error <= self.allowed


def difference(
    expected: torch.Tensor,
    seen: torch.Tensor,
    valid: Valid = None,
    precision: str | None = None,
    tolerance: float | None = None,
    typical: float = 0.0,
) -> Difference:
    """Compare an output with the model's own, on valid positions.

    Parameters
    ----------
    expected, seen
        Of the same shape.
    valid
        Boolean, of the shape of the first dimensions of the outputs that it is about; all positions unless given.
    precision
        ``fp32``, ``bf16`` or ``int8``: what was computed in; that of the expected dtype unless given.
    tolerance
        Largest difference that passes, as a share of the scale; that of the precision unless given.
    typical
        The size of this output's answers to other inputs (:func:`typical_size`): a few answers, of a text of one token,
        may be near zero by chance, and carry the rounding of what they were computed from.

    Returns
    -------
    Difference
        The worst one. Not-a-number and infinities must stand in the same places; integers must be equal.

    Notes
    -----
    A difference is measured by the scale of the answers around it, so that a constant among them, such as a mask's
    -1e9, a box in pixels or a time stamp, hides no error in the others:

    * A number of at least 1e4 that stands in several places is a mask: FP32 must give that number. It is none where
      more numbers between its half and its double stand in one place: FP32 has few so large, and two may meet.
    * Other values are of one kind unless their magnitudes are 2**6 apart with nothing in between.
    * Values of one kind in a column (the same place in the last dimension) have the largest of them as their scale,
      from eight rows on, and at least a hundredth of the largest in other columns. With fewer rows, the scale is the
      largest of the kind; in INT8 and BF16, whose errors follow the largest values, it is the largest of all below 1e4.

    Examples
    --------
    >>> masked = torch.tensor([[0.5, -1e9], [-1e9, 0.25]])
    >>> difference(masked, masked + torch.tensor([[0.1, 0.0], [0.0, 0.0]])).passed
    False
    """
    wanted, got = (_comparable(valid_part(tensor, valid)) for tensor in (expected, seen))
    if not wanted.numel():
        return Difference(0.0, 0.0)
    errors = _errors(wanted, got)
    allowed = _allowed(expected, wanted, precision, tolerance)
    if expected.is_floating_point() and typical:
        relative = _relative(expected.dtype, precision) if tolerance is None else tolerance
        least = typical * (relative if _in_less(expected, precision) else min(relative, _ROUNDING_OF_ONE))
        allowed = torch.where(allowed > 0, allowed.clamp(min=least), allowed)
    allowed = allowed.expand_as(errors)
    # Where nothing may differ, any difference is the worst.
    shares = errors / allowed.clamp(min=torch.finfo(errors.dtype).tiny)
    place = shares.nan_to_num(float("inf")).argmax()
    return Difference(errors.flatten()[place].item(), allowed.flatten()[place].item())


def largest_error(expected: torch.Tensor, seen: torch.Tensor, valid: Valid = None) -> float:
    """Largest absolute difference on valid positions; not-a-number in the same places counts as equal."""
    errors = _errors(*(_comparable(valid_part(tensor, valid)) for tensor in (expected, seen)))
    return errors.max().item() if errors.numel() else 0.0


def valid_for(output: torch.Tensor, valid: Valid) -> torch.Tensor | None:
    """Those of the valid positions that fit an output's first dimensions; None if none do, so that all count."""
    for positions in valid if isinstance(valid, tuple) else (valid,):
        if positions is not None and output.shape[: positions.dim()] == positions.shape:
            return positions
    return None


def _errors(wanted: torch.Tensor, got: torch.Tensor) -> torch.Tensor:
    same = (wanted == got) | (wanted.isnan() & got.isnan())
    errors = torch.where(same, torch.zeros_like(wanted), (wanted - got).abs())
    return torch.where(errors.isnan(), torch.full_like(errors, float("inf")), errors)


def _allowed(
    expected: torch.Tensor, wanted: torch.Tensor, precision: str | None, tolerance: float | None
) -> torch.Tensor:
    """Largest difference that passes, for each of the values in double precision."""
    if not expected.is_floating_point() and not expected.is_complex():
        return torch.zeros_like(wanted)
    relative = _relative(expected.dtype, precision) if tolerance is None else tolerance
    in_less = _in_less(expected, precision)
    sizes = wanted.abs().nan_to_num_(0.0, 0.0, 0.0)
    masks = _masks(wanted, sizes)
    if masks is None:
        return _allowed_by_kind(sizes, relative, whole=in_less)
    unmasked = _allowed_by_kind(sizes.masked_fill(masks, 0.0), relative, whole=in_less)
    return torch.where(masks, sizes * (_CONSTANT_IN_LESS if in_less else 0.0), unmasked)


def _allowed_by_kind(sizes: torch.Tensor, relative: float, *, whole: bool) -> torch.Tensor:
    ends = _ends_of_kinds(sizes)
    if len(ends) < 2:
        return relative * _scales(sizes, whole=whole) + _ABSOLUTE_TOLERANCE
    largest = sizes.masked_fill(sizes >= _MASKING, 0.0).amax()
    allowed, low = torch.full_like(sizes, _ABSOLUTE_TOLERANCE), 0.0
    for end in ends:
        kind = (sizes > low) & (sizes <= end)
        share = relative if whole else _ROUNDING if int(kind.sum()) > 1 else _ROUNDING_OF_ONE
        scales = torch.maximum(relative * _scales(sizes * kind, whole=whole), share * largest)
        allowed, low = torch.where(kind, scales + _ABSOLUTE_TOLERANCE, allowed), end
    return allowed


def _masks(wanted: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor | None:
    """Where a number of at least 1e4 stands that stands in several places; None if there is no number so large."""
    huge = sizes >= _MASKING
    if not bool(huge.any()):
        return None
    numbers, counts = torch.unique(wanted[huge], return_counts=True)
    repeated, sizes_alone = counts > 1, numbers[counts == 1].abs().sort().values
    ends = numbers[repeated].abs()[:, None] * torch.tensor([0.5, 2.0], dtype=numbers.dtype)
    low, high = torch.searchsorted(sizes_alone, ends).unbind(dim=1)
    return huge & torch.isin(wanted, numbers[repeated][high - low <= counts[repeated]])


def _in_less(expected: torch.Tensor, precision: str | None) -> bool:
    return precision in _PRECISION_TOLERANCE or expected.dtype in (torch.float16, torch.bfloat16)


def typical_size(answers: torch.Tensor) -> float:
    """The largest of an output's answers, without what no answer is: masks, infinities and what is no number."""
    if not answers.is_floating_point() or not answers.numel():
        return 0.0
    sizes = answers.abs().nan_to_num(0.0, 0.0, 0.0)
    return sizes.masked_fill(sizes >= _MASKING, 0.0).max().item()


def _relative(dtype: torch.dtype, precision: str | None) -> float:
    own = _RELATIVE_TOLERANCE.get(dtype, _RELATIVE_TOLERANCE[torch.float32])
    return max(own, _PRECISION_TOLERANCE.get(precision or "", 0.0))


def _ends_of_kinds(sizes: torch.Tensor) -> list[float]:
    """The upper ends of the magnitudes of each kind, as powers of two, smallest first."""
    bits = torch.frexp(sizes).exponent.clamp(-_MOST_BITS, _MOST_BITS)
    counts = torch.bincount((bits[sizes > 0] + _MOST_BITS).flatten(), minlength=2 * _MOST_BITS + 1)
    present = (torch.nonzero(counts).flatten() - _MOST_BITS).tolist()
    smallest, below, ends = _SMALLEST_KIND * int(counts.sum()), 0, []
    for bit, following in itertools.pairwise((*present, math.inf)):
        below += int(counts[bit + _MOST_BITS])
        # A few small values go with the next larger ones.
        if following - bit > _GAP_IN_BITS and (below >= smallest or following == math.inf):
            ends.append(2.0**bit if bit < 1024 else math.inf)
            below = 0
    return ends


def _scales(sizes: torch.Tensor, *, whole: bool) -> torch.Tensor:
    """The scale of each column's values."""
    if whole or sizes.dim() < 2 or sizes.numel() // sizes.shape[-1] < _ROWS_FOR_COLUMNS:
        return sizes.max()
    columns = sizes.reshape(-1, sizes.shape[-1]).amax(dim=0)
    return torch.maximum(columns, _SHARE_OF_LARGEST * columns.max())


def _comparable(tensor: torch.Tensor) -> torch.Tensor:
    """In a floating dtype that holds every value: FP32 where that does, which takes half the time of doubles."""
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    small = tensor.dtype in (torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.int8)
    return tensor.float() if small else tensor.double()


def valid_part(tensor: torch.Tensor, valid: Valid) -> torch.Tensor:
    """The values at valid positions."""
    positions = valid_for(tensor, valid)
    return tensor if positions is None else tensor[positions]
