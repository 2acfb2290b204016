"""What the manifest of every saved model says, whichever kind it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cpuinfer_helpers.machine.report import detect_isa
from cpuinfer_helpers.machine.versions import installed_versions
from cpuinfer_helpers.receipts import Receipt
from cpuinfer_helpers.saving.plain import read, write
from cpuinfer_helpers.verification.sizes import Sizes

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class InputSchema:
    """Dtype and shape of an input, as a manifest has them."""

    dtype: str
    example_shape: tuple[int, ...]


# Those that may be missing are ``... | None``.
FIELDS: Mapping[str, Any] = {
    "versions": Mapping[str, str],
    "isa": tuple[str, ...],
    "inputs": Mapping[str, InputSchema],
    "constants": Mapping[str, Any],
    "receipt": Mapping[str, Any],
    "sizes": Mapping[str, Any] | None,
    "fixed_sizes": Mapping[str, tuple[int, ...]] | None,
}


def described(
    tensors: Tensors, constants: Mapping[str, Any], receipt: Receipt, sizes: Sizes | None = None
) -> dict[str, Any]:
    """The entries of a manifest that tell of the example, the receipt, the machine and the versions.

    Parameters
    ----------
    tensors, constants
        The example.
    receipt, sizes
        Of what is saved; without ``sizes`` for what has a size for each of its shapes.
    """
    entries = {
        "versions": installed_versions(),
        "isa": list(detect_isa()),
        "inputs": {name: schema(tensor) for name, tensor in tensors.items()},
        "constants": dict(constants),
        "receipt": write(receipt),
    }
    return entries if sizes is None else entries | {"sizes": write(sizes)}


def check_inputs(
    manifest: Mapping[str, Any],
    tensors: Tensors,
    constants: Mapping[str, Any],
    fixed_sizes: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Refuse a manifest that describes other inputs than those of the probe.

    Raises
    ------
    ValueError
        If dtypes, shapes, sizes or constants are not those of the example; the message names the place.
    """
    for name, tensor in tensors.items():
        if manifest["inputs"][name] != schema(tensor):
            raise ValueError(f"inputs.{name} is {manifest['inputs'][name]}, and the example is {schema(tensor)}")
    for name, value in constants.items():
        if not isinstance(value, (bool, int, float, str)) or value != value or name in tensors:
            raise ValueError(f"constants.{name} is {value!r}")
    for name, sizes in (fixed_sizes or {}).items():
        if tuple(sizes) != tuple(tensors[name].shape[1:]):
            raise ValueError(f"fixed_sizes.{name} is {list(sizes)}, and the example has other sizes")


def read_sizes(manifest: Mapping[str, Any], example: Tensors) -> Sizes:
    """The sizes that a manifest tells; of folders that were written before it told more than the fixed ones, those.

    Raises
    ------
    ValueError
        If it tells no such thing, or not of this example.
    """
    if "sizes" in manifest:
        sizes = read(Sizes, manifest["sizes"], "sizes")
    else:
        fixed = read(Mapping[str, tuple[int, ...]], manifest.get("fixed_sizes", {}), "fixed_sizes")
        sizes = Sizes({name: tuple((size, size) for size in row) for name, row in fixed.items()})
    sizes.refuse_other_example(example)
    return sizes


def schema(tensor: torch.Tensor) -> dict[str, Any]:
    """Dtype and shape of an input."""
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "example_shape": list(tensor.shape)}
