"""What of a prepared generator is written into a folder, and its parts read again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.errors import ArtifactError, CpuInferError, InputError, RecipeError, first_line
from cpuinfer_helpers.generation.probe import check_same_model, check_step, is_probe, prompts_of
from cpuinfer_helpers.generation.registry import generation_recipe
from cpuinfer_helpers.generation.step import EncodingStep, GenerationRecipe, StepBuild, StepRequest, StoredStep
from cpuinfer_helpers.interface.copies import evaluation_copy
from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.machine.report import detect_isa, machine_report
from cpuinfer_helpers.machine.versions import installed_versions
from cpuinfer_helpers.receipts import Receipt
from cpuinfer_helpers.saving.folders import new_artifact, read_manifest
from cpuinfer_helpers.saving.plain import check_fields, read, write
from cpuinfer_helpers.saving.probe import PROBE_FILE
from cpuinfer_helpers.saving.tensors import read_named_tensors, write_named_tensors
from cpuinfer_helpers.saving.weights import model_class_of, read_config, write_config

KIND = "cpuinfer-generator"
FORMAT_VERSION = 1
COMPARISON_FILE = "comparison.json"
_SETTINGS_FILE = "generation_config.json"
_FIELDS: Mapping[str, Any] = {
    "recipe": str,
    "versions": Mapping[str, str],
    "isa": tuple[str, ...],
    "cpu": str,
    "limit": int | None,
    "tolerance": float | None,
    "takes_padding": bool | None,
    "model": Mapping[str, Any],
    "details": Mapping[str, Any],
    "receipt": Mapping[str, Any],
}


@dataclass(frozen=True)
class ToSave:
    """What of a generator is written.

    Attributes
    ----------
    recipe
        The recipe's name.
    build
        What it made; None after a fallback.
    prompts
        The example.
    receipt, probe, tolerance
        As the generator has them.
    settings
        Of transformers' ``generate()``.
    tokenizer
        The model's, or None.
    comparison
        The recipes that were tried, or None.
    """

    recipe: str
    build: StepBuild | None
    prompts: Mapping[str, torch.Tensor]
    receipt: Receipt
    probe: Mapping[str, torch.Tensor]
    tolerance: float | None
    settings: Any
    tokenizer: Any = None
    comparison: Any = None


@dataclass(frozen=True)
class Restored:
    """A generator in parts, as its class takes them."""

    recipe: str
    build: StepBuild
    model_class: type
    config: Any
    settings: Any
    receipt: Receipt
    probe: Mapping[str, torch.Tensor]
    tolerance: float | None


def write_generator(saved: ToSave, directory: str | os.PathLike[str], model: Any) -> Path:
    """Write a generator, and see that it can be loaded, before it takes the place of an older folder."""
    recipe = _recipe_to_save(saved)
    if model is None:
        raise ArtifactError(
            "the eager model, whose weights are saved, is not in memory any more: keep it until then, or give it by "
            "save(folder, model=model). What was loaded from a folder is saved by copying that folder"
        )
    if not saved.probe:
        raise ArtifactError("it was prepared with verify=False, so nothing could tell whether it is right when loaded")
    check_same_model(model, saved.probe)
    manifest: dict[str, Any] = {}
    with new_artifact(directory, KIND, manifest) as folder:
        request = StepRequest(recipe.name, recipe.precision, evaluation_copy(model), saved.prompts)
        manifest.update(_circumstances(saved, recipe))
        manifest["model"] = write_config(model, folder)
        (folder / _SETTINGS_FILE).write_text(saved.settings.to_json_string(), encoding="utf-8")
        manifest["details"] = recipe.export(request, saved.build, folder)
        write_named_tensors(saved.probe, folder / PROBE_FILE)
        if saved.comparison is not None:
            saved.comparison.save(folder / COMPARISON_FILE)
        if saved.tokenizer is not None:
            saved.tokenizer.save_pretrained(folder)
        try:
            restore_generator(json.loads(json.dumps(manifest)), folder, verify=True)
        except (CpuInferError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"what was written cannot be loaded again, so nothing was saved: {first_line(error)}"
            ) from error
    return Path(directory)


def read_generator_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that :func:`write_generator` wrote.

    Raises
    ------
    ArtifactError
        If the folder is damaged or of another kind.
    ValueError
        If the manifest is not what was written; the message names the place.
    """
    manifest = read_manifest(folder, KIND, FORMAT_VERSION)
    check_fields(manifest, _FIELDS, "manifest")
    for name in ("limit", "tolerance"):
        if manifest[name] is not None and not 0 <= manifest[name] < 2**40:
            raise ValueError(f"{name} is {manifest[name]}")
    return manifest


