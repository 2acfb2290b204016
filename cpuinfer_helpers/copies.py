"""Copies of a model that share its weights, so that nothing that is done with them changes the user's model."""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict
from typing import Any

import torch

logger = logging.getLogger("cpuinfer_helpers")


def shared_copy(model: torch.nn.Module) -> torch.nn.Module:
    """A copy whose modules and buffers are its own and whose parameters are the model's.

    Replace its parameters or modules as you like; never write into a parameter of it. Parameters that were made under
    ``inference_mode`` keep no version and cannot be traced, so they are copied.
    """
    with torch.inference_mode(False), torch.no_grad():
        memo: dict[int, Any] = _empty_dictionaries(model)
        for parameter in model.parameters():
            memo[id(parameter)] = _usual(parameter) if parameter.is_inference() else parameter
        for buffer in model.buffers():
            memo[id(buffer)] = buffer.detach().clone()
        return copy.deepcopy(model, memo=memo)


def untouched(model: torch.nn.Module) -> torch.nn.Module:
    """A copy to call in the model's place, for models that a call changes; the model itself where it has no copy.

    Swin shrinks its windows for good when it sees a small image, BigBird turns to full attention for good when it sees
    a short text: what such a model answers depends on what it was asked before. Modules that IPEX has packed hold
    objects of its own, which have no copy; they are not changed by calls either.
    """
    if any(isinstance(value, torch.ScriptObject) for part in model.modules() for value in vars(part).values()):
        return model
    try:
        return shared_copy(model)
    except Exception as error:  # a module may hold anything, among it what cannot be copied
        logger.debug("%s cannot be copied: %s", type(model).__name__, error)
        return model


class EagerModel:
    """A model that answers eagerly and is never changed by it.

    Parameters
    ----------
    model
        The model, which is not called itself where it can be copied.
    fresh
        Whether each call needs a copy of its own, because calls change the model.
    """

    def __init__(self, model: torch.nn.Module, *, fresh: bool) -> None:
        self._model = model if fresh else untouched(model)
        self.fresh = fresh

    def __call__(self, **inputs: Any) -> Any:
        """The model's own output."""
        model = untouched(self._model) if self.fresh else self._model
        return model(**inputs)


def changes_of_call(before: torch.nn.Module, called: torch.nn.Module) -> tuple[str, ...]:
    """What calls have changed in a copy: plain attributes, buffers that were written to, modules that were replaced.

    Parameters
    ----------
    before
        The model, never called.
    called
        A copy of it by :func:`untouched` that was called.

    Returns
    -------
    tuple of str
        Paths of attributes and modules; empty if nothing has changed, or there was no copy.
    """
    if before is called:
        return ()
    parts = dict(called.named_modules())
    changed = []
    for path, part in before.named_modules():
        other = parts.get(path)
        if other is None or type(other) is not type(part):
            changed.append(path)
            continue
        names = [name for name, value in vars(part).items() if is_plain(value) and vars(other).get(name) != value]
        names += [name for name, value in vars(other).items() if name not in vars(part) and is_plain(value)]
        names += [name for name, buffer in other._buffers.items() if _was_written(buffer)]
        changed += [f"{path}.{name}".removeprefix(".") for name in names]
    return tuple(changed)


def _empty_dictionaries(model: torch.nn.Module) -> dict[int, Any]:
    """New ones for those that every module keeps its hooks in, by identity; deepcopy takes far longer for each."""
    values = (value for part in model.modules() for value in vars(part).values())
    return {id(value): OrderedDict() for value in values if type(value) is OrderedDict and not value}


def _usual(parameter: torch.Tensor) -> torch.Tensor:
    return torch.nn.Parameter(parameter.detach().clone(), requires_grad=False)


def is_plain(value: object) -> bool:
    """Whether a value is a number, a text, a truth value or None, or a list or tuple of these."""
    if isinstance(value, (list, tuple)):
        return all(is_plain(entry) for entry in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _was_written(buffer: torch.Tensor | None) -> bool:
    return buffer is not None and not buffer.is_inference() and buffer._version > 0
