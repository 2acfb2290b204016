"""Pad every call to the next of a few lengths, so that a backend that specialises on shapes sees few of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from cpuinfer_helpers.errors import first_line
from cpuinfer_helpers.interface.copies import untouched
from cpuinfer_helpers.interface.outputs import take_apart
from cpuinfer_helpers.recipes.base import Request, Tensors
from cpuinfer_helpers.saving.plain import check_fields
from cpuinfer_helpers.verification.equality import difference, valid_for
from cpuinfer_helpers.verification.variations import most_positions, of_lengths, valid_positions

logger = logging.getLogger("cpuinfer_helpers")

Answer = Callable[[dict[str, torch.Tensor]], Tensors]

# Lengths are padded to a multiple of this: 8 columns on average, 5% of a sequence of 160.
BUCKET_STEP = 16
_DETAILS = {
    "fill": Mapping[str, int],
    "length_dims": Mapping[str, tuple[int, ...]],
    "longest": int | None,
    "step": int,
}


@dataclass(frozen=True)
class LengthBuckets:
    """Pads inputs to the next bucket, and cuts the outputs to the length that came in.

    Attributes
    ----------
    answer
        Called with padded tensors by name.
    fill
        By name of each input that is as long as the sequence: what its padding is made of.
    length_dims
        By name of each output: the dimensions that are as long as the sequence.
    longest
        Largest length that the model takes, or None.
    step
        Buckets are the multiples of this.
    """

    answer: Answer
    fill: Mapping[str, int]
    length_dims: Mapping[str, tuple[int, ...]]
    longest: int | None
    step: int = BUCKET_STEP

    def __call__(self, tensors: dict[str, torch.Tensor]) -> Tensors:
        """Answer with the real length."""
        mask = tensors["attention_mask"]
        length = mask.shape[1]
        bucket = self.bucket_of(length)
        # What a second sequence of another length is padded with, and where its outputs end, nobody can tell.
        if bucket == length or any(tensors[name].shape[1] != length for name in self.fill):
            return self.answer(tensors)
        # Padding on both sides is nothing that models are made for.
        if not bool(mask[:, 0].all()):
            return self.answer(tensors)
        outputs = self.answer({name: self._padded(name, tensor, bucket) for name, tensor in tensors.items()})
        return {name: self._cut(name, tensor, length) for name, tensor in outputs.items()}

    def details(self) -> dict[str, Any]:
        """All but ``answer``, in types that JSON knows."""
        dims = {name: list(dims) for name, dims in self.length_dims.items()}
        return {"fill": dict(self.fill), "length_dims": dims, "longest": self.longest, "step": self.step}

    @classmethod
    def from_details(
        cls, answer: Answer, details: Mapping[str, Any], example: Mapping[str, torch.Tensor], outputs: Sequence[str]
    ) -> LengthBuckets:
        """What :meth:`details` described, in front of a backend.

        Parameters
        ----------
        answer
            As of the class.
        details
            What :meth:`details` returned, perhaps changed by somebody.
        example
            The inputs, by name, that it was made with.
        outputs
            Names of the output tensors.

        Raises
        ------
        ValueError
            If such buckets cannot have been made of this example.
        """
        check_fields(details, _DETAILS, "buckets")
        fill, longest = details["fill"], details["longest"]
        if details["step"] != BUCKET_STEP or (longest is not None and longest < 1):
            raise ValueError(f"buckets have steps of {details['step']} up to {longest}")
        if fill.keys() != _sequences(example).keys() or any(fill[name] for name in fill if name != "input_ids"):
            raise ValueError(f"buckets fill {fill}")
        dims = {name: tuple(dims) for name, dims in details["length_dims"].items()}
        if dims.keys() != set(outputs) or any(dim < 1 for found in dims.values() for dim in found):
            raise ValueError(f"buckets cut {dims}")
        return cls(answer, fill, dims, longest)

    def bucket_of(self, length: int) -> int:
        """The length that a sequence is padded to."""
        bucket = -(-length // self.step) * self.step
        return bucket if self.longest is None else max(length, min(bucket, self.longest))

    def _padded(self, name: str, tensor: torch.Tensor, bucket: int) -> torch.Tensor:
        if name not in self.fill:
            return tensor
        padding = (0, 0) * (tensor.dim() - 2) + (0, bucket - tensor.shape[1])
        return torch.nn.functional.pad(tensor, padding, value=self.fill[name])

    def _cut(self, name: str, tensor: torch.Tensor, length: int) -> torch.Tensor:
        for dim in self.length_dims[name]:
            tensor = tensor.narrow(dim, 0, length)
        # A model's own output is contiguous, and what computes losses from it often takes view() for granted.
        return tensor.contiguous()


def with_buckets(request: Request, answer: Answer) -> Answer:
    """Put length buckets in front of a backend where the inputs can be padded, else return it as it is.

    They can if there is an attention mask of (batch, length), no input has the length in a later dimension, and the
    eager model gives a padded sequence the same answers: one that pools or routes tokens may not.
    """
    mask = request.inputs.tensors.get("attention_mask")
    if request.one_shape or mask is None or mask.dim() != 2:
        return answer
    length = mask.shape[1]
    if any(length in tensor.shape[2:] for tensor in request.inputs.tensors.values()):
        return answer
    pad_token = getattr(request.config, "pad_token_id", None) or 0
    fill = {name: pad_token if name == "input_ids" else 0 for name in _sequences(request.inputs.tensors)}
    try:
        buckets = LengthBuckets(answer, fill, _length_dims(request), most_positions(request.config))
        return buckets if _padding_is_ignored(request, buckets) else answer
    except Exception as error:  # a model may refuse other lengths in any way
        logger.info("lengths are not padded: %s", first_line(error))
        return answer


def _padding_is_ignored(request: Request, buckets: LengthBuckets) -> bool:
    """Whether the eager model answers alike with and without what the buckets add."""
    example = request.inputs.tensors
    asked = of_lengths(request.config, example, (_short_length(request.config),))
    length = example["attention_mask"].shape[1]
    if buckets.bucket_of(length) != length:
        asked.append(dict(example))
    return all(_is_ignored(request, buckets, inputs) for inputs in asked)


def _is_ignored(request: Request, buckets: LengthBuckets, inputs: dict[str, torch.Tensor]) -> bool:
    valid = valid_positions(inputs, request.config)
    eager = replace(buckets, answer=lambda padded: _outputs(request, padded))
    expected, seen = _outputs(request, inputs), eager(inputs)
    return all(
        seen[name].shape == tensor.shape and difference(tensor, seen[name], valid_for(tensor, valid)).passed
        for name, tensor in expected.items()
    )


def _sequences(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those that are as long as the attention mask."""
    length = tensors["attention_mask"].shape[1]
    return {name: tensor for name, tensor in tensors.items() if tensor.dim() >= 2 and tensor.shape[1] == length}


def _length_dims(request: Request) -> dict[str, tuple[int, ...]]:
    """Which dimensions of each output follow the length: those that differ between two short lengths."""
    longer = _short_length(request.config)
    made = of_lengths(request.config, request.inputs.tensors, (longer, max(1, longer - 4)))
    shapes = [{name: tensor.shape for name, tensor in _outputs(request, inputs).items()} for inputs in made]
    return {
        name: tuple(dim for dim, (one, other) in enumerate(zip(shape, shapes[1][name], strict=True)) if one != other)
        for name, shape in shapes[0].items()
    }


def _short_length(config: Any) -> int:
    return min(11, most_positions(config) or 11)


def _outputs(request: Request, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the eager model answers, untouched by the call."""
    return take_apart(untouched(request.model)(**inputs, **request.inputs.constants))[0]
