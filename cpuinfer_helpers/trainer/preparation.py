"""Prepare a model for the batches of an evaluation: try the plan's recipes, check the batch itself, or fall back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from cpuinfer_helpers.errors import CpuInferError, InputError, RecipeError, first_line
from cpuinfer_helpers.graph import linear_dtypes
from cpuinfer_helpers.interface.copies import attention_of, cast_copy, evaluation_copy, in_evaluation_mode, untouched
from cpuinfer_helpers.interface.drop_in import receipt_here
from cpuinfer_helpers.interface.outputs import take_apart
from cpuinfer_helpers.interface.reference import Reference
from cpuinfer_helpers.receipts import Receipt
from cpuinfer_helpers.recipes import Recipe
from cpuinfer_helpers.recipes.preparation import prepare_like
from cpuinfer_helpers.trainer.emulation import emulation_text
from cpuinfer_helpers.trainer.grouping import as_long, cut_columns
from cpuinfer_helpers.trainer.losses import LossFunction, loss_of, split_loss
from cpuinfer_helpers.trainer.plan import EvaluationPlan
from cpuinfer_helpers.verification.variations import Variation, valid_positions

logger = logging.getLogger("cpuinfer_helpers")

# A recipe is verified on other batch sizes, lengths and paddings of so few and short rows, and then on as many rows of
# the first batch, whole. At full size that would take longer than many an evaluation.
_ROWS = 2
_LENGTH = 32


@dataclass(frozen=True)
class Ready:
    """What answers batches of one kind.

    Attributes
    ----------
    answer
        Called with the batch by name.
    receipt
        What was requested and what was seen.
    loss
        Computes the loss from the outputs; None where ``answer`` takes the labels too.
    by_recipe
        Whether a recipe made ``answer``; False for the eager model.
    """

    answer: Callable[..., Any]
    receipt: Receipt
    loss: LossFunction | None = None
    by_recipe: bool = True


class Preparation:
    """One attempt to carry out a plan for one kind of batch.

    Parameters
    ----------
    model
        The user's model. Left as it is.
    plan
        What to try.
    inputs, labels
        The first batch.
    """

    def __init__(
        self, model: torch.nn.Module, plan: EvaluationPlan, inputs: Mapping[str, Any], labels: Mapping[str, Any]
    ) -> None:
        self._own, self._plan = model, plan
        self._uncopied: str | None = None
        try:
            self._model = evaluation_copy(model)
        except InputError as error:
            self._uncopied = str(error)
        self._batch, self._batch_labels = inputs, labels
        self._inputs, self._labels = _first_rows(inputs), _first_rows(labels)

    def run(self) -> Ready:
        """Try the recipes in turn; the eager model if none of them can.

        Raises
        ------
        RecipeError
            If the plan is to raise where none of its recipes can.
        """
        if self._uncopied:
            return self._without_a_copy(self._uncopied)
        reasons: list[str] = []
        for recipe in (*self._plan.recipes, *self._plan.substitutes):
            carries_out = recipe in self._plan.recipes
            if not carries_out:
                self._raise_if_asked(reasons)
            try:
                ready = self._by_recipe(recipe)
            except CpuInferError as error:
                logger.info("%s: %s", recipe.name, error)
                reasons.append(f"{recipe.name}: {error}")
                continue
            return self._noted(ready, None if carries_out else self._not_done(reasons, recipe.name))
        self._raise_if_asked(reasons)
        return self.eager(self._not_done(reasons, "the eager model") if reasons else None)

    def eager(self, reason: str | None) -> Ready:
        """The eager model in the plan's precision."""
        if self._plan.precision == "fp32":
            return self._as_eager(self._model, "the eager model", reason)
        if self._plan.cast_weights:
            return self._as_eager(cast_copy(self._model, torch.bfloat16), "the eager model with BF16 weights", reason)
        return self._as_eager(_under_autocast(self._model), "the eager model under BF16 autocast", reason)

    def _without_a_copy(self, reason: str) -> Ready:
        """The user's model itself, for which no recipe can be tried and no weights cast."""
        answer, runs = in_evaluation_mode(self._own), "the model itself"
        if self._plan.precision == "bf16":
            answer, runs = _under_autocast(answer), "the model itself under BF16 autocast"
        if not self._plan.recipes:
            return self._as_eager(answer, runs, None)
        self._raise_if_asked([reason])
        return self._as_eager(answer, runs, self._not_done([reason], runs))

    def _as_eager(self, answer: Callable[..., Any], runs: str, reason: str | None) -> Ready:
        # With labels, which some models cannot do without.
        rows = _shortened({**self._inputs, **self._labels}, self._labels, answer)
        emulation = emulation_text(self._plan)
        runs = f"{runs} (emulated)" if emulation else runs
        receipt = receipt_here(
            {"model": type(self._own).__name__},
            runs=f"{runs}, because {reason}" if reason else runs,
            linear_dtypes=linear_dtypes(answer, rows),
            evidence={"BF16": emulation} if emulation else {},
            attention_implementation=attention_of(self._own),
        )
        return self._noted(Ready(answer, receipt, by_recipe=False), reason)

    def _by_recipe(self, recipe: Recipe) -> Ready:
        return replace(self._verified(recipe), loss=self._wanted[1])

    @cached_property
    def _wanted(self) -> tuple[dict[str, Any], LossFunction | None]:
        """The rows to prepare for, and the loss where that needs no trace."""
        if not self._labels:
            return self._inputs, None
        whole = {**self._inputs, **self._labels}
        expected = self._reference(whole)
        loss = self._loss(expected)
        if loss is None:
            # The model's own way to its loss becomes a part of the trace.
            return whole, None
        return self._inputs, loss

    @cached_property
    def _short_reference(self) -> Reference:
        """The model with the rows cut short."""
        return Reference.of(self._model, _shortened(self._wanted[0], self._labels, self._reference_of))

    def _verified(self, recipe: Recipe) -> Ready:
        """Prepared on a short example, and seen to give the eager model's answers to whole rows as well."""
        reference = self._short_reference
        whole = {name: self._wanted[0][name].detach() for name in reference.inputs.tensors}
        first_batch = Variation("first batch", whole, valid_positions(whole, reference.config))
        prepared = prepare_like(reference, recipe, on_failure="raise", further=[first_batch])
        receipt = prepared.receipt
        if emulation_text(self._plan):
            receipt = replace(receipt, runs=f"{receipt.runs} (BF16 emulated)")
        return Ready(prepared, receipt)

    def _reference(self, rows: Mapping[str, Any]) -> Any:
        try:
            return untouched(self._model)(**rows)
        except Exception as error:  # the user's model and data may fail in any way
            name = type(self._model).__name__
            raise InputError(f"{name} itself cannot run the first batch: {first_line(error)}") from error

    def _reference_of(self, **rows: Any) -> Any:
        return self._reference(rows)

    def _loss(self, expected: Any) -> LossFunction | None:
        """The loss from logits, if the model gives the same outputs with labels and without, and it is the same."""
        try:
            loss, others = split_loss(expected)
            plain = self._reference(_shortened(self._inputs, (), self._reference_of))
            same = take_apart(plain)[0].keys() == take_apart(others)[0].keys()
        except (CpuInferError, IndexError, KeyError, TypeError):
            return None
        if not same or not isinstance(loss, torch.Tensor):
            return None
        if torch.isfinite(loss).all():
            return loss_of(self._model, expected, self._labels)
        # No label of these rows counts, so their loss proves nothing.
        whole = self._reference({**self._batch, **self._batch_labels})
        return loss_of(self._model, whole, self._batch_labels)

    def _not_done(self, reasons: list[str], instead: str) -> str:
        reason = "; ".join(reasons)
        asked = " and ".join(name for name, value in self._plan.requested.items() if value)
        logger.warning("%s asked for, but %s evaluates: %s", asked, instead, reason)
        return reason

    def _raise_if_asked(self, reasons: list[str]) -> None:
        if reasons and self._plan.on_failure == "raise":
            raise RecipeError(f"jit_failure is 'raise', and {'; '.join(reasons)}")

    def _noted(self, ready: Ready, reason: str | None) -> Ready:
        requested = {**self._plan.requested, **ready.receipt.requested}
        return replace(ready, receipt=replace(ready.receipt, requested=requested, reason=reason))


def _under_autocast(model: Callable[..., Any]) -> Callable[..., Any]:
    def answer(**inputs: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(**inputs)

    return answer


def _first_rows(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value[:_ROWS] if _has_rows(value) else value for name, value in batch.items()}


def _has_rows(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0


def _shortened(rows: Mapping[str, Any], labels: Iterable[str], answer: Callable[..., Any]) -> dict[str, Any]:
    """The rows cut to a short length, where an attention mask tells which dimension that is.

    What is as wide as the sequence need not be of its positions, so it is tried with labels cut, and with labels whole;
    rows that the model does not answer are of no use.
    """
    mask = rows.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2 or mask.shape[1] <= _LENGTH:
        return dict(rows)
    length = mask.shape[1]
    if any(length in value.shape[2:] for value in rows.values() if isinstance(value, torch.Tensor)):
        return dict(rows)
    wide = as_long(rows, length)
    for names in dict.fromkeys((tuple(wide), tuple(name for name in wide if name not in labels))):
        short = cut_columns(rows, names, _LENGTH)
        try:
            answer(**short)
        except Exception:  # the user's model may fail in any way
            logger.debug("%s cannot be cut to %s columns", ", ".join(names), _LENGTH, exc_info=True)
            continue
        return short
    return dict(rows)
