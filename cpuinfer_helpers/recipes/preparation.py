"""Prepare a model by a recipe, prove that it gives the model's answers, or fall back and say why."""

from __future__ import annotations

import logging
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from cpuinfer_helpers.errors import CpuInferError, InputError, RecipeError, TraceError, first_line
from cpuinfer_helpers.interface.copies import untouched
from cpuinfer_helpers.interface.drop_in import receipt_here
from cpuinfer_helpers.interface.inputs import BoundInputs, calibration_rows
from cpuinfer_helpers.interface.outputs import OutputSpec
from cpuinfer_helpers.interface.reference import Reference
from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.machine.scratch import sweep
from cpuinfer_helpers.receipts import Check, Receipt
from cpuinfer_helpers.recipes.base import Build, Recipe, Request
from cpuinfer_helpers.recipes.prepared import PreparedModel
from cpuinfer_helpers.recipes.prepared_each_shape import PreparedEachShape
from cpuinfer_helpers.recipes.registry import get_recipe
from cpuinfer_helpers.saving.probe import probe_of
from cpuinfer_helpers.verification.checks import Verification
from cpuinfer_helpers.verification.checks import verify as verify_answers
from cpuinfer_helpers.verification.variations import Question, Variation, same_shape_plan

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
    each_shape: bool = False,
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
        Compare with the model on everything that :func:`~cpuinfer_helpers.verification.variations.plan` asks,
        three calls each, with a tolerance for the recipe's precision. A call with a size beyond those that were
        compared is an InputError.
    tolerance
        Largest difference that passes, as a share of the scale of the answers (see
        :func:`~cpuinfer_helpers.verification.equality.difference`); that of the recipe's precision unless given.
    on_failure
        ``fallback``: the eager model answers, with a reason and a WARNING. ``raise``: a RecipeError.
    each_shape
        Where what the recipe makes does not give the model's answers at every shape: prepare it for each shape, when it
        is first called with it, and verify it before it answers. The eager model stays in memory for that, and each
        shape has weights of its own.

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
    sweep()
    reference = Reference.of(model, example_inputs)
    return prepare_like(
        reference,
        recipe,
        calibration=calibration,
        verify=verify,
        tolerance=tolerance,
        on_failure=on_failure,
        each_shape=each_shape,
    )


def prepare_like(
    reference: Reference,
    recipe: Recipe,
    *,
    calibration: Sequence[Mapping[str, torch.Tensor]] = (),
    verify: bool = True,
    tolerance: float | None = None,
    on_failure: str = "fallback",
    each_shape: bool = False,
    further: Sequence[Variation] = (),
) -> PreparedModel:
    """As :func:`prepare`, for a reference that has been made before.

    Parameters
    ----------
    reference
        The model and its example.
    further
        Inputs to compare at beside those of the plan.
    recipe, calibration, verify, tolerance, on_failure, each_shape
        As for :func:`prepare`.
    """
    if not isinstance(recipe, Recipe):
        raise InputError(f"recipe is a {type(recipe).__name__}; give a name or a Recipe object")
    rows = calibration_rows(calibration, reference.inputs)
    job = _PreparationRequest(recipe, reference, rows, verify, tolerance, tuple(further))
    try:
        with switches.held(), torch.inference_mode(False):
            return job.run_each_shape() if each_shape and verify else job.run()
    except RecipeError as error:
        if on_failure == "raise":
            raise
        logger.warning("%s could not be prepared, the eager model answers: %s", recipe.name, error)
        return job.fallback(str(error))


