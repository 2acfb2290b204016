"""Check that a prepared model gives the model's own answers on shapes and paddings that it has not seen."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from cpuinfer_helpers import switches
from cpuinfer_helpers.errors import first_line
from cpuinfer_helpers.outputs import take_apart
from cpuinfer_helpers.receipts import Check

logger = logging.getLogger("cpuinfer_helpers")

Tensors = Mapping[str, torch.Tensor]
Answer = Callable[[Tensors], Any]
# Positions that are no padding, boolean: of the inputs, or of the inputs and of the frames that are made of them.
Valid = torch.Tensor | tuple[torch.Tensor, ...] | None

# Optimised plans appear after two to three calls, so one right call proves little (FACTS section 3, item 10).
CALLS_PER_CHECK = 3

# Largest difference that passes, as a share of the largest answer. The same operations in another order or fused differ
# by a few units in the last place for each layer: about 1e-6 in FP32 over 12 layers, so 1e-4 leaves room for 100
# times that and is far below any difference that a wrong mask or length makes. BF16 keeps 8 bits (2**-8 = 0.004 for
# one rounding).
_RELATIVE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# For a model that computes in less than its reference. BF16: as above. INT8: with random weights
# BERT-base's answers were seen to err by 0.03 of the largest on inputs like those of calibration, and by 0.38 on 3 x 7
# tokens; whether labels survive that is what the task's metric says.
_PRECISION_TOLERANCE = {"bf16": 5e-2, "int8": 0.5}
# For answers near zero: what is left when numbers of about one cancel in FP32.
_ABSOLUTE_TOLERANCE = 1e-6

# Long enough for three rows of different padding; longer ones cost time and show nothing more.
_PADDED_LENGTH = 48
# Beyond the length from which BigBird's attention turns sparse (704 tokens with its usual blocks), and short enough
# for one row on any CPU.
_FAR_LENGTH = 768
# Smaller ones cannot be made smaller for a model that halves them a few times.
_SMALLEST_IMAGE = 16


@dataclass(frozen=True)
class Variation:
    """Inputs that differ from the example in one way.

    Attributes
    ----------
    name
        What was varied.
    inputs
        The tensors by name; None where this variation cannot be made, with the reason in ``note``.
    valid
        Boolean, batch by length: the positions that are no padding; None if all are valid. With a second one, batch by
        frames, for models whose convolutions make frames of samples.
    note
        Why there are no inputs.
    """

    name: str
    inputs: dict[str, torch.Tensor] | None
    valid: Valid = None
    note: str = ""


def variations(config: Any, example: Tensors) -> Iterator[Variation]:
    """Other batch sizes, lengths and paddings of the example inputs.

    Parameters
    ----------
    config
        The model's configuration, for its largest length and its padding token; None for models without one.
    example
        Tensors by name; the first dimension of each is the batch, the second of those as long as the sequence is the
        length.

    Yields
    ------
    Variation
        The example itself, another batch size, a partial last batch, shorter and longer sequences, padding on either
        side, and other tokens under the padding.
    """
    shapes = _Shapes(config, example)
    batch, length = shapes.batch, shapes.length
    yield Variation("example", dict(example), shapes.valid(example))
    yield shapes.vary("other batch size", batch + 1, length)
    yield shapes.vary("partial last batch", max(1, batch - 1), length, first_row=1)
    if length is None:
        yield Variation("other lengths", None, note="the inputs have no sequence dimension")
        return
    yield shapes.vary("shorter", batch + 1, max(2, length // 3))
    yield shapes.vary("much shorter", batch + 2, max(2, min(7, length // 2)))
    longer = shapes.limited(length + max(3, length // 4))
    if longer > length:
        yield shapes.vary("longer", batch, longer)
    else:
        yield Variation("longer", None, note=f"the model takes no more than {longer} tokens")
    if not shapes.has_mask:
        yield Variation("padding", None, note="there is no attention mask among the inputs, so nothing may be padded")
        return
    padded_length = max(6, min(length // 3, _PADDED_LENGTH))
    yield shapes.padded("padding", 3, padded_length)
    yield shapes.padded("padded tokens changed", 3, padded_length, other_tokens=True)
    yield shapes.padded("padding on the left", 3, padded_length, left=True)


def far_variations(config: Any, example: Tensors) -> Iterator[Variation]:
    """Sizes far from the example's: two tokens, many more tokens than it has, smaller and larger images.

    A model may take another path through its code there, which a trace of the example does not hold: sparse attention
    on long texts, fewer experts than all on short ones, windows padded to an image of another size.

    Parameters
    ----------
    config, example
        As for :func:`variations`.

    Yields
    ------
    Variation
    """
    shapes = _Shapes(config, example)
    if shapes.length is not None and "input_ids" in example:
        if shapes.length > 2:
            yield shapes.vary("two tokens", 1, 2)
        far = shapes.limited(max(_FAR_LENGTH, 2 * shapes.length))
        if far > shapes.length + max(3, shapes.length // 4):
            yield shapes.vary("far longer", 1, far)
    pixels = example.get("pixel_values")
    if pixels is not None and pixels.dim() == 4 and min(pixels.shape[-2:]) >= _SMALLEST_IMAGE:
        yield from shapes.images(pixels)


def same_shape_variations(config: Any, given: Tensors) -> Iterator[Variation]:
    """Inputs of exactly the given shape: themselves, other content, other paddings, other tokens under the padding.

    Parameters
    ----------
    config, given
        As for :func:`variations`.

    Yields
    ------
    Variation
    """
    shapes = _Shapes(config, given)
    yield Variation("given", dict(given), shapes.valid(given))
    yield shapes.other_content("other content", seed=1)
    yield shapes.other_content("other content again", seed=2)
    if not shapes.has_mask or shapes.length < 3:
        return
    size = shapes.batch, shapes.length
    yield shapes.padded("padding", *size, counts=shapes.counts(0))
    yield shapes.padded("padded tokens changed", *size, counts=shapes.counts(1), other_tokens=True)
    yield shapes.padded("padding on the left", *size, counts=shapes.counts(1), left=True)
    yield shapes.padded("no padding", *size, counts=[shapes.length] * shapes.batch)


def with_padding(config: Any, example: Tensors) -> dict[str, torch.Tensor] | None:
    """The example with its last token padded, where none is; None if it has padding, or nothing may be padded.

    Models that look whether there is any padding take their general path then.
    """
    shapes = _Shapes(config, example)
    if not shapes.has_mask or shapes.length < 3 or not bool(example["attention_mask"].all()):
        return None
    counts = [shapes.length] * (shapes.batch - 1) + [shapes.length - 1]
    return shapes.padded("", shapes.batch, shapes.length, counts=counts).inputs


def verify(
    answer: Answer,
    reference: Answer,
    config: Any,
    example: Tensors,
    *,
    precision: str | None = None,
    tolerance: float | None = None,
    planned: Iterable[Variation] | None = None,
    other_seeds: bool = False,
) -> tuple[Check, ...]:
    """Compare a prepared model with its model on every variation, three calls each; stop at the first that fails.

    Parameters
    ----------
    answer, reference
        The prepared model and the model: functions from tensors by name to an output.
    config
        The model's configuration or None.
    example
        Tensors by name.
    precision
        ``fp32``, ``bf16`` or ``int8``: what the prepared model computes in, which sets the tolerance; that of the
        reference's own dtype unless given.
    tolerance
        Largest difference that passes, as a share of the largest answer; that of the precision unless given.
    planned
        Other variations than those of :func:`variations`.
    other_seeds
        Ask the prepared model under another random seed on each call, for models whose answers no seed changes.

    Returns
    -------
    tuple of Check
    """
    from tqdm.auto import tqdm

    inputs = list(variations(config, example) if planned is None else planned)
    checks: list[Check] = []
    for variation in tqdm(inputs, desc="verifying", leave=False, delay=2.0):
        checks.append(_check(variation, answer, reference, precision, tolerance, other_seeds))
        if checks[-1].passed is False:
            break
    return tuple(checks)


def _check(
    variation: Variation,
    answer: Answer,
    reference: Answer,
    precision: str | None,
    tolerance: float | None,
    other_seeds: bool,
) -> Check:
    if variation.inputs is None:
        return Check(variation.name, "", None, note=variation.note)
    shape = shape_text(variation.inputs)
    try:
        expected = run_seeded(reference, variation.inputs)
    except Exception as error:  # any model may refuse any shape in its own way; that is no fault of the trace
        return Check(variation.name, shape, None, note=f"the model itself refuses: {first_line(error)}")
    worst = Check(variation.name, shape, True)
    for call in range(1, CALLS_PER_CHECK + 1):
        try:
            seen = run_seeded(answer, variation.inputs, seed=call if other_seeds else 0)
        except Exception as error:  # a trace fails with whatever its operators raise
            return Check(variation.name, shape, False, note=f"call {call} fails: {first_line(error)}")
        worst = compare_answers(worst, expected, seen, variation.valid, precision, tolerance)
        if not worst.passed:
            return replace(worst, note=f"call {call}: {worst.note}")
    return worst


def compare_answers(
    check: Check,
    expected: Tensors,
    seen: Tensors,
    valid: Valid,
    precision: str | None,
    tolerance: float | None = None,
) -> Check:
    """The check with the largest error and its tolerance, failed if an output differs by more.

    Parameters
    ----------
    check
        What is known of the check so far.
    expected, seen
        Outputs by name.
    valid
        As for :class:`Variation`.
    precision, tolerance
        As for :func:`verify`.
    """
    # The model may return more than a trace can hold, such as a key-value cache; the receipt says what is left out.
    compared = [name for name in expected if name in seen]
    if not compared:
        return replace(check, passed=False, note=f"nothing to compare: it returns {', '.join(seen)}")
    for name in compared:
        wanted, got = expected[name], seen[name]
        if got.shape != wanted.shape:
            return replace(check, passed=False, note=f"{name} has shape {list(got.shape)}, not {list(wanted.shape)}")
        error = largest_error(wanted, got, valid)
        allowed = tolerance_for(wanted, valid, precision, tolerance)
        if not error <= allowed:
            return replace(check, passed=False, max_error=error, tolerance=allowed, note=f"{name} differs")
        if error >= check.max_error:
            check = replace(check, max_error=error, tolerance=allowed)
    return check


def largest_error(expected: torch.Tensor, seen: torch.Tensor, valid: Valid = None) -> float:
    """Largest absolute difference on valid positions; not-a-number in the same places counts as equal."""
    wanted, got = _valid_part(expected, valid).double(), _valid_part(seen, valid).double()
    same = (wanted == got) | (wanted.isnan() & got.isnan())
    error = torch.where(same, torch.zeros_like(wanted), (wanted - got).abs())
    error = torch.where(error.isnan(), torch.full_like(error, float("inf")), error)
    return error.max().item() if error.numel() else 0.0


def tolerance_for(
    expected: torch.Tensor,
    valid: Valid = None,
    precision: str | None = None,
    tolerance: float | None = None,
) -> float:
    """Largest difference that passes: a share of the largest answer, given or by precision; nothing for integers."""
    if not expected.is_floating_point():
        return 0.0
    finite = _valid_part(expected, valid).double()
    finite = finite[finite.isfinite()].abs()
    # Masked scores hold the most negative number of the dtype, which must not widen the tolerance for the others.
    finite = finite[finite < 1e30]
    largest = finite.max().item() if finite.numel() else 0.0
    if tolerance is not None:
        return tolerance * largest + _ABSOLUTE_TOLERANCE
    relative = _RELATIVE_TOLERANCE.get(expected.dtype, 1e-4)
    if precision in _PRECISION_TOLERANCE:
        relative = max(relative, _PRECISION_TOLERANCE[precision])
    return relative * largest + _ABSOLUTE_TOLERANCE


def run_seeded(function: Answer, inputs: Tensors, seed: int = 0) -> dict[str, torch.Tensor]:
    """One call under a fixed seed, without gradients; the process's random state is restored."""
    with torch.no_grad(), switches.random_state_kept():
        torch.manual_seed(seed)
        return take_apart(function(inputs))[0]


