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
    """A copy of the model with the attention that a backend runs fastest, unless attention maps were asked for.

    Only eager attention can return those.
    """
    asked = request.inputs.constants.get("output_attentions", getattr(request.config, "output_attentions", False))
    if asked and attention_of(request.model) == "eager":
        return shared_copy(request.model)
    return with_attention(request.model, implementation)
