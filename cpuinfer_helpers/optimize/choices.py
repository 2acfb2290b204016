"""Comparisons that optimize() has made, kept for this machine, these versions and models of this shape."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.compare import Comparison
from cpuinfer_helpers.errors import ArtifactError
from cpuinfer_helpers.machine.cache import cache_directory
from cpuinfer_helpers.machine.report import machine_report
from cpuinfer_helpers.machine.versions import OWN_VERSION, installed_versions
from cpuinfer_helpers.optimize.identity import identity_of
from cpuinfer_helpers.processes.status import Kind
from cpuinfer_helpers.recipes import Recipe, list_recipes

logger = logging.getLogger("cpuinfer_helpers")

# What a configuration says of its origin and not of the model.
_ORIGIN = ("_name_or_path", "transformers_version", "_commit_hash")


def choice_file(
    model: torch.nn.Module,
    inputs: Mapping[str, Any],
    recipes: Sequence[Recipe],
    settings: Mapping[str, Any],
    known: Iterable[Recipe] | None = None,
) -> Path | None:
    """Where the comparison of such a request is kept; None if it is not kept.

    Everything that decides about speed goes into the name: the machine, the versions, the model's class, configuration
    and the shapes of its weights, the shapes of the inputs, and what was asked for. The weights themselves do not: what
    is remembered is verified again on the model at hand.

    Parameters
    ----------
    model, inputs
        The eager model, and its inputs by name.
    recipes
        What is tried. With a recipe of the user's own nothing is kept, because nobody sees when it changes.
    settings
        Further arguments that decide about the choice. With a metric whose code does not show all that it does, nothing
        is kept.
    known
        The recipes that this package has; those of :func:`~cpuinfer_helpers.list_recipes` unless given.

    Returns
    -------
    Path or None
    """
    known = list_recipes() if known is None else tuple(known)
    if any(recipe not in known for recipe in recipes):
        return None
    decided = {name: identity_of(value, {id(model): "the model"}) for name, value in settings.items()}
    unseen = [name for name, identity in decided.items() if identity is None]
    if unseen:
        advice = "; give metric_name" if unseen[0] == "metric" else ""
        logger.warning("the choice is not remembered: not all of %s can be seen%s", unseen[0], advice)
        return None
    report = machine_report()
    facts = {
        "machine": [report.cpu, report.isa, report.isa_caps, report.cores_allowed, report.cpu_quota, report.threads],
        "versions": {**installed_versions(), "cpuinfer_helpers": OWN_VERSION},
        "python": sys.version_info[:2],
        "model": [type(model).__module__, type(model).__qualname__, _configuration(model)],
        "weights": {name: _described(tensor) for name, tensor in model.named_parameters()},
        "inputs": {name: _described(value) for name, value in inputs.items()},
        "recipes": sorted(recipe.name for recipe in recipes),
        "settings": decided,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    return cache_directory() / "choices" / f"{digest[:32]}.json"


def recall(
    path: Path | None, model: torch.nn.Module, budget_s: float, load: Callable[[Path], Any] = Comparison.load
) -> Any:
    """The comparison that was kept, if it is whole, of this model, and not cut short by a smaller budget.

    Parameters
    ----------
    path
        What :func:`choice_file` gave.
    model, budget_s
        What is asked for.
    load
        Reads a comparison.

    Returns
    -------
    Comparison or None
    """
    if path is None:
        return None
    try:
        if not path.exists():
            return None
        comparison = load(path)
    except (ArtifactError, OSError) as error:
        logger.warning("the remembered choice cannot be used, measuring anew: %s", error)
        return None
    if _timed_out(comparison):
        return None
    cut_short = any(row.status.kind is Kind.NOT_TRIED for row in comparison.rows.values())
    earlier_s = comparison.environment.get("budget_s")
    if cut_short and not (isinstance(earlier_s, (int, float)) and earlier_s >= budget_s):
        return None
    return comparison if comparison.model == type(model).__name__ else None


def remember(path: Path | None, comparison: Any) -> None:
    """Keep a comparison for the next time; that it cannot be kept is a WARNING."""
    if path is None:
        return
    late = _timed_out(comparison)
    if late:
        logger.warning(
            "the choice is not remembered, because %s timed out, perhaps for what else ran on this machine; give a "
            "larger budget_s, or leave it out of recipes",
            ", ".join(late),
        )
        return
    try:
        comparison.save(path)
    except ArtifactError as error:
        logger.warning("the choice cannot be remembered: %s; set CPUINFER_CACHE to a folder that can be written", error)


def forget(path: Path | None) -> None:
    """Remove what was kept; that it cannot be removed is a WARNING."""
    if path is None:
        return
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("the remembered choice cannot be removed: %s", error)


def _timed_out(comparison: Any) -> list[str]:
    return [name for name, row in comparison.rows.items() if row.status.kind is Kind.TIMED_OUT]


def _configuration(model: torch.nn.Module) -> dict[str, Any]:
    config = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return {"config": repr(config)} if config is not None else {}
    # How attention is computed is not among the entries that are saved, and decides about speed.
    attention = getattr(config, "_attn_implementation", None)
    return {key: value for key, value in config.to_dict().items() if key not in _ORIGIN} | {"attention": attention}


def _described(value: Any) -> Any:
    return [list(value.shape), str(value.dtype)] if isinstance(value, torch.Tensor) else value
