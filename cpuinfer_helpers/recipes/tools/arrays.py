"""What the backends outside PyTorch share: tensors as numpy arrays, without a copy where there need be none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch


def array_maker(example: Mapping[str, torch.Tensor]) -> Callable[[str, torch.Tensor], Any]:
    """A function from an input's name and tensor to a numpy array of the example's dtype, which shares its memory.

    A compiled model takes the dtypes of its example and no others; a tensor that has them already is not copied.
    """
    dtypes = {name: tensor.dtype for name, tensor in example.items()}
    return lambda name, tensor: tensor.detach().to(dtypes[name]).contiguous().numpy()
