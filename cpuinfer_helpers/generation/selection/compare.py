"""Compare recipes of text generation on one model and one set of prompts, each in a process of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from tqdm.auto import tqdm

from cpuinfer_helpers.compare.compare import check_positive, choose_threads, circumstances
from cpuinfer_helpers.errors import InputError, RecipeError
from cpuinfer_helpers.generation.generator import bound_example
from cpuinfer_helpers.generation.preparation import check_writes
from cpuinfer_helpers.generation.registry import generation_recipe, list_generation_recipes
from cpuinfer_helpers.generation.selection.bench import Candidate, GenerationBench, new_row
from cpuinfer_helpers.generation.selection.result import GenerationComparison, GenerationResult
from cpuinfer_helpers.generation.step import GenerationRecipe
from cpuinfer_helpers.processes.child import ChildLost
from cpuinfer_helpers.processes.session import Session
from cpuinfer_helpers.processes.status import Kind, Status
from cpuinfer_helpers.recipes.registry import REFERENCE

logger = logging.getLogger("cpuinfer_helpers")

# The fewest turns whose extremes hold the median with 95% confidence.
TURNS = 6


def compare_generators(
    model: torch.nn.Module,
    prompts: Mapping[str, Any],
    recipes: Sequence[str | GenerationRecipe] | None = None,
    *,
    new_tokens: int = 32,
    turns: int = TURNS,
    threads: int | None = None,
    held_out: torch.Tensor | None = None,
    verify: bool = True,
    tolerance: float | None = None,
    measure_memory: bool = True,
    timeout_s: float = 900.0,
    memory_bytes: int | None = None,
    progress: bool = True,
) -> GenerationComparison:
    """Compare recipes of text generation on one model and one set of prompts.

    Each recipe has a fresh process of its own, with the same threads. They write one whole text each in turns, greedily
    and to the last token, and only one works at any time, so that drift of the machine meets all alike. A recipe that
    crashes, runs out of memory or takes too long costs its own row only.

    Parameters
    ----------
    model
        A language model of transformers' in evaluation mode. It is left as it was, and its weights are kept once for
        all processes.
    prompts
        What is continued, as for :func:`~cpuinfer_helpers.prepare_generator`: token ids and mask (rows, tokens), padded
        on the left, of the shape that matters.
    recipes
        Names (:func:`~cpuinfer_helpers.list_generation_recipes`) or recipes of your own; all unless given. Those that
        cannot run here get a row that says why. The reference, ``eager-fp32``, is always among them.
    new_tokens
        By how many tokens each text is continued, at least 2.
    turns
        Whole texts of each recipe that are counted; with fewer than six no interval reaches 95%.
    threads
        Threads of each process; PyTorch's number in this one unless given.
    held_out
        Token ids (rows, tokens) of texts on which perplexity tells what fewer bits cost.
    verify
        Compare each recipe's logits with the model's; one that fails falls back.
    tolerance
        Largest relative error of one token's logits; that of each recipe's precision unless given.
    measure_memory
        Measure how fast memory is read, for the share of it that is reached. Takes two seconds.
    timeout_s
        Longest time for one stage of one recipe.
    memory_bytes
        Bytes that this process and all its children may hold together; what the machine has unless given. Recipes that
        do not fit at once are measured in groups, and the reference writes in every group.
    progress
        Show a bar.

    Returns
    -------
    GenerationComparison

    Raises
    ------
    InputError
        If the model, the prompts or another argument cannot be used, or the model cannot be sent to another process.
    RecipeError
        If the reference itself does not write: then there is nothing to compare with.
    """
    check_writes(model)
    bound = bound_example(prompts, model).tensors
    chosen = choose_generation_recipes(recipes)
    threads = choose_threads(threads)
    check_lengths(new_tokens, turns)
    check_positive(timeout_s=timeout_s, memory_bytes=memory_bytes)
    content = {"model": model, "prompts": bound, "held_out": held_out}
    with (
        Session(content, threads=threads, timeout_s=timeout_s, memory_bytes=memory_bytes) as session,
        tqdm(total=len(chosen) + 1, desc="comparing", unit="recipe", disable=not progress) as bar,
    ):
        bench = GenerationBench(session, bound, new_tokens, tolerance, bar.set_description)
        run = _Run(bench, bar, turns, verify, measure_memory)
        run.run(chosen)
    return GenerationComparison(
        rows={recipe.name: run.rows[recipe.name] for recipe in chosen},
        **described(model, bound, new_tokens, threads),
        bandwidth=bench.bandwidth,
        notes=run.notes(),
    )


def described(
    model: torch.nn.Module, prompts: Mapping[str, torch.Tensor], new_tokens: int, threads: int
) -> dict[str, Any]:
    """What a :class:`GenerationComparison` says of the model, the prompts and the machine."""
    seen = circumstances(model, prompts, threads)
    return {
        "model": seen["model"],
        "parameters": seen["parameters"],
        "prompts": seen["inputs"],
        "new_tokens": new_tokens,
        "threads": threads,
        "environment": seen["environment"],
    }


@dataclass
class _Run:
    """Carries what is seen on the way into the rows."""

    bench: GenerationBench
    progress: tqdm
    turns: int
    verify: bool
    measure_memory: bool
    rows: dict[str, GenerationResult] = field(default_factory=dict)
    groups: int = 0

    def run(self, recipes: Sequence[GenerationRecipe]) -> None:
        """Prepare one recipe after the other; have them write whenever memory is full, and at the end."""
        missing = {recipe.name: recipe.why_not for recipe in recipes}
        self.reference = self._begin_reference(recipes[0])
        group: list[Candidate] = []
        for recipe in recipes[1:]:
            if missing[recipe.name]:
                self._keep(new_row(recipe, Status(Kind.LACKS, missing[recipe.name])))
                continue
            if group and not self.bench.session.has_room_for(recipe):
                self._finish(group)
            candidate = self._begin_or_row(recipe)
            # It may have failed only because others were there.
            if candidate is None and group and self.rows[recipe.name].status.kind is Kind.OUT_OF_MEMORY:
                self._finish(group)
                candidate = self._begin_or_row(recipe)
            if candidate is not None:
                group.append(candidate)
        if group or REFERENCE not in self.rows:
            self._finish(group)
        self.progress.update(1)

    def notes(self) -> tuple[str, ...]:
        """What a reader of the table must know."""
        if self.groups < 2:
            return ()
        return (
            f"Measured in {self.groups} groups, as memory allows; each speed-up is against the reference in its group.",
        )

    def _begin_reference(self, recipe: GenerationRecipe) -> Candidate:
        try:
            candidate = self.bench.begin(recipe, verify=False)
            if self.measure_memory:
                self.bench.measure_bandwidth(candidate)
        except ChildLost as lost:
            raise RecipeError(f"the reference {recipe.name} does not write: {lost.status}") from lost
        self.progress.update(1)
        return candidate

    def _begin_or_row(self, recipe: GenerationRecipe) -> Candidate | None:
        """A candidate that waits for its turns, or None and a row that says why there is none."""
        try:
            candidate = self.bench.begin(recipe, verify=self.verify)
        except ChildLost as lost:
            self._keep(new_row(recipe, lost.status))
            return None
        if candidate.row.successful:
            self.progress.update(1)
            return candidate
        self._keep(candidate.row)
        return None

    def _finish(self, group: list[Candidate]) -> None:
        """Have the reference and the group take their turns, then end the group's processes."""
        self.reference.turns = []
        candidates = [self.reference, *group]
        lost = self.bench.take_turns(candidates, self.turns)
        if REFERENCE in lost:
            raise RecipeError(f"the reference {REFERENCE} does not write: {lost[REFERENCE]}")
        self.groups += 1
        for row in self.bench.measured([one for one in candidates if one.name not in lost], self.groups):
            if row.recipe not in self.rows:
                self.rows[row.recipe] = row
        for candidate in group:
            if candidate.name in lost:
                self._failed(replace(candidate.row, status=lost[candidate.name]))
            else:
                self.bench.close(candidate)
        group.clear()

    def _keep(self, row: GenerationResult) -> None:
        """A row of which nothing will be measured."""
        self.progress.update(1)
        self._failed(row)

    def _failed(self, row: GenerationResult) -> None:
        self.rows[row.recipe] = row
        if row.status.failed:
            logger.warning("%s: %s", row.recipe, row.status)


