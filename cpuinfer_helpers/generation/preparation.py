"""Prepare a model to write text by a recipe, prove that it gives the model's logits, or fall back and say why."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from cpuinfer_helpers.errors import CpuInferError, InputError, RecipeError, first_line
from cpuinfer_helpers.generation.encoding.given import Sourced
from cpuinfer_helpers.generation.encoding.sources import MASK, has_encoder, source_name
from cpuinfer_helpers.generation.generator import Generator, bound_example
from cpuinfer_helpers.generation.probe import probe_for
from cpuinfer_helpers.generation.registry import generation_recipe
from cpuinfer_helpers.generation.stand_in import stand_in
from cpuinfer_helpers.generation.step import EncodingStep, GenerationRecipe, StepBuild, StepRequest
from cpuinfer_helpers.generation.verification import (
    MORE_PERPLEXITY,
    Texts,
    Verified,
    comparable,
    compare_perplexity,
    texts_for,
    verify_step,
)
from cpuinfer_helpers.interface.copies import evaluation_copy
from cpuinfer_helpers.interface.drop_in import receipt_here
from cpuinfer_helpers.interface.inputs import BoundInputs
from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.machine.scratch import sweep
from cpuinfer_helpers.receipts import Check, Receipt
from cpuinfer_helpers.recipes.tools.quiet import libraries_quiet

logger = logging.getLogger("cpuinfer_helpers")

_ON_FAILURE = ("fallback", "raise")


def prepare_generator(
    recipe: str | GenerationRecipe,
    model: torch.nn.Module,
    inputs: Mapping[str, Any],
    *,
    held_out: torch.Tensor | None = None,
    verify: bool = True,
    tolerance: float | None = None,
    on_failure: str = "fallback",
) -> Generator:
    """Prepare a model to write text by a recipe, prove that it gives the model's logits, or fall back and say why.

    Parameters
    ----------
    recipe
        Name of a recipe (:func:`~cpuinfer_helpers.list_generation_recipes`), or a recipe of your own.
    model
        A model of transformers' that writes text, such as ``AutoModelForCausalLM``, ``AutoModelForSeq2SeqLM`` and
        ``AutoModelForSpeechSeq2Seq`` load. It is left as it was.
    inputs
        Example prompts: ``input_ids`` and ``attention_mask``, (rows, tokens), padded on the left. Of a model with an
        encoder what that reads: ``input_ids`` with an ``attention_mask`` that may be padded on either side, or
        ``input_features``; and, where texts are to begin with something, ``decoder_input_ids`` and
        ``decoder_attention_mask``, padded on the left.
    held_out
        Token ids of texts that tell what fewer bits cost, (rows, tokens): perplexity is compared on them. The longest
        rows of the example are taken where none are given. Of a model with an encoder they are what its decoder writes,
        a row for each of the example.
    verify
        Feed it in every way that ``generate()`` does, and compare each token's logits with those of one pass of the
        eager model; see :mod:`cpuinfer_helpers.generation.verification`.
    tolerance
        Largest relative error of one token's logits; that of the recipe's precision unless given.
    on_failure
        ``fallback``: the eager model writes, with a reason and a WARNING. ``raise``: a RecipeError.

    Returns
    -------
    Generator

    Raises
    ------
    InputError
        If the model or the prompts cannot be used at all.
    RecipeError
        If it cannot be prepared and ``on_failure`` is ``raise``.
    """
    if on_failure not in _ON_FAILURE:
        raise InputError(f"on_failure is {on_failure!r}; choose from {', '.join(_ON_FAILURE)}")
    recipe = generation_recipe(recipe) if isinstance(recipe, str) else recipe
    check_writes(model)
    sweep()
    job = _Preparation(recipe, model, bound_example(inputs, model), held_out, verify, tolerance)
    try:
        return job.run()
    except CpuInferError as error:
        if on_failure == "raise":
            raise error if isinstance(error, RecipeError) else RecipeError(str(error)) from error
        reason = str(error)
    logger.warning("%s could not prepare %s, the eager model writes: %s", recipe.name, type(model).__name__, reason)
    return job.fallback(reason)


def check_writes(model: Any) -> None:
    """Refuse what writes no text.

    Raises
    ------
    InputError
    """
    if not hasattr(model, "generate") or not hasattr(model, "config"):
        raise InputError(
            f"{type(model).__name__} writes no text; give a model with generate(), as AutoModelForCausalLM loads it"
        )


@dataclass
class _Preparation:
    """One request: carries what is seen on the way into the receipt."""

    recipe: GenerationRecipe
    model: Any
    prompts: BoundInputs
    held_out: torch.Tensor | None
    verify: bool
    tolerance: float | None
    seconds: float = 0.0
    checks: tuple[Check, ...] = ()
    evidence: dict[str, str] = field(default_factory=dict)
    perplexity: tuple[float, float] | None = None

    def run(self) -> Generator:
        if self.recipe.why_not:
            raise RecipeError(f"{self.recipe.name} cannot run here: {self.recipe.why_not}")
        request = StepRequest(
            self.recipe.name, self.recipe.precision, evaluation_copy(self.model), self.prompts.tensors
        )
        texts = self._texts(request) if self.verify else None
        failed = ""
        for build in self._ways(request):
            self._refuse_fewer(build)
            if texts is None:
                return self._generator(build)
            verified = verify_step(build.step, self.recipe.precision, request.model, texts, tolerance=self.tolerance)
            self.checks = verified.checks
            reason = verified.difference or self._costs_too_much(build, request)
            if reason is None:
                self._keep(build, verified, texts)
                self._try(build)
                return self._generator(build)
            failed = failed or reason
        raise RecipeError(failed)

    def fallback(self, reason: str) -> Generator:
        return Generator(
            recipe=self.recipe.name,
            model=evaluation_copy(self.model),
            inputs=self.prompts,
            receipt=self._receipt(None, reason),
        )

    def _texts(self, request: StepRequest) -> Texts:
        return comparable(request.model, texts_for(request.model, request.prompts))

    def _ways(self, request: StepRequest) -> Iterator[StepBuild]:
        """What the recipe makes, and what else it can make where that is not right."""
        build = self._timed(lambda: self.recipe.build(request))
        while build is not None:
            yield build
            build = self._timed(build.otherwise) if build.otherwise else None

    def _timed(self, make: Any) -> StepBuild:
        started = time.perf_counter()
        try:
            with switches.held(), torch.inference_mode(False), torch.no_grad():
                return make()
        except CpuInferError:
            raise
        except Exception as error:  # of a backend, each of which has errors of its own
            raise RecipeError(f"{self.recipe.name} cannot make it: {first_line(error)}") from error
        finally:
            self.seconds += time.perf_counter() - started

    def _refuse_fewer(self, build: StepBuild) -> None:
        if build.converted < build.layers:
            raise RecipeError(f"only {build.converted} of {build.layers} linear layers were converted")

    def _costs_too_much(self, build: StepBuild, request: StepRequest) -> str | None:
        """What fewer bits cost of perplexity, where that is more than they may."""
        limit = MORE_PERPLEXITY.get(self.recipe.precision)
        if limit is None and self.held_out is None:
            return None
        texts, sources = self._held_out()
        seen = compare_perplexity(build.step, request.model, texts, sources) if len(texts) else None
        if seen is None:
            self.evidence["perplexity"] = "not compared: give held_out texts of 32 tokens or more in all"
            return None
        self.perplexity, more = seen, seen[0] / seen[1] - 1
        most = "" if limit is None else f", at most {limit:+.0%}"
        self.evidence["perplexity"] = f"{seen[0]:.4g}, the model's own {seen[1]:.4g} ({more:+.2%}{most})"
        if limit is not None and more > limit:
            return f"perplexity rises from {seen[1]:.4g} to {seen[0]:.4g}, by {more:.1%}, more than {limit:.0%}"
        return None

    def _held_out(self) -> tuple[torch.Tensor, Sourced | None]:
        """Texts to compare perplexity on, and what they are written of."""
        given = self.prompts.tensors
        if not has_encoder(self.model):
            whole = given["input_ids"][given["attention_mask"].all(dim=1)]
            return (whole if self.held_out is None else self.held_out), None
        name = source_name(self.model)
        source, texts = given[name], self.held_out
        if texts is None:
            texts = source.new_zeros(0, 0)
        elif len(texts) != len(source):
            raise InputError(f"held_out has {len(texts)} rows and {name} {len(source)}; give a text for each source")
        return texts, Sourced(name, source, given.get(MASK))

    def _try(self, build: StepBuild) -> None:
        """Raise where what stands in the model's place cannot write: a class's own code may look at parts of it."""
        model = self._stand_in(build)
        prompts = {name: tensor[:1] for name, tensor in self.prompts.tensors.items()}
        try:
            with libraries_quiet(), torch.no_grad():
                model.generate(**prompts, max_new_tokens=2, do_sample=False)
        except InputError:  # such as an example that is as long as a text may be
            return
        except Exception as error:  # the class's own Python may raise anything
            raise RecipeError(
                f"{type(self.model).__name__} does not write by steps of ours: {first_line(error)}"
            ) from error

    def _keep(self, build: StepBuild, verified: Verified, texts: Texts) -> None:
        self.evidence |= verified.evidence
        if isinstance(build.step, EncodingStep) and bool(texts.mask.all()):
            build.step.takes_padding = False
            self.evidence["beginnings"] = "without padding only: its own generate() gives others than one pass does"
        if verified.limit is not None:
            build.step.limit = min(verified.limit, build.step.limit or verified.limit)
            self.evidence["tokens"] = f"at most {build.step.limit}: its window was not gone beyond"

    def _generator(self, build: StepBuild) -> Generator:
        model = self.model
        return Generator(
            recipe=self.recipe.name,
            model=self._stand_in(build),
            inputs=self.prompts,
            receipt=self._receipt(build, None),
            # What could be made otherwise holds the model with all its weights.
            build=replace(build, otherwise=None),
            eager=weakref.ref(model),
            probe=probe_for(model, self.prompts.tensors) if self.verify else None,
            tolerance=self.tolerance,
            perplexity=self.perplexity,
        )

    def _stand_in(self, build: StepBuild) -> Any:
        return stand_in(type(self.model), self.model.config, self.model.generation_config, build.step)

    def _receipt(self, build: StepBuild | None, reason: str | None) -> Receipt:
        requested = {"model": type(self.model).__name__, "recipe": self.recipe.name, "verify": self.verify}
        receipt = receipt_here(
            requested,
            script_module=build is not None and build.module is not None,
            checks=self.checks,
            prepare_seconds=self.seconds,
            reason=reason,
        )
        if build is None:
            return receipt
        emulation = {self.recipe.precision.upper(): self.recipe.emulation} if self.recipe.emulation else {}
        return replace(
            receipt,
            runs=build.runs,
            frozen=build.module is not None,
            graph_nodes=build.graph_nodes,
            warnings=build.warnings,
            attention_implementation=build.attention,
            weight_dtypes={build.weights: build.layers},
            evidence={
                "weights": f"{build.weights}, {build.converted} of {build.layers} linear layers",
                "computes in": build.compute,
                "keys and values": build.cache,
                "read for each token": _read(build),
                **build.evidence,
                **emulation,
                **self.evidence,
            },
        )


def _read(build: StepBuild) -> str:
    weights = f"{build.weight_bytes / 1e6:.1f} MB of weights"
    if not build.source_bytes:
        return weights
    return f"{weights}, {build.source_bytes} bytes for each place of the source, {build.token_bytes} for each token"
