"""Copies of a model that share its weights, so that nothing that is done with them changes the user's model."""

from __future__ import annotations

import copy
import logging

import torch

logger = logging.getLogger("cpuinfer_helpers")


def shared_copy(model: torch.nn.Module) -> torch.nn.Module:
    """A copy whose modules are its own and whose parameters and buffers are the model's.

    Replace its parameters or modules as you like; never write into a tensor of it.
    """
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, memo={id(tensor): tensor for tensor in tensors})


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