def restore_generator(manifest: Mapping[str, Any], folder: Path, *, verify: bool) -> Restored:
    """Make the step of a folder run here.

    Parameters
    ----------
    manifest
        What :func:`read_generator_manifest` gave.
    folder
        Where the files are.
    verify
        Compare its logits with those that were saved with it.
    """
    from transformers import GenerationConfig

    recipe, probe = _recipe_of(manifest, folder), _probe(folder)
    model_class, config = model_class_of(manifest["model"]), read_config(manifest["model"], folder)
    if model_class is None or config is None:
        raise ArtifactError(f"{folder} holds a model of a class that is not in the transformers installed here")
    limit = manifest["limit"]
    stored = StoredStep(recipe.precision, model_class, config, limit, manifest["details"], prompts_of(probe))
    with switches.held(), torch.inference_mode(False), torch.no_grad():
        build = recipe.restore(stored, folder)
    build.step.limit = limit
    if isinstance(build.step, EncodingStep):
        build.step.takes_padding = manifest.get("takes_padding") is not False
    if verify:
        check_step(build.step, probe, recipe.precision, manifest["tolerance"], folder)
    return Restored(
        recipe=recipe.name,
        build=build,
        model_class=model_class,
        config=config,
        settings=GenerationConfig.from_pretrained(folder, local_files_only=True),
        receipt=read(Receipt, manifest["receipt"], "receipt", older=True),
        probe=probe,
        tolerance=manifest["tolerance"],
    )


def _probe(folder: Path) -> dict[str, torch.Tensor]:
    probe = read_named_tensors(folder / PROBE_FILE)
    if not is_probe(probe):
        raise ArtifactError(f"{folder / PROBE_FILE} holds other tensors than save() writes; save again")
    return probe


def _circumstances(saved: ToSave, recipe: GenerationRecipe) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "recipe": recipe.name,
        "versions": installed_versions(),
        "isa": list(detect_isa()),
        "cpu": machine_report().cpu,
        "limit": saved.build.step.limit,
        "tolerance": saved.tolerance,
        "takes_padding": getattr(saved.build.step, "takes_padding", None),
        "receipt": write(saved.receipt),
    }


def _recipe_to_save(saved: ToSave) -> GenerationRecipe:
    if saved.build is None:
        raise ArtifactError(f"nothing was prepared, so there is nothing to save: {saved.receipt.reason}")
    try:
        recipe = generation_recipe(saved.recipe)
    except InputError as error:
        raise ArtifactError(f"{saved.recipe} is a recipe of your own, which nobody could find when loading") from error
    if recipe.export is None:
        raise ArtifactError(f"{recipe.name} makes nothing that could be written; save the model by save_pretrained()")
    return recipe


def _recipe_of(manifest: Mapping[str, Any], folder: Path) -> GenerationRecipe:
    try:
        recipe = generation_recipe(manifest["recipe"])
    except InputError as error:
        raise ArtifactError(f"{folder} was made by {manifest['recipe']!r:.80}, which is not known here") from error
    if recipe.why_not:
        raise RecipeError(f"{folder} needs the recipe {recipe.name}: {recipe.why_not}")
    return recipe
