"""Copies of a model that share its weights, so that a backend can change the copy and not the user's model."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch

from cpuinfer_helpers import switches
from cpuinfer_helpers.copies import shared_copy

logger = logging.getLogger("cpuinfer_helpers")


def cast_copy(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """A copy with floating parameters and buffers of another dtype; all other tensors are shared."""
    copied = shared_copy(model)
    cast: dict[int, torch.Tensor] = {}
    for part in copied.modules():
        # Module.to() would cast the parameters themselves, which are the user's model's too.
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.is_floating_point():
                    tensors[name] = cast.setdefault(id(tensor), _cast(tensor, dtype))
    return copied


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    cast = tensor.detach().to(dtype)
    return torch.nn.Parameter(cast, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else cast


def attention_of(model: torch.nn.Module) -> str | None:
    """``eager``, ``sdpa`` ... of the model's configuration; None for models that have none."""
    return getattr(getattr(model, "config", None), "_attn_implementation", None)


def with_attention(model: torch.nn.Module, implementation: str) -> torch.nn.Module:
    """A copy that shares the model's weights and computes attention in another way.

    Parameters
    ----------
    model
        Any module. One that has no attention to choose is copied as it is.
    implementation
        ``eager``: matrix products and a softmax, which graph fusions look for. ``sdpa``: one fused operator.

    Returns
    -------
    torch.nn.Module
        In evaluation mode. :func:`attention_of` tells what it has: a model that does not support the implementation
        keeps its own, with a log message.
    """
    current = attention_of(model)
    if current is None or current == implementation:
        return shared_copy(model)
    try:
        return _rebuilt(model, implementation)
    except Exception as error:  # a constructor may refuse in any way; the receipt tells what it kept
        logger.info("%s keeps its %s attention: %s", type(model).__name__, current, error)
        return shared_copy(model)


def _rebuilt(model: torch.nn.Module, implementation: str) -> torch.nn.Module:
    """Construct the class anew on the meta device, then hand it the model's own tensors.

    Transformers 4 chooses attention classes in the constructor, so changing the configuration afterwards is too late.
    """
    config = copy.deepcopy(model.config)
    config._attn_implementation = implementation
    # Transformers sets the default dtype of the process while it constructs.
    with switches.held(), torch.device("meta"):
        rebuilt = type(model)._from_config(config, attn_implementation=implementation)
    for name, part in model.named_modules():
        target = rebuilt.get_submodule(name)
        for key, parameter in part._parameters.items():
            target._parameters[key] = parameter
        for key, buffer in part._buffers.items():
            target._buffers[key] = buffer
    _refuse_meta_tensors(rebuilt)
    return rebuilt.eval()


def _refuse_meta_tensors(model: torch.nn.Module) -> None:
    left: list[Any] = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    left += [name for name, tensor in model.named_buffers() if tensor.is_meta]
    if left:
        raise ValueError(f"{left[0]} is not among the original's tensors")