def choose_generation_recipes(recipes: Sequence[str | GenerationRecipe] | None) -> tuple[GenerationRecipe, ...]:
    """The recipes to run, the reference first.

    Raises
    ------
    InputError
        If a name is unknown or comes twice, or another recipe has the reference's name.
    """
    if isinstance(recipes, (str, GenerationRecipe)) or not (recipes is None or isinstance(recipes, Iterable)):
        raise InputError(f"recipes is the single {recipes!r:.60}; give a list, such as ['torchscript-fp16w']")
    reference = generation_recipe(REFERENCE)
    wanted = list_generation_recipes() if recipes is None else recipes
    chosen = [generation_recipe(recipe) if isinstance(recipe, str) else recipe for recipe in wanted]
    for recipe in chosen:
        if not isinstance(recipe, GenerationRecipe):
            raise InputError(f"recipes holds a {type(recipe).__name__}; give names or GenerationRecipe objects")
        if recipe.name == REFERENCE and recipe != reference:
            raise InputError(f"a recipe of your own is named {REFERENCE}, which is the reference; rename it")
    others = [recipe for recipe in chosen if recipe != reference]
    names = [recipe.name for recipe in others]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"recipes names {twice[0]!r} more than once; name each once")
    return (reference, *others)


def check_lengths(new_tokens: int, turns: int) -> None:
    """Refuse texts that are too short to be measured.

    Raises
    ------
    InputError
    """
    for name, value, least in (("new_tokens", new_tokens, 2), ("turns", turns, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name} is {value!r}; give a whole number of at least {least}")
