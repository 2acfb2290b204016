"""What the backends outside PyTorch share: tensors as numpy arrays, without a copy where there need be none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from cpuinfer_helpers.interface.copies import attention_of, shared_copy, with_attention
from cpuinfer_helpers.recipes.base import Request


def array_maker(example: Mapping[str, torch.Tensor]) -> Callable[[str, torch.Tensor], Any]:
    """A function from an input's name and tensor to a numpy array of the example's dtype, which shares its memory.

    A compiled model takes the dtypes of its example and no others; a tensor that has them already is not copied.
    """
    dtypes = {name: tensor.dtype for name, tensor in example.items()}
    return lambda name, tensor: tensor.detach().to(dtypes[name]).contiguous().numpy()


def attention_copy(request: Request, implementation: str) -> torch.nn.Module:
    """A copy of the model without a key-value cache, and with an attention unless attention maps were asked for.

    Only eager attention can return those. The cache is no output of what is prepared; it begins as a tensor without
    dimensions that others are appended to, which not every backend can do. Models whose ``forward`` takes ``use_cache``
    are told by the adapter; others read their configuration.
    """
    asked = request.inputs.constants.get("output_attentions", getattr(request.config, "output_attentions", False))
    keeps = asked and attention_of(request.model) == "eager"
    copied = shared_copy(request.model) if keeps else with_attention(request.model, implementation)
    for part in copied.modules():
        config = getattr(part, "config", None)
        if getattr(config, "use_cache", None) is True:
            config.use_cache = False
    return copied
