"""Optimized models as folders: what the recipe has made, the weights that it was made of, and a manifest."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.artifacts import new_artifact, read_manifest
from cpuinfer_helpers.compare import Comparison
from cpuinfer_helpers.compare.saved import as_text
from cpuinfer_helpers.copies import untouched
from cpuinfer_helpers.errors import ArtifactError, CpuInferError, InputError, RecipeError, first_line
from cpuinfer_helpers.machine import detect_isa, installed_versions, machine_report
from cpuinfer_helpers.optimize.model import OptimizedModel
from cpuinfer_helpers.optimize.weights import dtype_of, read_config, read_model, write_model
from cpuinfer_helpers.outputs import OutputSpec
from cpuinfer_helpers.paths import given_path
from cpuinfer_helpers.receipts import Receipt
from cpuinfer_helpers.recipes import PreparedModel, Recipe, Request, get_recipe, list_recipes, prepare
from cpuinfer_helpers.recipes.base import Stored
from cpuinfer_helpers.reference import Reference
from cpuinfer_helpers.restoring import check_fields
from cpuinfer_helpers.serialised import read_named_tensors, write_named_tensors
from cpuinfer_helpers.signature import BoundInputs
from cpuinfer_helpers.sizes import read_sizes
from cpuinfer_helpers.traced_model import MANIFEST_FIELDS, PROBE_FILE, check_inputs, run_probe, schema
from cpuinfer_helpers.variations import valid_positions

logger = logging.getLogger("cpuinfer_helpers")

KIND = "cpuinfer-optimized-model"
_FORMAT_VERSION = 1
_COMPARISON_FILE = "comparison.json"
_FIELDS: Mapping[str, Any] = {
    "recipe": str,
    "needs": tuple[str, ...],
    "cpu": str,
    "threads": int,
    "reason": str | None,
    "tolerance": float | None,
    "exported": bool,
    "model": Mapping[str, Any],
    "details": Mapping[str, Any] | None,
    "output": Mapping[str, Any] | None,
    "output_dtypes": Mapping[str, str] | None,
}


def save(optimized: OptimizedModel, directory: str | os.PathLike[str]) -> Path:
    """See :meth:`OptimizedModel.save`."""
    recipe, model, prepared = _recipe_of(optimized), optimized.model, optimized.prepared
    if model is None:
        raise ArtifactError("this model was loaded from a folder without its weights; copy that folder")
    request = Request(recipe.name, recipe.precision, untouched(model), prepared.inputs)
    reference = Reference(model, prepared.inputs)
    probe = _probe(reference, prepared)
    manifest: dict[str, Any] = {
        "format_version": _FORMAT_VERSION,
        "recipe": recipe.name,
        "versions": installed_versions(),
        "needs": list(recipe.needs),
        "isa": list(detect_isa()),
        "cpu": machine_report().cpu,
        "threads": torch.get_num_threads(),
        "inputs": {name: schema(tensor) for name, tensor in prepared.inputs.tensors.items()},
        "constants": prepared.inputs.constants,
        "receipt": prepared.receipt.to_dict(),
        "reason": optimized.reason,
        "tolerance": optimized.tolerance,
        "sizes": prepared.sizes.to_dict(),
    }
    with new_artifact(directory, KIND, manifest) as folder:
        manifest["model"] = write_model(model, folder)
        manifest["exported"] = recipe.export is not None and prepared.prepared
        if manifest["exported"]:
            manifest["details"] = recipe.export(request, prepared.build, folder)
            manifest["output"] = prepared.spec.to_dict()
            manifest["output_dtypes"] = {name: _name(dtype) for name, dtype in prepared.dtypes.items()}
        write_named_tensors(probe, folder / PROBE_FILE)
        (folder / _COMPARISON_FILE).write_text(as_text(optimized.comparison), encoding="utf-8")
        _check_written(json.loads(json.dumps(manifest)), recipe, prepared.inputs, folder)
    return Path(directory)


def load_optimized(
    directory: str | os.PathLike[str],
    *,
    rebuild: bool = False,
    model: torch.nn.Module | None = None,
    calibration: Sequence[Mapping[str, torch.Tensor]] = (),
    verify: bool = True,
) -> OptimizedModel:
    """Read a folder that :meth:`OptimizedModel.save` wrote.

    The manifest and the sha256 of every file are checked before anything is deserialised. No file in it is a pickle
    that Python reads. But a TorchScript file is a program, and so are, in their way, the files of other backends: one
    whose code names an operator that touches files, or that would run while it is loaded, is refused. The sums tell of
    damage, not of malice: load only folders that come from someone you trust.

    Parameters
    ----------
    directory
        The folder.
    rebuild
        Make the eager model from the saved weights, prepare it by the saved recipe, and verify it: for other versions,
        or another CPU, than those it was saved with, which are an error otherwise.
    model
        An instance of the model's class, for models that are not of transformers and recipes whose result cannot be
        written (eager, BetterTransformer, torch.compile), or with ``rebuild``. Its weights are replaced by those of
        the folder.
    calibration
        Inputs for static quantisation, for a rebuild of an INT8 recipe.
    verify
        Compare with the answers that the eager model gave when this was saved, three calls.

    Returns
    -------
    OptimizedModel

    Raises
    ------
    ArtifactError
        If the folder is damaged or of another kind, was saved with other versions or on a CPU with instructions that
        this one lacks, or its answers differ.
    RecipeError
        If the recipe cannot run here.
    """
    folder = given_path(directory, "directory")
    manifest = read_manifest(folder, KIND, _FORMAT_VERSION)
    try:
        check_fields(manifest, MANIFEST_FIELDS | _FIELDS, "manifest")
        if manifest["tolerance"] is not None and not 0 <= manifest["tolerance"] < math.inf:
            raise ValueError(f"tolerance is {manifest['tolerance']}")
        recipe = _known_recipe(manifest["recipe"], folder)
        if not rebuild:
            _refuse_other_circumstances(manifest, recipe, folder)
        probe = read_named_tensors(folder / PROBE_FILE)
        inputs = BoundInputs({name: probe[f"input.{name}"] for name in manifest["inputs"]}, manifest["constants"])
        check_inputs(manifest, inputs, manifest.get("fixed_sizes"))
        if rebuild or not manifest["exported"]:
            optimized = _rebuilt(manifest, recipe, inputs, folder, model, calibration, verify=rebuild)
        else:
            optimized = _restored(manifest, recipe, inputs, probe, folder)
        if verify:
            run_probe(
                optimized,
                probe,
                folder,
                advice="load_optimized(..., rebuild=True) prepares it anew",
                valid=valid_positions(inputs.tensors, optimized.config),
                precision=recipe.precision,
                tolerance=optimized.tolerance,
            )
    except (ArtifactError, RecipeError):
        raise
    except Exception as error:  # with a changed manifest it may be put together in any wrong way
        if isinstance(error, InputError) and (model is not None or calibration):
            raise  # of what was given with the call
        raise ArtifactError(
            f"{folder}: its manifest is not what save() writes ({first_line(error)}); save again"
        ) from error
    return optimized


def _check_written(manifest: Mapping[str, Any], recipe: Recipe, inputs: BoundInputs, folder: Path) -> None:
    """Load what was just written, and run its probe, before it takes the place of an older folder.

    What a recipe would make anew from the weights when it is loaded is not made here: that takes as long as preparing.
    """
    try:
        probe = read_named_tensors(folder / PROBE_FILE)
        if not manifest["exported"]:
            Comparison.load(folder / _COMPARISON_FILE)
            return
        restored = _restored(manifest, recipe, inputs, probe, folder)
        valid = valid_positions(inputs.tensors, restored.config)
        run_probe(restored, probe, folder, valid=valid, precision=recipe.precision, tolerance=manifest["tolerance"])
    except (CpuInferError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ArtifactError(
            f"what was written cannot be loaded again, so nothing was saved: {first_line(error)}"
        ) from error


def _recipe_of(optimized: OptimizedModel) -> Recipe:
    try:
        return get_recipe(optimized.recipe)
    except ValueError as error:
        raise ArtifactError(
            f"{optimized.recipe} is a recipe of your own, which load_optimized does not know"
        ) from error


def _known_recipe(name: str, folder: Path) -> Recipe:
    if name not in list_recipes().names:
        raise ArtifactError(f"{folder} was made by the recipe {name!r}, which this version does not know")
    return get_recipe(name)


def _probe(reference: Reference, prepared: PreparedModel) -> dict[str, torch.Tensor]:
    """The example, and the eager model's answers to it, without those that no recipe returns, such as a cache."""
    answers = reference.expected
    names = prepared.spec.tensor_names() if prepared.spec else tuple(answers)
    given = {f"input.{name}": tensor for name, tensor in prepared.inputs.tensors.items()}
    return given | {f"output.{name}": answers[name] for name in names}


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
            "%s was found fastest on %s, this is %s; optimize() tells what is fastest here",
            manifest["recipe"],
            manifest["cpu"],
            machine_report().cpu,
        )


