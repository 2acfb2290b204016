"""One tiny model, the calls to compare, and its own answers to them, all of it before any recipe has seen it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from sweep.calls import Call, calls
from sweep.classes import SPEECH, Case
from sweep.comparing import error_size, flat
from sweep.examples import Examples, Tensors
from sweep.tiny import tiny_model

# Answers under weights that differ in the last bit or two of FP32 differ by what rounding alone can do.
_ROUNDING, _COPIES = 2.0**-22, 3


@dataclass(frozen=True)
class Subject:
    """What every recipe of one class is compared with.

    Attributes
    ----------
    model
        The model; nothing calls it but the package. All answers are of fresh copies.
    example
        Inputs to prepare it with.
    answers
        Each call that the model takes, with its own answers.
    varies
        Whether other content gives other answers: if not, comparing them proves nothing.
    random
        Whether another seed gives other answers.
    by_rounding
        Differences that were found and are no larger than what rounding does to the model's own answers.
    """

    model: torch.nn.Module
    example: Tensors
    answers: tuple[tuple[Call, dict[str, torch.Tensor]], ...]
    varies: bool
    random: bool
    by_rounding: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, case: Case) -> Subject:
        """The subject of a class.

        Raises
        ------
        Exception
            Whatever keeps it from running in eager.
        """
        model = tiny_model(case.model_class(), case.family)
        if case.task == SPEECH:
            return cls(model, {}, (), varies=True, random=False)
        examples, example, first = _running(model, case.task)
        answers = ((call, answer_or_none(model, call)) for call in calls(examples))
        found = tuple((call, answer) for call, answer in answers if answer and not _reads_padding(model, call, answer))
        other = answer_or_none(model, Call("", examples.make(2, examples.size, seed=5)))
        return cls(model, example, found, _differ(first, other), _differ(first, eager(model, example, seed=1)))

    def rounding(self, call: Call, wanted: Mapping[str, torch.Tensor], name: str) -> float:
        """How much of an answer rounding decides, in tolerances: a router or a threshold can turn it over."""
        sizes = []
        for seed in range(_COPIES):
            seen = flat_answer(_nudged(self.model, seed), call.inputs)
            size = error_size(wanted[name], seen[name], call.valid_of(name, wanted[name].shape))
            sizes.append(float("inf") if size is None else size)
        return max(sizes)


def _running(model: torch.nn.Module, task: str) -> tuple[Examples, Tensors, dict[str, torch.Tensor]]:
    """Examples of the first kind that the model runs with; raises what the first of them raised if none does."""
    failed: Exception | None = None
    for kind in Examples.kinds(model, task):
        examples = Examples(model, task, kind)
        try:
            example = examples.make(2, examples.size)
            return examples, example, eager(model, example)
        except Exception as error:  # whatever keeps a class from running is what the report says of it
            failed = failed or error
    raise failed


def eager(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], seed: int = 0) -> dict[str, torch.Tensor]:
    """The answer of a fresh copy, because some models change when they see a shape (Swin, BigBird)."""
    return flat_answer(copy.deepcopy(model), inputs, seed)


def flat_answer(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], seed: int = 0) -> dict[str, torch.Tensor]:
    """The answers by name, to inputs that the model may write into."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        answers = flat(model(**{name: tensor.clone() for name, tensor in inputs.items()}))
    if not answers:
        raise ValueError("its output holds no tensor")
    return answers


def answer_or_none(model: torch.nn.Module, call: Call) -> dict[str, torch.Tensor] | None:
    """The model's own answer, or None where it refuses this shape itself."""
    try:
        return eager(model, call.inputs)
    except Exception:  # a model may refuse a shape in any way; then there is nothing to compare
        return None


def _reads_padding(model: torch.nn.Module, call: Call, answer: Mapping[str, torch.Tensor]) -> bool:
    """Whether what stands under the padding changes the model's own answers.

    Some classifiers look for the padding token, not at the mask: then they answer from a position that attends to
    nothing, and what comes of that is for each implementation of attention to say.
    """
    if call.plain is None:
        return False
    plain = eager(model, call.plain)
    sizes = (error_size(tensor, plain[name], call.valid_of(name, tensor.shape)) for name, tensor in answer.items())
    return any(size is None or size > 1 for size in sizes)


def _differ(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor] | None) -> bool:
    """Whether any answer differs by more than a tolerance."""
    if second is None:
        return False
    sizes = (error_size(tensor, second[name]) if name in second else None for name, tensor in first.items())
    return any(size is None or size > 1 for size in sizes)


def _nudged(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """A copy whose weights differ by their rounding."""
    nudged = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in nudged.parameters():
            if weight.is_floating_point():
                weight.mul_(1 + _ROUNDING * torch.randn(weight.shape, generator=generator))
    return nudged
