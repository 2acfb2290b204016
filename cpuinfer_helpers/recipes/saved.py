"""What a saved recipe is checked by before it is restored."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.errors import ArtifactError
from cpuinfer_helpers.interface.reference import Reference
from cpuinfer_helpers.machine.report import detect_isa, machine_report
from cpuinfer_helpers.machine.versions import installed_versions
from cpuinfer_helpers.recipes import PreparedModel, Recipe, get_recipe, list_recipes

logger = logging.getLogger("cpuinfer_helpers")


def known_recipe(name: str, folder: Path) -> Recipe:
    """The recipe of a name that a manifest gives."""
    if name not in list_recipes().names:
        raise ArtifactError(f"{folder} was made by the recipe {name!r}, which this version does not know")
    return get_recipe(name)


def probe_of(reference: Reference, prepared: PreparedModel) -> dict[str, torch.Tensor]:
    """The example, and the eager model's answers to it, without those that no recipe returns, such as a cache."""
    answers = reference.expected
    names = prepared.spec.tensor_names() if prepared.spec else tuple(answers)
    given = {f"input.{name}": tensor for name, tensor in prepared.inputs.tensors.items()}
    return given | {f"output.{name}": answers[name] for name in names}


def refuse_other_circumstances(manifest: Mapping[str, Any], recipe: Recipe, folder: Path) -> None:
    """Raise where packages or the CPU lack what the folder was saved with."""
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
