"""Find the recipe that writes a text fastest and keeps the model's answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from cpuinfer_helpers.compare.compare import check_positive
from cpuinfer_helpers.errors import RecipeError
from cpuinfer_helpers.generation.generator import Generator, bound_example
from cpuinfer_helpers.generation.preparation import check_writes, prepare_generator
from cpuinfer_helpers.generation.registry import PRECISIONS, list_generation_recipes
from cpuinfer_helpers.generation.selection.compare import TURNS, check_lengths, choose_generation_recipes
from cpuinfer_helpers.generation.selection.result import GenerationComparison
from cpuinfer_helpers.generation.selection.search import GenerationSearch
from cpuinfer_helpers.generation.step import GenerationRecipe
from cpuinfer_helpers.optimize import choices
from cpuinfer_helpers.optimize.optimize import of_precisions, why_eager, why_left_out
from cpuinfer_helpers.processes.status import Kind, Status
from cpuinfer_helpers.recipes.registry import REFERENCE

logger = logging.getLogger("cpuinfer_helpers")

_PRECISIONS = ("fp32", "fp16w", "bf16")
# Seconds to prepare GPT-2 in a process of its own, for the order only.
_SECONDS = {"torchscript": 10, "openvino": 20, "eager": 8, "compile": 90}
_UNKNOWN_SECONDS = 15


def optimize_generator(
    model: torch.nn.Module,
    prompts: Mapping[str, Any],
    precisions: Sequence[str] | None = None,
    *,
    recipes: Sequence[str | GenerationRecipe] | None = None,
    held_out: torch.Tensor | None = None,
    new_tokens: int = 32,
    tolerance: float | None = None,
    budget_s: float = 300.0,
    refresh: bool = False,
    memory_bytes: int | None = None,
    progress: bool = True,
) -> Generator:
    """Find the recipe that writes a text fastest and keeps the model's answers, and prepare the model by it.

    Recipes are tried one after the other, each in a process of its own. One whose logits are not the model's, or whose
    first texts are clearly slower than the best so far, is given up. The best three then write whole texts in turns
    with the eager model; the fastest of those whose interval shows that they are faster is prepared in this process.

    The choice is remembered for this machine, the installed versions, models of this shape and all that decided. The
    next call only prepares and verifies it, on the weights at hand.

    Parameters
    ----------
    model
        A language model of transformers' in evaluation mode. It is left as it was.
    prompts
        What is continued, as for :func:`~cpuinfer_helpers.prepare_generator`, of the shape that matters.
    precisions
        Some of ``fp32``, ``fp16w`` (weights stored in FP16, computed in FP32), ``bf16``, ``int8`` and ``int4``. Unless
        given, those of ``recipes``, or else the first three: what is left out costs perplexity.
    recipes
        Names (:func:`~cpuinfer_helpers.list_generation_recipes`) or recipes of your own. Unless given, all of the
        precisions, save those in BF16 where this CPU emulates it.
    held_out
        Token ids (rows, tokens) of texts on which perplexity tells what fewer bits cost.
    new_tokens
        By how many tokens a text is continued: with the length of the prompts it decides what is fastest.
    tolerance
        Largest relative error of one token's logits; that of each recipe's precision unless given.
    budget_s
        Seconds for everything.
    refresh
        Forget what is remembered, and measure.
    memory_bytes
        As for :func:`~cpuinfer_helpers.compare_generators`.
    progress
        Show a bar, and a table that grows.

    Returns
    -------
    Generator
        With ``recipe``, ``receipt``, ``comparison`` and ``save(directory)``. If nothing is seen to be faster the eager
        model writes, with the reason.

    Raises
    ------
    InputError
        If the model, the prompts or another argument cannot be used.
    """
    started = time.monotonic()
    check_writes(model)
    bound = bound_example(prompts, model).tensors
    if precisions is None:
        precisions = _PRECISIONS if recipes is None else PRECISIONS
    chosen = _in_order(of_precisions(choose_generation_recipes(recipes), precisions, PRECISIONS))
    check_lengths(new_tokens, TURNS)
    check_positive(budget_s=budget_s, memory_bytes=memory_bytes)
    job = _Job(model, prompts, held_out, tolerance)
    settings = {"tolerance": tolerance, "held_out": held_out, "new_tokens": new_tokens}
    file = choices.choice_file(model, bound, chosen, settings, list_generation_recipes())
    if refresh:
        choices.forget(file)
    remembered = choices.recall(file, model, budget_s, GenerationComparison.load)
    if remembered is not None and _is_complete(remembered, chosen):
        generator = job.again(remembered)
        if generator is not None:
            return generator
    search = GenerationSearch(
        model,
        bound,
        held_out,
        new_tokens,
        tolerance,
        budget_s - (time.monotonic() - started),
        memory_bytes,
        why_left_out(chosen) if recipes is None else {},
        progress,
    )
    comparison = search.run(chosen)
    comparison = replace(comparison, environment={**comparison.environment, "budget_s": budget_s})
    generator = job.prepare(comparison, chosen)
    if generator.comparison.reference.timing is not None:
        choices.remember(file, generator.comparison)
    return generator


@dataclass
class _Job:
    """One request: prepares in this process what was chosen in others."""

    model: torch.nn.Module
    prompts: Mapping[str, Any]
    held_out: torch.Tensor | None
    tolerance: float | None

    def prepare(self, comparison: GenerationComparison, recipes: Sequence[GenerationRecipe]) -> Generator:
        """Prepare the best; if it fails in this process, the next best."""
        by_name = {recipe.name: recipe for recipe in recipes}
        while comparison.reference.timing is not None and comparison.best().recipe != REFERENCE:
            best = comparison.best()
            try:
                return self._prepared(by_name[best.recipe]).with_comparison(comparison)
            except RecipeError as error:
                logger.warning("%s fails in this process: %s", best.recipe, error)
                status = Status(Kind.FELL_BACK, f"in the process that asked for it: {error}")
                failed = replace(best, status=status, timing=None, speedup=None, token_speedup=None)
                comparison = replace(comparison, rows={**comparison.rows, best.recipe: failed})
        return self._eager(comparison)

    def again(self, comparison: GenerationComparison) -> Generator | None:
        """Prepare and verify what was chosen earlier; None if it does not hold for this model."""
        name = comparison.best().recipe
        if name == REFERENCE:
            return self._eager(comparison)
        try:
            return self._prepared(name).with_comparison(comparison)
        except RecipeError as error:
            logger.warning("the remembered choice %s does not hold for this model, measuring anew: %s", name, error)
            return None

    def _eager(self, comparison: GenerationComparison) -> Generator:
        eager = prepare_generator(REFERENCE, self.model, self.prompts, verify=False)
        return eager.with_comparison(comparison, why_eager(comparison))

    def _prepared(self, recipe: str | GenerationRecipe) -> Generator:
        return prepare_generator(
            recipe,
            self.model,
            self.prompts,
            held_out=self.held_out,
            tolerance=self.tolerance,
            on_failure="raise",
        )


def _is_complete(comparison: GenerationComparison, recipes: Sequence[GenerationRecipe]) -> bool:
    """Whether a comparison is of these recipes, and has times for all that were successful."""
    timed = all(row.timing is not None for row in comparison.rows.values() if row.successful)
    same = comparison.rows.keys() == {recipe.name for recipe in recipes}
    return timed and same and comparison.reference.timing is not None


def _in_order(recipes: Sequence[GenerationRecipe]) -> tuple[GenerationRecipe, ...]:
    """The reference, then those that are likely to be fast: fewer bits first, and of these the quick to prepare."""
    others = [recipe for recipe in recipes if recipe.name != REFERENCE]
    reference = next(recipe for recipe in recipes if recipe.name == REFERENCE)
    return (reference, *sorted(others, key=_order))


def _order(recipe: GenerationRecipe) -> tuple[int, int]:
    return -PRECISIONS.index(recipe.precision), _SECONDS.get(recipe.backend, _UNKNOWN_SECONDS)
