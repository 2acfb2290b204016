"""The example that is saved with its answers, and the check that what was loaded still gives them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from cpuinfer_helpers.errors import ArtifactError, first_line
from cpuinfer_helpers.machine.report import detect_isa
from cpuinfer_helpers.machine.versions import installed_versions
from cpuinfer_helpers.verification.checks import CALLS_PER_CHECK
from cpuinfer_helpers.verification.equality import Valid, difference

logger = logging.getLogger("cpuinfer_helpers")
PROBE_FILE = "probe.safetensors"

Tensors = Mapping[str, torch.Tensor]


def probe_of(inputs: Tensors, answers: Tensors) -> dict[str, torch.Tensor]:
    """The example and the model's own answers to it, under the names that they are saved by."""
    return {f"input.{name}": t for name, t in inputs.items()} | {f"output.{name}": t for name, t in answers.items()}


def inputs_of(probe: Tensors, names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
    """The inputs in a probe, all of them or those of some names in their order.

    Raises
    ------
    KeyError
        If one of the names is not there.
    """
    if names is not None:
        return {name: probe[f"input.{name}"] for name in names}
    return {name.removeprefix("input."): tensor for name, tensor in probe.items() if name.startswith("input.")}


def answers_of(probe: Tensors) -> dict[str, torch.Tensor]:
    """The model's own answers in a probe."""
    return {name.removeprefix("output."): tensor for name, tensor in probe.items() if name.startswith("output.")}


def run_probe(
    answer: Callable[[Tensors], Tensors],
    probe: Tensors,
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
        Asks the loaded model: from tensors by name to its outputs by name, without gradients, under a fixed seed.
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
    inputs, expected = inputs_of(probe), answers_of(probe)
    for call in range(1, CALLS_PER_CHECK + 1):
        try:
            seen = answer(inputs)
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
