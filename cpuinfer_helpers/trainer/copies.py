"""A model for evaluation beside the one that is trained: the same weights, nothing else in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cpuinfer_helpers.errors import InputError, first_line
from cpuinfer_helpers.recipes.copies import shared_copy


def evaluation_copy(model: torch.nn.Module) -> torch.nn.Module:
    """A copy that shares the model's weights, in evaluation mode, without what accelerate has put around its forward.

    Raises
    ------
    InputError
        If it cannot be copied.
    """
    try:
        copied = shared_copy(model)
    except Exception as error:  # a module of the user's may hold anything
        raise InputError(f"{type(model).__name__} cannot be copied: {first_line(error)}") from error
    # Under mixed precision accelerate replaces forward by one that calls the original's under autocast.
    if "_original_forward" in vars(copied):
        vars(copied).pop("forward", None)
        original = vars(copied).pop("_original_forward")
        if getattr(original, "__func__", None) is not type(copied).forward:
            copied.forward = original
    return copied.eval()


def in_evaluation_mode(model: torch.nn.Module) -> Callable[..., Any]:
    """The model itself, for one that cannot be copied: in evaluation mode for each call, then as it was."""

    def answer(**inputs: Any) -> Any:
        with _evaluating(model):
            return model(**inputs)

    return answer


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    before = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training
