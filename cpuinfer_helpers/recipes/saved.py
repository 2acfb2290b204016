"""What of a prepared model is written into a folder, what a saved recipe is checked by, and its parts read again."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.errors import ArtifactError, CpuInferError, RecipeError, first_line
from cpuinfer_helpers.interface.inputs import BoundInputs
from cpuinfer_helpers.interface.outputs import OutputSpec
from cpuinfer_helpers.machine.report import detect_isa, machine_report
from cpuinfer_helpers.machine.versions import installed_versions
from cpuinfer_helpers.receipts import Receipt
from cpuinfer_helpers.recipes.base import Build, Recipe, Stored
from cpuinfer_helpers.recipes.registry import get_recipe, list_recipes
from cpuinfer_helpers.saving import manifest as manifests
from cpuinfer_helpers.saving.folders import read_manifest
from cpuinfer_helpers.saving.plain import check_fields, read
from cpuinfer_helpers.saving.probe import PROBE_FILE, answers_of, inputs_of
from cpuinfer_helpers.saving.tensors import read_named_tensors
from cpuinfer_helpers.saving.weights import dtype_of, read_config
from cpuinfer_helpers.verification.sizes import Sizes

logger = logging.getLogger("cpuinfer_helpers")

FORMAT_VERSION = 1
# What the manifest of a prepared model has beside that of every model.
FIELDS: Mapping[str, Any] = {
    "recipe": str,
    "needs": tuple[str, ...],
    "cpu": str,
    "threads": int,
    "tolerance": float | None,
    "exported": bool,
    "each_shape": bool | None,
    "model": Mapping[str, Any],
    "details": Mapping[str, Any] | None,
    "output": Mapping[str, Any] | None,
    "output_dtypes": Mapping[str, str] | None,
}


@dataclass(frozen=True)
class Parts:
    """A prepared model in parts, as its class takes them."""

    recipe: str
    inputs: BoundInputs
    spec: OutputSpec
    dtypes: Mapping[str, torch.dtype]
    receipt: Receipt
    build: Build
    config: Any
    sizes: Sizes
    probe: Mapping[str, torch.Tensor]
    tolerance: float | None


def recipe_to_save(name: str) -> Recipe:
    """The recipe of a prepared model.

    Raises
    ------
    ArtifactError
        If it is none of this package's, which could not be found again.
    """
    try:
        return get_recipe(name)
    except ValueError as error:
        raise ArtifactError(f"{name} is a recipe of your own, which load_optimized does not know") from error


def circumstances(recipe: Recipe) -> dict[str, Any]:
    """Entries of the manifest that tell by what, and where, a model was prepared."""
    return {
        "format_version": FORMAT_VERSION,
        "recipe": recipe.name,
        "needs": list(recipe.needs),
        "cpu": machine_report().cpu,
        "threads": torch.get_num_threads(),
    }


def read_recipe_manifest(
    folder: Path, kind: str, further: Mapping[str, Any], *, rebuild: bool
) -> tuple[dict[str, Any], Recipe]:
    """The manifest of a folder that holds what a recipe has prepared, and the recipe.

    Parameters
    ----------
    folder, kind
        As for :func:`~cpuinfer_helpers.saving.folders.read_manifest`.
    further
        Fields that this kind has beside those of every prepared model.
    rebuild
        It will be made anew, so that other versions and another CPU do not matter.

    Raises
    ------
    ArtifactError
        If the folder is damaged, of another kind, or was saved in circumstances that do not hold here.
    ValueError
        If the manifest is not what was written; the message names the place.
    """
    manifest = read_manifest(folder, kind, FORMAT_VERSION)
    check_fields(manifest, {**manifests.FIELDS, **FIELDS, **further}, "manifest")
    if manifest["tolerance"] is not None and not 0 <= manifest["tolerance"] < math.inf:
        raise ValueError(f"tolerance is {manifest['tolerance']}")
    name = manifest["recipe"]
    if name not in list_recipes().names:
        raise ArtifactError(f"{folder} was made by the recipe {name!r}, which this version does not know")
    recipe = get_recipe(name)
    if not rebuild:
        _refuse_other_circumstances(manifest, recipe, folder)
    return manifest, recipe


def read_example(manifest: Mapping[str, Any], folder: Path) -> tuple[BoundInputs, dict[str, torch.Tensor]]:
    """The example that a manifest describes, and the probe that it is a part of.

    Raises
    ------
    ArtifactError
        If the probe cannot be read.
    KeyError, ValueError
        If the probe and the manifest do not fit together.
    """
    probe = read_named_tensors(folder / PROBE_FILE)
    inputs = BoundInputs(inputs_of(probe, manifest["inputs"]), manifest["constants"])
    manifests.check_inputs(manifest, inputs.tensors, inputs.constants, manifest.get("fixed_sizes"))
    return inputs, probe


def read_parts(
    manifest: Mapping[str, Any],
    recipe: Recipe,
    inputs: BoundInputs,
    probe: Mapping[str, torch.Tensor],
    folder: Path,
) -> Parts:
    """What the recipe had made, from its own files.

    Parameters
    ----------
    manifest, recipe
        What :func:`read_recipe_manifest` gave.
    inputs, probe
        What :func:`read_example` gave.
    folder
        Where the files are.

    Raises
    ------
    RecipeError
        If the recipe cannot run here.
    ArtifactError
        If the backend cannot read its files, or they do not fit the probe.
    """
    if recipe.why_not:
        raise RecipeError(f"{folder} needs the recipe {recipe.name}: {recipe.why_not}")
    spec = OutputSpec.from_dict(manifest["output"])
    dtypes = {name: dtype_of(dtype) for name, dtype in manifest["output_dtypes"].items()}
    # What the probe holds are the model's own answers, as it gave them.
    own = {name: tensor.dtype for name, tensor in answers_of(probe).items()}
    if not dtypes.keys() == own.keys() == set(spec.tensor_names()) or dtypes != own:
        raise ArtifactError(f"{folder}: its manifest names other outputs than its probe holds; save again")
    try:
        build = recipe.restore(Stored(inputs, spec.tensor_names(), manifest["details"]), folder)
    except CpuInferError:
        raise
    except Exception as error:  # each backend has errors of its own for files that it cannot read
        raise ArtifactError(f"{folder}: {recipe.backend} cannot read its own files: {first_line(error)}") from error
    return Parts(
        recipe=recipe.name,
        inputs=inputs,
        spec=spec,
        dtypes=dtypes,
        receipt=read(Receipt, manifest["receipt"], "receipt", older=True),
        build=build,
        config=read_config(manifest["model"], folder),
        sizes=manifests.read_sizes(manifest, inputs.tensors),
        probe=probe,
        tolerance=manifest["tolerance"],
    )


def _refuse_other_circumstances(manifest: Mapping[str, Any], recipe: Recipe, folder: Path) -> None:
    advice = "load_optimized(..., rebuild=True) prepares it anew from the saved weights and verifies it"
    here, there = installed_versions(), manifest["versions"]
    for package in ("torch", *(re.split(r"[<>=]", need)[0] for need in manifest["needs"])):
        if here.get(package) != there.get(package) and (package in here or package in there):
            raise ArtifactError(
                f"{folder} was saved with {package} {there.get(package, 'missing')}, here it is "
                f"{here.get(package, 'missing')}: {advice}"
            )
    missing = [name for name in manifest["isa"] if name not in detect_isa()]
    if missing:
        raise ArtifactError(f"{folder} was saved on a CPU with {', '.join(missing)}, which this one lacks: {advice}")
    if manifest["cpu"] != machine_report().cpu:
        logger.warning(
            "%s was prepared on %s, this is %s; optimize() tells what is fastest here",
            manifest["recipe"],
            manifest["cpu"],
            machine_report().cpu,
        )
