"""Load what a recipe has prepared and somebody has saved: from the backend's own files, or anew from the weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.errors import ArtifactError, InputError, RecipeError, not_loaded
from cpuinfer_helpers.interface.inputs import BoundInputs
from cpuinfer_helpers.machine.paths import given_path
from cpuinfer_helpers.receipts import Receipt
from cpuinfer_helpers.recipes.base import Recipe
from cpuinfer_helpers.recipes.preparation import prepare
from cpuinfer_helpers.recipes.prepared import KIND, PreparedModel
from cpuinfer_helpers.recipes.saved import read_example, read_recipe_manifest
from cpuinfer_helpers.saving.kinds import loads
from cpuinfer_helpers.saving.manifest import read_sizes
from cpuinfer_helpers.saving.plain import read
from cpuinfer_helpers.saving.weights import read_model


@loads(KIND)
def load_prepared(
    directory: str | os.PathLike[str],
    *,
    rebuild: bool = False,
    model: torch.nn.Module | None = None,
    calibration: Sequence[Mapping[str, torch.Tensor]] = (),
    verify: bool = True,
) -> PreparedModel:
    """Read a folder that :meth:`PreparedModel.save` wrote; see :func:`~cpuinfer_helpers.load_optimized`."""
    return load_of_kind(directory, KIND, {}, _itself, rebuild, model, calibration, verify)


def _itself(
    manifest: Mapping[str, Any], prepared: PreparedModel, eager: torch.nn.Module | None, folder: Path
) -> PreparedModel:
    return prepared


def load_of_kind(
    directory: str | os.PathLike[str],
    kind: str,
    fields: Mapping[str, Any],
    finish: Callable[[Mapping[str, Any], PreparedModel, torch.nn.Module | None, Path], Any],
    rebuild: bool,
    model: torch.nn.Module | None,
    calibration: Sequence[Mapping[str, torch.Tensor]],
    verify: bool,
) -> Any:
    """Load a prepared model from a folder of a kind, and make of it what that kind is.

    Parameters
    ----------
    directory, kind
        The folder, and what it must hold.
    fields
        Fields of the kind's manifest beside those of every prepared model.
    finish
        Makes the result, of the manifest, the prepared model, the eager model where it was made, and the folder.
    rebuild, model, calibration, verify
        As for :func:`~cpuinfer_helpers.load_optimized`.

    Raises
    ------
    ArtifactError, RecipeError
        As for :func:`~cpuinfer_helpers.load_optimized`.
    """
    folder = given_path(directory, "directory")
    try:
        manifest, recipe = read_recipe_manifest(folder, kind, fields, rebuild=rebuild)
        inputs, probe = read_example(manifest, folder)
        eager = None
        if rebuild or not manifest["exported"]:
            eager = read_model(manifest["model"], folder, model)
            prepared = _prepared_anew(manifest, recipe, eager, inputs, calibration, verify=rebuild)
        else:
            prepared = PreparedModel.restored(manifest, recipe, inputs, probe, folder)
        result = finish(manifest, prepared, eager, folder)
        if verify:
            prepared.run_probe(probe, folder)
    except (ArtifactError, RecipeError):
        raise
    except Exception as error:  # with a changed manifest it may be put together in any wrong way
        if isinstance(error, InputError) and (model is not None or calibration):
            raise  # of what was given with the call
        raise not_loaded(folder, error) from error
    return result


def _prepared_anew(
    manifest: Mapping[str, Any],
    recipe: Recipe,
    eager: torch.nn.Module,
    inputs: BoundInputs,
    calibration: Sequence[Mapping[str, torch.Tensor]],
    *,
    verify: bool,
) -> PreparedModel:
    """The eager model of the saved weights, prepared by the saved recipe.

    Without ``verify`` the comparisons of the day when it was saved hold, and calls keep to the sizes of those.
    """
    each_shape = bool(manifest.get("each_shape"))
    prepared = prepare(
        recipe,
        eager,
        {**inputs.tensors, **inputs.constants},
        calibration=calibration,
        verify=verify or each_shape,
        tolerance=manifest["tolerance"],
        on_failure="raise",
        each_shape=each_shape,
    )
    if not (verify or each_shape):
        saved = read(Receipt, manifest["receipt"], "receipt", older=True)
        prepared.receipt = replace(prepared.receipt, checks=saved.checks)
        prepared.sizes = read_sizes(manifest, inputs.tensors)
    return prepared
