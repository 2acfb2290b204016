"""The example that is saved with its answers, and the check that what was loaded still gives them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cpuinfer_helpers.errors import ArtifactError, first_line
from cpuinfer_helpers.interface.inputs import BoundInputs
from cpuinfer_helpers.interface.reference import run_seeded
from cpuinfer_helpers.machine.report import detect_isa
from cpuinfer_helpers.machine.versions import installed_versions
from cpuinfer_helpers.verification.checks import CALLS_PER_CHECK
from cpuinfer_helpers.verification.equality import Valid, difference

logger = logging.getLogger("cpuinfer_helpers")
PROBE_FILE = "probe.safetensors"


@dataclass(frozen=True)
class InputSchema:
    """Dtype and shape of an input, as a manifest has them."""

    dtype: str
    example_shape: tuple[int, ...]


# What every manifest of a model has, whichever kind it is; those that may be missing are ``... | None``.
MANIFEST_FIELDS: Mapping[str, Any] = {
    "versions": Mapping[str, str],
    "isa": tuple[str, ...],
    "inputs": Mapping[str, InputSchema],
    "constants": Mapping[str, Any],
    "receipt": Mapping[str, Any],
    "sizes": Mapping[str, Any] | None,
    "fixed_sizes": Mapping[str, tuple[int, ...]] | None,
}


def run_probe(
    answer: Callable[..., Any],
    probe: Mapping[str, torch.Tensor],
    folder: str | os.PathLike[str],
    *,
    advice: str = "trace and save the model again with the versions installed here",
    valid: Valid = None,
    precision: str | None = None,
    tolerance: float | None = None,
) -> None:
    """Compare a loaded model's answers, three calls, with those that were saved with it.

    Parameters
    ----------
    answer
        The loaded model.
    probe
        The example's inputs and the eager model's answers, by name.
    folder, advice
        Where it was loaded from, and what to do if it differs, for the message.
    valid
        Positions to compare, as for :func:`~cpuinfer_helpers.verification.equality.difference`; all unless given.
    precision, tolerance
        As for :func:`~cpuinfer_helpers.verification.checks.verify`.

    Raises
    ------
    ArtifactError
        If they differ, or the model fails.
    """
    inputs = {name.removeprefix("input."): t for name, t in probe.items() if name.startswith("input.")}
    expected = {name.removeprefix("output."): t for name, t in probe.items() if name.startswith("output.")}
    for call in range(1, CALLS_PER_CHECK + 1):
        try:
            seen = run_seeded(lambda tensors: answer(**tensors), inputs)
        except Exception as error:  # with a changed manifest it may be put together in any wrong way
            raise ArtifactError(f"{folder}: the loaded model fails on call {call}: {first_line(error)}") from error
        if not expected or not expected.keys() <= seen.keys():
            raise ArtifactError(f"{folder}: the probe does not fit the model, which returns {', '.join(seen)}")
        for name, wanted in expected.items():
            if seen[name].shape != wanted.shape:
                raise ArtifactError(
                    f"{folder}: on call {call} {name} has shape {list(seen[name].shape)}, not {list(wanted.shape)}; "
                    f"{advice}"
                )
            found = difference(wanted, seen[name], valid, precision, tolerance)
            if not found.passed:
                raise ArtifactError(
                    f"{folder}: on call {call} {name} differs from the model's by {found.error:.1e} "
                    f"(tolerance {found.allowed:.1e}); {advice}"
                )


def check_inputs(
    manifest: Mapping[str, Any], inputs: BoundInputs, fixed_sizes: Mapping[str, Sequence[int]] | None = None
) -> None:
    """Refuse a manifest that describes other inputs than those of the probe.

    Raises
    ------
    ValueError
        If dtypes, shapes, sizes or constants are not those of the example; the message names the place.
    """
    for name, tensor in inputs.tensors.items():
        if manifest["inputs"][name] != schema(tensor):
            raise ValueError(f"inputs.{name} is {manifest['inputs'][name]}, and the example is {schema(tensor)}")
    for name, value in inputs.constants.items():
        if not isinstance(value, (bool, int, float, str)) or value != value or name in inputs.tensors:
            raise ValueError(f"constants.{name} is {value!r}")
    for name, sizes in (fixed_sizes or {}).items():
        if tuple(sizes) != tuple(inputs.tensors[name].shape[1:]):
            raise ValueError(f"fixed_sizes.{name} is {list(sizes)}, and the example has other sizes")


def warn_of_other_versions(manifest: Mapping[str, Any], folder: str) -> None:
    """Log what differs between the machine that saved a folder and this one."""
    here = installed_versions()
    for name in ("torch", "intel-extension-for-pytorch"):
        saved = manifest["versions"].get(name)
        if saved != here.get(name):
            logger.warning(
                "%s was saved with %s %s, here is %s",
                folder,
                name,
                saved or "not installed",
                here.get(name, "none"),
            )
    isa = detect_isa()
    missing = [name for name in manifest["isa"] if name not in isa]
    if missing:
        logger.warning("%s was saved on a CPU with %s, which this one lacks", folder, ", ".join(missing))


def schema(tensor: torch.Tensor) -> dict[str, Any]:
    """Dtype and shape of an input, for a manifest."""
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "example_shape": list(tensor.shape)}