def verify_prepared(
    prepared: PreparedModel,
    reference: Reference,
    *,
    precision: str,
    tolerance: float | None = None,
    further: Sequence[Variation] = (),
    questions: Iterable[Question] | None = None,
) -> Verification:
    """Compare a prepared model with its model on the whole plan, and have it keep to the sizes that were compared.

    Parameters
    ----------
    prepared
        What :func:`prepare` gave.
    reference
        The model that it was made from, and its example.
    precision
        ``fp32``, ``bf16`` or ``int8``, which sets the tolerance.
    tolerance
        As for :func:`prepare`.
    further
        As for :func:`prepare_like`.
    questions
        As for :func:`~cpuinfer_helpers.verification.checks.verify`.

    Returns
    -------
    Verification
        Its ``difference`` tells whether the prepared model may be used. The checks stand in its receipt.
    """
    found = verify_answers(
        lambda tensors: prepared(**tensors),
        reference,
        precision=precision,
        tolerance=tolerance,
        further=further,
        questions=questions,
    )
    sizes = {"sizes": found.kept_to_size} if found.kept_to_size else {}
    prepared.receipt = replace(prepared.receipt.with_evidence(**sizes), checks=found.checks)
    prepared.sizes = found.sizes
    return found


@dataclass
class _PreparationRequest:
    """One request to prepare a model: carries what is seen on the way into the receipt."""

    recipe: Recipe
    reference: Reference
    calibration: tuple[dict[str, torch.Tensor], ...]
    verify: bool
    tolerance: float | None
    further: tuple[Variation, ...] = ()
    one_shape: bool = False
    checks: tuple[Check, ...] = ()
    seconds: float = 0.0

    def run(self) -> PreparedModel:
        unlike = self.reference.why_not_comparable if self.verify else self.reference.not_comparable
        reason = self.recipe.why_not or unlike
        if reason:
            raise RecipeError(reason)
        _warn_of_process(self.recipe)
        spec = self._output_spec()
        failed: list[RecipeError] = []
        build: Callable[[], Build] | None = self._first_build
        while build is not None:
            built = self._built(build, spec.tensor_names())
            try:
                return self._verified(self._result(built, spec))
            except RecipeError as error:
                failed.append(error)
                build = built.otherwise
                if build is not None:
                    logger.info("%s is made in another way: %s", self.recipe.name, error)
        raise failed[0]

    def _verified(self, prepared: PreparedModel) -> PreparedModel:
        if not self.verify:
            return prepared
        found = verify_prepared(
            prepared,
            self.reference,
            precision=self.recipe.precision,
            tolerance=self.tolerance,
            further=self.further,
            questions=self._questions(),
        )
        self.checks = found.checks
        if found.difference:
            raise RecipeError(found.difference)
        return prepared

    def _questions(self) -> Iterable[Question] | None:
        return same_shape_plan(self.reference.config, self.reference.inputs.tensors) if self.one_shape else None

    def run_each_shape(self) -> PreparedModel:
        """What the recipe makes, if that is right everywhere, else once for each shape."""
        try:
            single = self.run()
        except RecipeError as error:
            reason = str(error)
        else:
            reason = single.receipt.evidence.get("sizes", "")
            if not reason:
                return single
            del single
        first = self._at_shape(self.reference.inputs.tensors)
        return PreparedEachShape(first, self.reference.eager(), self._at_shape, reason)

    def _at_shape(self, tensors: dict[str, torch.Tensor]) -> PreparedModel:
        """The same for inputs of exactly this shape."""
        with switches.held(), torch.inference_mode(False):
            reference = Reference(self.reference.model, BoundInputs(tensors, self.reference.inputs.constants))
            return _PreparationRequest(
                self.recipe, reference, self.calibration, self.verify, self.tolerance, one_shape=True
            ).run()

    def fallback(self, reason: str) -> PreparedModel:
        return PreparedModel(
            recipe=self.recipe.name,
            model=self.reference.eager(),
            inputs=self.reference.inputs,
            spec=None,
            dtypes={},
            receipt=self._receipt(None, None, reason),
            config=self.reference.config,
        )

    def _output_spec(self) -> OutputSpec:
        try:
            return self.reference.output_spec()
        except TraceError as error:
            raise RecipeError(str(error)) from error

    def _first_build(self) -> Build:
        # Backends may ask the model for its outputs; none of that is to last in the user's.
        model = untouched(self.reference.model)
        request = Request(
            self.recipe.name,
            self.recipe.precision,
            model,
            self.reference.inputs,
            self.calibration,
            self.reference.eager,
            self.one_shape,
            self.verify,
        )
        return self.recipe.build(request)

    def _built(self, make: Callable[[], Build], names: Sequence[str]) -> Build:
        """What a function of the recipe makes, seen to answer the example."""
        inputs = self.reference.inputs
        before = _fingerprint(self.reference.model)
        started = time.perf_counter()
        try:
            with torch.no_grad(), switches.random_state_kept():
                build = make()
                first = build.answer({name: tensor.clone() for name, tensor in inputs.tensors.items()})
        except RecipeError:
            raise
        except Exception as error:  # the model's Python and a compiler run here: anything may be raised
            # Backends blame the CPU, also where a variable holds it back.
            why = "".join(f" ({precision} is {text})" for precision, text in self._emulation().items())
            raise RecipeError(f"{self.recipe.backend} fails: {first_line(error)}{why}") from error
        finally:
            self.seconds = time.perf_counter() - started
        if _fingerprint(self.reference.model) != before:
            raise CpuInferError(
                f"{self.recipe.name} has changed the model that it was given, which no recipe may do: load the model "
                "anew, and have the recipe work on a copy (interface.copies)"
            )
        missing = [name for name in names if name not in first]
        if missing:
            raise RecipeError(f"{self.recipe.backend} does not return {missing[0]!r}; it returns {', '.join(first)}")
        return build

    def _result(self, build: Build, spec: OutputSpec) -> PreparedModel:
        return PreparedModel(
            recipe=self.recipe.name,
            model=None,
            inputs=self.reference.inputs,
            spec=spec,
            dtypes={name: self.reference.expected[name].dtype for name in spec.tensor_names()},
            receipt=self._receipt(build, spec),
            # What makes the others holds the eager model.
            build=replace(build, otherwise=None),
            probe=probe_of(
                self.reference.inputs.tensors, {name: self.reference.expected[name] for name in spec.tensor_names()}
            ),
            tolerance=self.tolerance,
            eager=weakref.ref(self.reference.model),
            other_ways=build.otherwise is not None,
            config=self.reference.config,
        )

    def _receipt(self, build: Build | None, spec: OutputSpec | None, reason: str | None = None) -> Receipt:
        if build is not None:
            observed = {
                "script_module": build.module is not None,
                "runs": build.runs,
                "evidence": {**build.evidence, **self._emulation(), **self._own_precision()},
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
                "attention_implementation": getattr(self.reference.config, "_attn_implementation", None),
            }
        return receipt_here(
            {"model": type(self.reference.model).__name__, "recipe": self.recipe.name, "verify": self.verify},
            **observed,
            checks=self.checks,
            prepare_seconds=self.seconds,
            reason=reason,
        )

    def _emulation(self) -> dict[str, str]:
        precision = self.recipe.precision.upper()
        return {precision: self.recipe.emulation} if self.recipe.emulation else {}

    def _own_precision(self) -> dict[str, str]:
        """What FP32 means for a model whose weights have less."""
        if self.recipe.precision != "fp32":
            return {}
        floating = {p.dtype for p in self.reference.model.parameters() if p.is_floating_point()}
        less = floating & {torch.bfloat16, torch.float16}
        if not less:
            return {}
        names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in less))
        return {"FP32": f"no: the model's own weights are {names}; call model.float() first for FP32"}

    def _left_out(self, spec: OutputSpec) -> tuple[str, ...]:
        kept = set(spec.tensor_names())
        missing = (name.split(".")[0] for name in self.reference.expected if name not in kept)
        return tuple(dict.fromkeys((*spec.left_out(), *missing)))


def _fingerprint(model: torch.nn.Module) -> dict[str, tuple[torch.dtype, int, int]]:
    """Dtype, address and version of every parameter and buffer: what an in-place change or a cast alters."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    # Tensors that were made under inference_mode count no versions.
    return {
        name: (tensor.dtype, tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
        for name, tensor in tensors
    }


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