def valid_positions(inputs: Mapping[str, Any], config: Any = None) -> Valid:
    """Positions that are no padding, as the attention mask of shape (batch, length) says.

    Parameters
    ----------
    inputs
        What the model is called with.
    config
        The model's configuration or None: it tells of convolutions that make frames of samples.

    Returns
    -------
    Tensor, tuple of two or None
        Boolean, of shape (batch, length); with it, of shape (batch, frames) for such models. None without a mask.
    """
    mask = inputs.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
        return None
    valid = mask.bool()
    frames = _frames(config, valid) if "input_values" in inputs else None
    return valid if frames is None else (valid, frames)


def valid_for(output: torch.Tensor, valid: Valid) -> torch.Tensor | None:
    """Those of the valid positions that fit an output's first dimensions; None if none do, so that all count."""
    for positions in valid if isinstance(valid, tuple) else (valid,):
        if positions is not None and output.shape[: positions.dim()] == positions.shape:
            return positions
    return None


def shape_text(inputs: Tensors) -> str:
    """Shape of the first input, such as ``3 x 96``."""
    return " x ".join(map(str, next(iter(inputs.values())).shape))


def _valid_part(tensor: torch.Tensor, valid: Valid) -> torch.Tensor:
    positions = valid_for(tensor, valid)
    return tensor if positions is None else tensor[positions]


