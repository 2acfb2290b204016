"""Prepare a model by a recipe, prove that it gives the model's answers, or fall back and say why."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cpuinfer_helpers.adapter import eager_answers, named_inputs
from cpuinfer_helpers.errors import CpuInferError, InputError, RecipeError, TraceError, first_line
from cpuinfer_helpers.machine import detect_isa, installed_versions
from cpuinfer_helpers.outputs import OutputSpec
from cpuinfer_helpers.receipts import Check, Receipt
from cpuinfer_helpers.recipes.base import Build, Recipe, Request
from cpuinfer_helpers.recipes.prepared import PreparedModel
from cpuinfer_helpers.recipes.registry import get_recipe
from cpuinfer_helpers.scratch import sweep
from cpuinfer_helpers.signature import bind_inputs, check_model
from cpuinfer_helpers.verification import Variation
from cpuinfer_helpers.verification import verify as verify_answers

logger = logging.getLogger("cpuinfer_helpers")

_ON_FAILURE = ("fallback", "raise")


def prepare(
    recipe: str | Recipe,
    model: torch.nn.Module,
    example_inputs: Mapping[str, Any],
    *,
    calibration: Sequence[Mapping[str, torch.Tensor]] = (),
    verify: bool = True,
    tolerance: float | None = None,
    on_failure: str = "fallback",
) -> PreparedModel:
    """Prepare a model by a recipe, prove that it gives the model's answers, or fall back and say why.

    Parameters
    ----------
    recipe
        Name of a recipe (:func:`~cpuinfer_helpers.list_recipes`), or a recipe of your own.
    model
        An eager model in evaluation mode, from transformers or any other. It is left as it was.
    example_inputs
        Tensors by argument name, batch first: (batch, length) for token ids and masks. Plain values become constants.
    calibration
        Inputs for static quantisation: a few dozen, like those that it will see. Recipes that do not quantise ignore
        it; those that do use the example where there is none, and the receipt says so.
    verify
        Compare with the model on other batch sizes, lengths and paddings, three calls each, with a tolerance for the
        recipe's precision.
    tolerance
        Largest difference that passes, as a share of the largest answer; that of the recipe's precision unless given.
    on_failure
        ``fallback``: the eager model answers, with a reason and a WARNING. ``raise``: a RecipeError.

    Returns
    -------
    PreparedModel

    Raises
    ------
    InputError
        If the model or the inputs cannot be used at all.
    RecipeError
        If it cannot be prepared and ``on_failure`` is ``raise``.

    Examples
    --------
    >>> layer = torch.nn.Linear(4, 2).eval()
    >>> prepared = prepare("torchscript-fp32", layer, {"input": torch.ones(3, 4)})
    >>> prepared.prepared, tuple(prepared(input=torch.ones(5, 4)).shape)
    (True, (5, 2))
    """
    if on_failure not in _ON_FAILURE:
        raise InputError(f"on_failure is {on_failure!r}; choose from {', '.join(_ON_FAILURE)}")
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    check_model(model)
    sweep()
    inputs = bind_inputs(model, example_inputs)
    request = Request(recipe.name, recipe.precision, model, inputs, tuple(dict(row) for row in calibration))
    job = _Job(recipe, request, verify, tolerance, eager_answers(model, inputs))
    try:
        return job.run()
    except RecipeError as error:
        if on_failure == "raise":
            raise
        logger.warning("%s could not be prepared, the eager model answers: %s", recipe.name, error)
        return job.fallback(str(error))


def verify_prepared(
    prepared: PreparedModel,
    model: torch.nn.Module,
    *,
    precision: str,
    tolerance: float | None = None,
    planned: Sequence[Variation] | None = None,
) -> tuple[Check, ...]:
    """Compare a prepared model with the model on other batch sizes, lengths and paddings.

    Parameters
    ----------
    prepared
        What :func:`prepare` gave.
    model
        The eager model that it was made from.
    precision
        ``fp32``, ``bf16`` or ``int8``, which sets the tolerance.
    tolerance
        As for :func:`prepare`.
    planned
        Other variations of the inputs than all that there are.

    Returns
    -------
    tuple of Check
        Up to the first that failed; see :func:`difference`.
    """
    inputs = prepared.inputs
    return verify_answers(
        lambda tensors: prepared(**tensors),
        lambda tensors: model(**tensors, **inputs.constants),
        getattr(model, "config", None),
        inputs.tensors,
        precision=precision,
        tolerance=tolerance,
        planned=planned,
    )


def difference(checks: Sequence[Check]) -> str | None:
    """What the first failed check found, in a sentence; None if none failed."""
    check = next((check for check in checks if check.passed is False), None)
    if check is None:
        return None
    size = f", largest error {check.max_error:.1e}, tolerance {check.tolerance:.1e}" if check.max_error else ""
    return f"it does not give the model's answers on {check.name!r} ({check.shape}): {check.note}{size}"


@dataclass
class _Job:
    """One request to prepare a model: carries what is seen on the way into the receipt."""

    recipe: Recipe
    request: Request
    verify: bool
    tolerance: float | None
    expected: dict[str, torch.Tensor]
    checks: tuple[Check, ...] = ()
    seconds: float = 0.0

    def run(self) -> PreparedModel:
        reason = self.recipe.why_not
        if reason:
            raise RecipeError(reason)
        _warn_of_process(self.recipe)
        spec = self._output_spec()
        build = self._build(spec.tensor_names())
        prepared = self._result(build, spec)
        if self.verify:
            self.checks = verify_prepared(
                prepared, self.request.model, precision=self.recipe.precision, tolerance=self.tolerance
            )
            differs = difference(self.checks)
            if differs:
                raise RecipeError(differs)
            prepared.receipt = self._receipt(build, spec)
        return prepared

    def fallback(self, reason: str) -> PreparedModel:
        return PreparedModel(
            recipe=self.recipe.name,
            model=self.request.model,
            inputs=self.request.inputs,
            spec=None,
            dtypes={},
            receipt=self._receipt(None, None, reason),
            config=self.request.config,
        )

    def _output_spec(self) -> OutputSpec:
        adapter = named_inputs(self.request.model, self.request.inputs)
        try:
            with torch.no_grad():
                adapter.run_model(self.request.inputs.tensors)
        except TraceError as error:
            raise RecipeError(str(error)) from error
        return adapter.spec

    def _build(self, names: Sequence[str]) -> Build:
        before = _fingerprint(self.request.model)
        started = time.perf_counter()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                build = self.recipe.build(self.request)
                first = build.answer(dict(self.request.inputs.tensors))
        except RecipeError:
            raise
        except Exception as error:  # the model's Python and a compiler run here: anything may be raised
            # Backends blame the CPU, also where a variable holds it back.
            why = "".join(f" ({precision} is {text})" for precision, text in self._emulation().items())
            raise RecipeError(f"{self.recipe.backend} fails: {first_line(error)}{why}") from error
        finally:
            self.seconds = time.perf_counter() - started
        if _fingerprint(self.request.model) != before:
            raise CpuInferError(
                f"{self.recipe.name} has changed the model that it was given, which no recipe may do: load the model "
                "anew, and have the recipe work on a copy (recipes.copies)"
            )
        missing = [name for name in names if name not in first]
        if missing:
            raise RecipeError(f"{self.recipe.backend} does not return {missing[0]!r}; it returns {', '.join(first)}")
        return build

    def _result(self, build: Build, spec: OutputSpec) -> PreparedModel:
        return PreparedModel(
            recipe=self.recipe.name,
            model=None,
            inputs=self.request.inputs,
            spec=spec,
            dtypes={name: self.expected[name].dtype for name in spec.tensor_names()},
            receipt=self._receipt(build, spec),
            build=build,
            config=self.request.config,
        )

    def _receipt(self, build: Build | None, spec: OutputSpec | None, reason: str | None = None) -> Receipt:
        observed = {}
        if build is not None:
            observed = {
                "script_module": build.module is not None,
                "runs": build.runs,
                "evidence": {**build.evidence, **self._emulation()},
                "frozen": build.frozen,
                "graph_nodes": build.graph_nodes,
                "weight_dtypes": build.weight_dtypes,
                "linear_dtypes": build.linear_dtypes,
                "attention_implementation": build.attention,
                "warnings": build.warnings,
                "outputs_left_out": self._left_out(spec),
            }
        else:
            observed = {
                "script_module": False,
                "attention_implementation": getattr(self.request.config, "_attn_implementation", None),
            }
        return Receipt(
            requested={"model": type(self.request.model).__name__, "recipe": self.recipe.name, "verify": self.verify},
            **observed,
            isa=detect_isa(),
            threads=torch.get_num_threads(),
            versions=installed_versions(),
            checks=self.checks,
            prepare_seconds=self.seconds,
            reason=reason,
        )

    def _emulation(self) -> dict[str, str]:
        precision = self.recipe.precision.upper()
        return {precision: self.recipe.emulation} if self.recipe.emulation else {}

    def _left_out(self, spec: OutputSpec) -> tuple[str, ...]:
        kept = set(spec.tensor_names())
        missing = (name.split(".")[0] for name in self.expected if name not in kept)
        return tuple(dict.fromkeys((*spec.left_out(), *missing)))


def _fingerprint(model: torch.nn.Module) -> dict[str, tuple[torch.dtype, int, int]]:
    """Dtype, address and version of every parameter and buffer: what an in-place change or a cast alters."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return {name: (tensor.dtype, tensor.data_ptr(), tensor._version) for name, tensor in tensors}


def _warn_of_process(recipe: Recipe) -> None:
    """Say so before a recipe changes the process, and when another has changed it already."""
    if recipe.changes_process:
        logger.warning("%s %s; compare() gives every recipe a process of its own", recipe.name, recipe.changes_process)
    elif "intel_extension_for_pytorch" in sys.modules:
        logger.warning(
            "%s is prepared in a process that has imported IPEX, which changes everything in it; "
            "start a new process for a fair comparison",
            recipe.name,
        )
