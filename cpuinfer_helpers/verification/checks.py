"""Check that a prepared model gives the model's own answers to everything that the plan asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from cpuinfer_helpers.errors import first_line
from cpuinfer_helpers.receipts import Check
from cpuinfer_helpers.verification.equality import Valid, difference, typical_size
from cpuinfer_helpers.verification.sizes import Sizes
from cpuinfer_helpers.verification.variations import Question, Variation, plan, shape_text

Tensors = Mapping[str, torch.Tensor]
Answer = Callable[[dict[str, torch.Tensor]], Any]

# TorchScript optimises its plan after two to three calls, so one right call proves little.
CALLS_PER_CHECK = 3


class Reference(Protocol):
    """What something that was prepared is compared with: :class:`~cpuinfer_helpers.interface.reference.Reference`."""

    inputs: Any
    expected: Tensors

    @property
    def config(self) -> Any:
        """The model's configuration, or None."""

    def answers(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """What the model answers, as named tensors."""

    def ask(self, answer: Answer, tensors: Tensors, *, seed: int) -> dict[str, torch.Tensor]:
        """What something else answers under a seed, as named tensors."""


@dataclass(frozen=True)
class Verification:
    """What the comparison of a prepared model with its reference has found.

    Attributes
    ----------
    checks
        In the order in which they ran, up to the first that failed.
    sizes
        Which sizes of the inputs were seen to be right.
    kept_to_size
        Why it is kept for images of the example's size only; None if it is not.
    """

    checks: tuple[Check, ...]
    sizes: Sizes
    kept_to_size: str | None = None

    @property
    def difference(self) -> str | None:
        """What the first failed check found, in a sentence; None if none failed."""
        check = next((check for check in self.checks if check.passed is False), None)
        if check is None:
            return None
        size = f", largest error {check.max_error:.1e}, tolerance {check.tolerance:.1e}" if check.max_error else ""
        return f"it does not give the model's answers on {check.name!r} ({check.shape}): {check.note}{size}"


def verify(
    answer: Answer,
    reference: Reference,
    *,
    precision: str | None = None,
    tolerance: float | None = None,
    further: Iterable[Variation] = (),
    questions: Iterable[Question] | None = None,
) -> Verification:
    """Compare a prepared model with its model on the whole plan, three calls each; stop at the first that fails.

    Parameters
    ----------
    answer
        The prepared model: a function from tensors by name to an output. It is asked under another random seed on each
        call.
    reference
        The model and its example.
    precision
        ``fp32``, ``bf16`` or ``int8``: what the prepared model computes in, which sets the tolerance; that of the
        reference's own dtype unless given.
    tolerance
        Largest difference that passes, as a share of the scale of the answers (see
        :func:`~cpuinfer_helpers.verification.equality.difference`); that of the precision unless given.
    further
        Inputs to ask beside those of the plan, such as the first batch of an evaluation.
    questions
        Others than those of :func:`~cpuinfer_helpers.verification.variations.plan`, for a trace that is made for one
        shape.

    Returns
    -------
    Verification
    """
    from tqdm.auto import tqdm

    examination = _Examination(answer, reference, precision, tolerance)
    asked = list(plan(reference.config, reference.inputs.tensors) if questions is None else questions)
    asked += [Question((variation,)) for variation in further]
    for question in tqdm(asked, desc="verifying", leave=False, delay=2.0):
        if not examination.passes(question):
            break
    return examination.result()


def compare_answers(
    check: Check,
    expected: Tensors,
    seen: Tensors,
    valid: Valid,
    precision: str | None,
    tolerance: float | None = None,
    typical: Mapping[str, float] | None = None,
) -> Check:
    """The check with the largest error and its tolerance, failed if an output differs by more.

    Parameters
    ----------
    check
        What is known of the check so far.
    expected, seen
        Outputs by name.
    valid
        As for :class:`~cpuinfer_helpers.verification.variations.Variation`.
    precision, tolerance
        As for :func:`verify`.
    typical
        By output: the size of its answers to other inputs.
    """
    # The model may return more than a trace can hold, such as a key-value cache; the receipt says what is left out.
    compared = [name for name in expected if name in seen]
    if not compared:
        return replace(check, passed=False, note=f"nothing to compare: it returns {', '.join(seen)}")
    for name in compared:
        wanted, got = expected[name], seen[name]
        if got.shape != wanted.shape:
            return replace(check, passed=False, note=f"{name} has shape {list(got.shape)}, not {list(wanted.shape)}")
        found = difference(wanted, got, valid, precision, tolerance, (typical or {}).get(name, 0.0))
        if not found.passed:
            return replace(check, passed=False, max_error=found.error, tolerance=found.allowed, note=f"{name} differs")
        if found.error >= check.max_error:
            check = replace(check, max_error=found.error, tolerance=found.allowed)
    return check


class _Examination:
    """Asks the questions of a plan and keeps what came of it."""

    def __init__(self, answer: Answer, reference: Reference, precision: str | None, tolerance: float | None) -> None:
        self.answer, self.reference = answer, reference
        self.precision, self.tolerance = precision, tolerance
        self.checks: list[Check] = []
        self.right: list[tuple[Question, Tensors]] = []
        self.kept_to_size: str | None = None
        self._typical = {name: typical_size(answers) for name, answers in reference.expected.items()}
        self._shapes: set[tuple[torch.Size, ...]] = set()

    def passes(self, question: Question) -> bool:
        """Ask, and tell whether to go on."""
        variation, expected, note = self._asked(question)
        if variation is None:
            return True
        if expected is None:
            self.checks.append(Check(variation.name, _shape(variation), None, note=note))
            return True
        check = self._compared(variation, expected)
        if check.passed:
            self.right.append((question, variation.inputs))
        elif question.keeps_size:
            self.kept_to_size = self.kept_to_size or self._kept_to_size(variation)
            check = replace(check, passed=None)
        elif question.keeps_rows:
            check = replace(check, passed=None, note=f"{check.note}; so all inputs keep to equal numbers of rows")
        self.checks.append(check)
        return check.passed is not False

    def _kept_to_size(self, variation: Variation) -> str:
        example = self.reference.inputs.tensors
        own = next(own for name, own in example.items() if own.shape[1:] != variation.inputs[name].shape[1:])
        sizes = " x ".join(map(str, own.shape[1:]))
        return f"only {sizes}: on {variation.name!r} it does not give the model's answers"

    def result(self) -> Verification:
        """All that was found."""
        inputs = [inputs for question, inputs in self.right if not (self.kept_to_size and question.keeps_size)]
        parts = [question.part for question, _ in self.right if question.part]
        sizes = Sizes.seen_in(self.reference.inputs.tensors, inputs, parts)
        return Verification(tuple(self.checks), sizes, self.kept_to_size)

    def _asked(self, question: Question) -> tuple[Variation | None, dict[str, torch.Tensor] | None, str]:
        """The first variation that the model answers, with its answers; else the first one, and why it does not."""
        note = ""
        for variation in question.alternatives:
            if variation.inputs is None:
                return variation, None, variation.note
            try:
                expected = self.reference.answers(variation.inputs)
            except Exception as error:  # any model may refuse any shape in its own way; that is no fault of the trace
                note = note or f"the model itself refuses: {first_line(error)}"
                continue
            if _holds_numbers(expected):
                return variation, expected, ""
            note = note or "the model's own answers are not numbers"
        return (None, None, "") if question.optional else (question.alternatives[0], None, note)

    def _calls(self, inputs: Tensors) -> int:
        """Of a shape that has been called before there is a plan already."""
        shape = tuple(tensor.shape for tensor in inputs.values())
        known = shape in self._shapes
        self._shapes.add(shape)
        return 1 if known else CALLS_PER_CHECK

    def _compared(self, variation: Variation, expected: Tensors) -> Check:
        shape = _shape(variation)
        worst = Check(variation.name, shape, True)
        for call in range(1, self._calls(variation.inputs) + 1):
            inputs = {name: tensor.clone() for name, tensor in variation.inputs.items()}
            try:
                seen = self.reference.ask(self.answer, inputs, seed=call)
            except Exception as error:  # a trace fails with whatever its operators raise
                return Check(variation.name, shape, False, note=f"call {call} fails: {first_line(error)}")
            found = (expected, seen, variation.valid, self.precision, self.tolerance, self._typical)
            worst = compare_answers(worst, *found)
            if not worst.passed:
                return replace(worst, note=f"call {call}: {worst.note}")
        return worst


def _holds_numbers(answers: Tensors) -> bool:
    """Whether there is at least one number in each floating output that is not empty."""
    floating = (tensor for tensor in answers.values() if tensor.is_floating_point() and tensor.numel())
    return all(bool(tensor.isfinite().any()) for tensor in floating)


def _shape(variation: Variation) -> str:
    return shape_text(variation.inputs) if variation.inputs else ""
