"""Which sizes of its inputs a prepared model has been compared at, and may be called with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from cpuinfer_helpers.errors import InputError

Tensors = Mapping[str, torch.Tensor]


Slot = tuple[str, int]


@dataclass(frozen=True)
class Sizes:
    """The smallest and the largest size of every dimension after the batch, and which sizes must be equal.

    Attributes
    ----------
    ranges
        By input: lowest and highest size for each dimension after the first. Inputs that are not there, and all where
        nothing was compared, may have any size.
    equal
        Groups of dimensions, each an input and a number, whose sizes must be equal in every call: the batch is
        dimension 0.
    """

    ranges: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    equal: tuple[tuple[Slot, ...], ...] = ()

    @classmethod
    def seen_in(cls, example: Tensors, groups: Iterable[Tensors], parts: Iterable[tuple[Slot, ...]] = ()) -> Sizes:
        """The ranges of all sizes in an example and other groups of inputs with the same names.

        Parameters
        ----------
        example, groups
            Inputs by name.
        parts
            Dimensions that were seen to be right with other sizes than those that they share in the example.
        """
        ranges = {name: [[size, size] for size in tensor.shape[1:]] for name, tensor in example.items()}
        for group in groups:
            for name, tensor in group.items():
                for bounds, size in zip(ranges[name], tensor.shape[1:], strict=True):
                    bounds[:] = min(bounds[0], size), max(bounds[1], size)
        kept = {name: tuple((low, high) for low, high in bounds) for name, bounds in ranges.items()}
        return cls(kept, _tied(example, [set(part) for part in parts]))

    @property
    def fixed(self) -> dict[str, torch.Size]:
        """Sizes of a row, of the inputs of which no dimension may vary."""
        return {
            name: torch.Size(low for low, _ in bounds)
            for name, bounds in self.ranges.items()
            if bounds and all(low == high for low, high in bounds)
        }

    def refuse_others(self, inputs: Tensors) -> None:
        """Raise where an input has a size that no comparison had.

        Raises
        ------
        InputError
            That names the input, its size and those that it may have.
        """
        for name, bounds in self.ranges.items():
            shape = inputs[name].shape
            if len(shape) != len(bounds) + 1:
                raise InputError(f"{name} has {len(shape)} dimensions, and had {len(bounds) + 1} in the example")
            for dim, (low, high) in enumerate(bounds, 1):
                if not low <= shape[dim] <= high:
                    raise InputError(self._refusal(name, shape))
        for (first, dim), *others in self.equal:
            size = inputs[first].shape[dim]
            for name, other in others:
                if inputs[name].shape[other] != size:
                    what = "rows" if dim == other == 0 else f"as dimension {other}"
                    sizes = f"{first} has {size} and {name} {inputs[name].shape[other]} {what}"
                    raise InputError(f"{sizes}; give inputs that fit together")

    def refuse_other_example(self, example: Tensors) -> None:
        """Raise where these cannot be the sizes of an example's inputs, whoever has written them.

        Raises
        ------
        ValueError
            If they are of other inputs or dimensions, or the example is not among them.
        """
        slots = [slot for group in self.equal for slot in group]
        known = all(name in example and 0 <= dim < example[name].dim() for name, dim in slots)
        if not (known and all(self.equal) and self.ranges.keys() <= example.keys()):
            raise ValueError("sizes should be of the example's inputs, and are of others")
        if any(low < 0 for bounds in self.ranges.values() for low, _ in bounds):
            raise ValueError("sizes should be 0 or more, and some are less")
        try:
            self.refuse_others(example)
        except InputError as error:
            raise ValueError(f"sizes leave out the example: {error}") from error

    def _refusal(self, name: str, shape: torch.Size) -> str:
        texts = (f"{low}" if low == high else f"{low} to {high}" for low, high in self.ranges[name])
        given, wanted = " x ".join(map(str, shape[1:])), " x ".join(texts)
        return (
            f"each row of {name} is {given}; the answers were compared with the model's at {wanted} only: give it such "
            "rows, or prepare the model anew with an example of the size that you need"
        )


ANY_SIZE = Sizes()


def _tied(example: Tensors, parts: list[set[Slot]]) -> tuple[tuple[Slot, ...], ...]:
    """The dimensions of equal size that no part was seen to leave."""
    groups: dict[Any, list[Slot]] = {}
    for name, tensor in example.items():
        for dim, size in enumerate(tensor.shape):
            apart = tuple((name, dim) in part for part in parts)
            groups.setdefault((dim == 0, size, apart), []).append((name, dim))
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)