def _frames(config: Any, valid: torch.Tensor) -> torch.Tensor | None:
    """Frames that are made of valid samples only, as Wav2Vec2 and its kin count them; None for other models."""
    kernels, strides = getattr(config, "conv_kernel", None), getattr(config, "conv_stride", None)
    if not isinstance(kernels, (list, tuple)) or not isinstance(strides, (list, tuple)):
        return None
    # The number of outputs of a convolution without padding, as torch.nn.Conv1d gives it.
    counts = torch.cat([valid.sum(dim=1), torch.tensor([valid.shape[1]])])
    for kernel, stride in zip(kernels, strides, strict=False):
        counts = torch.div(counts - kernel, stride, rounding_mode="floor") + 1
    *rows, total = counts.clamp(min=0).tolist()
    return torch.tensor([[frame < count for frame in range(total)] for count in rows], dtype=torch.bool)


class _Shapes:
    """Makes inputs of other shapes from the example's own tokens."""

    def __init__(self, config: Any, example: Tensors) -> None:
        self.config = config
        self.example = example
        self.batch = next(iter(example.values())).shape[0]
        self.length = self._sequence_length()
        mask = example.get("attention_mask")
        self.has_mask = mask is not None and mask.dim() == 2 and mask.shape[1] == self.length

    def _sequence_length(self) -> int | None:
        for name in ("input_ids", "attention_mask", "inputs_embeds", "input_values"):
            tensor = self.example.get(name)
            if tensor is not None and tensor.dim() >= 2:
                return tensor.shape[1]
        return None

    def limited(self, length: int) -> int:
        limit = getattr(self.config, "max_position_embeddings", None)
        # RoBERTa and its kin number positions from two.
        return min(length, limit - 2) if isinstance(limit, int) and limit > 2 else length

    def valid(self, inputs: Tensors) -> Valid:
        return valid_positions(inputs, self.config) if self.has_mask else None

    def vary(self, name: str, batch: int, length: int | None, first_row: int = 0) -> Variation:
        inputs = {key: self._tensor(tensor, batch, length, first_row) for key, tensor in self.example.items()}
        return Variation(name, inputs, self.valid(inputs))

    def padded(
        self,
        name: str,
        batch: int,
        length: int,
        *,
        left: bool = False,
        other_tokens: bool = False,
        counts: Sequence[int] | None = None,
    ) -> Variation:
        inputs = self.vary(name, batch, length).inputs or {}
        keep = torch.zeros(batch, length, dtype=torch.bool)
        for row in range(batch):
            valid_count = length if row == 0 else max(2, length // (2 * row))
            valid_count = counts[row] if counts else valid_count
            columns = slice(length - valid_count, None) if left else slice(0, valid_count)
            keep[row, columns] = True
        inputs["attention_mask"] = keep.to(self.example["attention_mask"].dtype)
        for key in ("input_ids", "input_values", "inputs_embeds"):
            if key in inputs:
                inputs[key] = self._pad(inputs[key], keep, other_tokens)
        return Variation(name, inputs, self.valid(inputs))

    def counts(self, first: int) -> list[int]:
        """How many tokens of each row to keep: from all to a few, another number in each of the first rows."""
        return [max(2, self.length * (4 - (row + first) % 4) // 4) for row in range(self.batch)]

    def other_content(self, name: str, seed: int) -> Variation:
        """The same shape with the content of each input in another order; first and last tokens stay in place."""
        generator = torch.Generator().manual_seed(seed)
        inputs = {key: self._shuffled(key, tensor, generator) for key, tensor in self.example.items()}
        return Variation(name, inputs, self.valid(inputs))

    def _shuffled(self, name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if "mask" in name or not tensor.numel():
            return tensor
        if tensor.is_floating_point():
            return tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].view_as(tensor)
        if name not in ("input_ids", "inputs") or tensor.dim() != 2 or tensor.shape[1] < 4:
            return tensor
        # Among the example's own tokens, so that nothing special appears that it does not have.
        keep = self.valid(self.example)
        inner = tensor[:, 1:-1]
        drawn = inner.flatten()[torch.randint(inner.numel(), inner.shape, generator=generator)]
        other = torch.cat([tensor[:, :1], drawn, tensor[:, -1:]], dim=1)
        return other if keep is None else torch.where(keep, other, tensor)

    def images(self, pixels: torch.Tensor) -> Iterator[Variation]:
        height, width = pixels.shape[-2:]
        sizes = {
            "larger image": (height + height // 2, width + width // 2),
            "image of another shape": (height + height // 4 + 1, width),
            "smaller image": (height - height // 4, width - width // 4),
        }
        for name, size in sizes.items():
            resized = torch.nn.functional.interpolate(pixels.float(), size=size).to(pixels.dtype)
            yield Variation(name, {**self.example, "pixel_values": resized})

    def _pad(self, tensor: torch.Tensor, keep: torch.Tensor, other_tokens: bool) -> torch.Tensor:
        padding = getattr(self.config, "pad_token_id", None) if tensor.dtype == torch.long else 0
        padded = tensor.clone()
        padded[~keep] = padding if isinstance(padding, int) and padding >= 0 else 0
        if other_tokens:
            padded[~keep] = tensor.roll(1, dims=1)[~keep]
        return padded

    def _tensor(self, tensor: torch.Tensor, batch: int, length: int | None, first_row: int) -> torch.Tensor:
        if tensor.dim() >= 2 and self.length is not None and tensor.shape[1] == self.length and length:
            tensor = tensor[:, self._columns(length)]
        rows = [tensor[(first_row + row) % tensor.shape[0]] for row in range(batch)]
        rolled = [self._roll_inner(row, first_row + number) for number, row in enumerate(rows)]
        return torch.stack(rolled)

    def _columns(self, length: int) -> list[int]:
        """Columns of the example that make a sequence of the wanted length; its first and last tokens stay in place."""
        inner = list(range(1, self.length - 1)) or [0]
        middle = [inner[i % len(inner)] for i in range(max(length - 2, 0))]
        return ([0, *middle, self.length - 1])[:length]

    @staticmethod
    def _roll_inner(row: torch.Tensor, by: int) -> torch.Tensor:
        """Other content for other rows: the same tokens, all but the first and last moved on."""
        if by == 0 or row.dim() == 0 or row.shape[0] < 4 or not _is_content(row):
            return row
        return torch.cat([row[:1], row[1:-1].roll(by, dims=0), row[-1:]])


def _is_content(row: torch.Tensor) -> bool:
    return row.is_floating_point() or (row.dim() == 1 and row.unique().numel() > 2)
