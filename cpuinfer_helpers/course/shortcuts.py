"""Look into what makes writing faster: what fewer bits cost the answers, and how many drafts are accepted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from cpuinfer_helpers.display import Displayed, Table
from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.generation import generation_recipe, measure_generation, prepare_generator
from cpuinfer_helpers.generation.closeness import closeness
from cpuinfer_helpers.generation.generator import Generator
from cpuinfer_helpers.generation.verification import eager_logits
from cpuinfer_helpers.recipes.registry import REFERENCE
from cpuinfer_helpers.tasks import Task


@dataclass(frozen=True)
class Loss:
    """What one recipe makes of the trained model's answers.

    Attributes
    ----------
    reason
        Why it was refused or cannot run here; None if it was kept.
    metrics
        Of the task; empty where it cannot run.
    error
        Relative error of the logits over held-out texts.
    same
        How many of the written tokens are the eager model's.
    written
        How many there are.
    """

    reason: str | None
    metrics: Mapping[str, float]
    error: float | None = None
    same: int = 0
    written: int = 0


@dataclass(frozen=True, repr=False)
class Losses(Displayed):
    """What recipes make of the trained model's answers, those that were refused too; see :func:`what_is_lost`."""

    rows: Mapping[str, Loss]

    def table(self) -> Table:
        """A row for each recipe."""
        names = list(self.rows[REFERENCE].metrics)
        rows = tuple((recipe, *_cells(loss, names)) for recipe, loss in self.rows.items())
        columns = ("recipe", *names, "error of logits", "same tokens", "verdict")
        note = "Those that were refused were prepared without verification, to see what they would have answered."
        return Table(columns, rows, note=note, numeric=columns[1:-1])


def _cells(loss: Loss, names: Sequence[str]) -> tuple[str, ...]:
    if not loss.metrics:
        return (*("" for _ in names), "", "", f"cannot run here: {loss.reason}")
    verdict = f"refused: {loss.reason}" if loss.reason else "kept"
    same = f"{loss.same} of {loss.written}"
    return (*(f"{loss.metrics[name]:.2f}" for name in names), f"{loss.error:.1e}", same, verdict)


def what_is_lost(
    task: Task, recipes: Sequence[str], *, limit: int | None = None, texts: int = 8, new_tokens: int = 16
) -> Losses:
    """Prepare the trained model by each recipe, and see what becomes of its answers.

    Parameters
    ----------
    task
        Of text generation.
    recipes
        Names; ``eager-fp32`` comes first in any case.
    limit
        Score so many examples; all unless given.
    texts, new_tokens
        Continue so many texts by so many tokens.

    Returns
    -------
    Losses
    """
    names = list(dict.fromkeys((REFERENCE, *recipes)))
    prompts, held_out = task.inputs(texts, 32), task.running_text(4, 64)
    generators, reasons = {}, {}
    for name in names:
        reasons[name] = generation_recipe(name).why_not
        if reasons[name] is None:
            generators[name], reasons[name] = _prepared_anyhow(name, task, prompts, held_out)
    able = {name: one for name, one in generators.items() if one.prepared}
    written = measure_generation(able, prompts, new_tokens=new_tokens, turns=1, progress=False)
    own = eager_logits(task.trained_model, held_out, torch.ones_like(held_out)).flatten(0, 1)
    rows = {name: Loss(reasons[name], {}) for name in names}
    for name, generator in able.items():
        # One text at a time: a batch would be padded on the right, which a generator refuses.
        metrics = task.evaluate(generator, limit=limit, batch_size=1).metrics
        seen = generator(input_ids=held_out).logits.flatten(0, 1)
        error = closeness(own, seen, 1.0).mean
        rows[name] = Loss(reasons[name], metrics, error, written[name].same_tokens, texts * new_tokens)
    return Losses(rows)


def _prepared_anyhow(
    name: str, task: Task, prompts: Mapping[str, torch.Tensor], held_out: torch.Tensor
) -> tuple[Generator, str | None]:
    """Prepared, without verification where that refuses it, and why it does."""
    generator = prepare_generator(name, task.trained_model, prompts, held_out=held_out)
    if generator.prepared:
        return generator, None
    return prepare_generator(name, task.trained_model, prompts, verify=False), generator.reason


@dataclass(frozen=True, repr=False)
class Drafts(Displayed):
    """What was written in how many steps.

    Attributes
    ----------
    new
        Tokens that were written.
    steps
        How often the model ran for them.
    drafted
        Tokens that were guessed and fed before the model had chosen them.
    """

    new: int
    steps: int
    drafted: int

    @property
    def accepted(self) -> int:
        """Drafted tokens that the model would have written itself: each saves a step."""
        return self.new - self.steps

    def __add__(self, other: Drafts) -> Drafts:
        return Drafts(self.new + other.new, self.steps + other.steps, self.drafted + other.drafted)

    def table(self) -> Table:
        """The four numbers in one row."""
        columns = ("new tokens", "steps", "drafted", "accepted")
        return Table(
            columns, ((str(self.new), str(self.steps), str(self.drafted), str(self.accepted)),), numeric=columns
        )


def write_watched(
    generator: Generator, prompt: Mapping[str, torch.Tensor], **settings: Any
) -> tuple[torch.Tensor, Drafts]:
    """Continue one prompt, and count the steps and what each was fed.

    Parameters
    ----------
    generator
        Prepared.
    prompt
        Token ids and mask of one text.
    **settings
        Of ``generate()``.

    Returns
    -------
    tokens : torch.Tensor
        The new ones, (tokens,).
    drafts : Drafts

    Raises
    ------
    InputError
        If the eager model writes in the generator's place, or there are several prompts.
    """
    rows, length = prompt["input_ids"].shape
    if generator.build is None or rows != 1:
        raise InputError(f"write_watched: {rows} prompts by {generator}; give one prompt, and what was prepared")
    with _watched(generator.build.step) as fed:
        tokens = generator.generate(**prompt, **settings)[0, length:]
    # Each step but the first is also fed the token that the model has chosen before.
    return tokens, Drafts(len(tokens), len(fed), sum(fed) - length - (len(fed) - 1))


@contextmanager
def _watched(step: Any) -> Iterator[list[int]]:
    fed: list[int] = []
    own = step.feed

    def feed(ids: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
        fed.append(ids.shape[1])
        return own(ids, *others, **named)

    step.feed = feed
    try:
        yield fed
    finally:
        del step.feed