def _rebuilt(
    manifest: Mapping[str, Any],
    recipe: Recipe,
    inputs: BoundInputs,
    folder: Path,
    model: torch.nn.Module | None,
    calibration: Sequence[Mapping[str, torch.Tensor]],
    *,
    verify: bool,
) -> OptimizedModel:
    """The eager model from the saved weights, prepared by the saved recipe."""
    eager = read_model(manifest["model"], folder, model)
    prepared = prepare(
        recipe,
        eager,
        {**inputs.tensors, **inputs.constants},
        calibration=calibration,
        verify=verify,
        tolerance=manifest["tolerance"],
        on_failure="raise",
    )
    return _optimized(manifest, folder, prepared, eager)


def _answers_of(probe: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("output."): t for name, t in probe.items() if name.startswith("output.")}


def _restored(
    manifest: Mapping[str, Any], recipe: Recipe, inputs: BoundInputs, probe: Mapping[str, torch.Tensor], folder: Path
) -> OptimizedModel:
    """What the recipe had made, from its own files."""
    if recipe.why_not:
        raise RecipeError(f"{folder} needs the recipe {recipe.name}: {recipe.why_not}")
    spec = OutputSpec.from_dict(manifest["output"])
    dtypes = {name: dtype_of(dtype) for name, dtype in manifest["output_dtypes"].items()}
    # What the probe holds are the model's own answers, as it gave them.
    own = {name: tensor.dtype for name, tensor in _answers_of(probe).items()}
    if not dtypes.keys() == own.keys() == set(spec.tensor_names()) or dtypes != own:
        raise ArtifactError(f"{folder}: its manifest names other outputs than its probe holds; save again")
    try:
        build = recipe.restore(Stored(inputs, spec.tensor_names(), manifest["details"]), folder)
    except CpuInferError:
        raise
    except Exception as error:  # each backend has errors of its own for files that it cannot read
        raise ArtifactError(f"{folder}: {recipe.backend} cannot read its own files: {first_line(error)}") from error
    prepared = PreparedModel(
        recipe=recipe.name,
        model=None,
        inputs=inputs,
        spec=spec,
        dtypes=dtypes,
        receipt=Receipt.from_dict(manifest["receipt"]),
        build=build,
        config=read_config(manifest["model"], folder),
        sizes=read_sizes(manifest, inputs.tensors),
    )
    return _optimized(manifest, folder, prepared, None)


def _optimized(
    manifest: Mapping[str, Any], folder: Path, prepared: PreparedModel, model: torch.nn.Module | None
) -> OptimizedModel:
    return OptimizedModel(
        prepared=prepared,
        comparison=Comparison.load(folder / _COMPARISON_FILE),
        model=model,
        reason=manifest["reason"],
        tolerance=manifest["tolerance"],
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
