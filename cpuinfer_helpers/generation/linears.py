"""Linear layers with weights stored in fewer bits, by PyTorch's own kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from cpuinfer_helpers.interface.copies import has_own_code
from cpuinfer_helpers.machine import switches

# Beyond this FP16 has no numbers; the kernel saturates there.
_LARGEST_FP16 = 65504.0


def plain_weight(layer: torch.nn.Module) -> torch.Tensor:
    """A linear layer's weight as (outputs, inputs), of transformers' ``Conv1D`` too, which keeps it the other way."""
    return layer.weight.t() if _is_conv1d(layer) else layer.weight


def linear_layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Every linear layer of a model by its path: ``nn.Linear``, transformers' ``Conv1D``, and classes of these."""
    return {path: part for path, part in model.named_modules() if isinstance(part, torch.nn.Linear) or _is_conv1d(part)}


def why_not_replaced(layer: torch.nn.Module) -> str | None:
    """Why another module cannot take a linear layer's place; None if it can."""
    if own := has_own_code(layer):
        return f"it has {own}"
    plain = torch.nn.Linear.forward, _conv1d_forward()
    if type(layer).forward not in plain:
        return f"{type(layer).__name__} computes in a way of its own"
    return None


def other_matrices(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights that products are made with outside of linear layers, such as those of experts, by name."""
    linear = {id(parameter) for layer in linear_layers(model).values() for parameter in layer.parameters()}
    looked_up = {id(part.weight) for part in model.modules() if isinstance(part, torch.nn.Embedding)}
    known = linear | looked_up
    return {name: p for name, p in model.named_parameters() if p.dim() >= 2 and id(p) not in known}


class _Replacing(torch.nn.Module):
    """A linear layer whose weight is stored in another way.

    Attributes
    ----------
    stored : str
        The dtype of the weight.
    packed_bytes : int
        Bytes of what is no parameter and no buffer.
    """

    stored = ""
    packed_bytes = 0


class Fp16Linear(_Replacing):
    """Weights in FP16, products in FP32: fbgemm's kernel, which unpacks the weight while it multiplies."""

    stored = "fp16"

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        weight = plain_weight(layer).detach().float()
        bias = None if layer.bias is None else layer.bias.detach().float()
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight.contiguous(), bias)
        self.packed_bytes = 2 * weight.numel()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """FP32 to FP32."""
        return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)


class Int8Linear(_Replacing):
    """Weights in 8 bits with a scale for each output; what is multiplied is rounded to 8 bits row by row.

    fbgemm's kernel has one scale for all rows. Rows are therefore divided by their largest value first, so that one
    scale fits them all, and multiplied by it afterwards. With one scale for rows whose sizes lie a hundred times apart,
    the answers were seen to be 32% off, with one for each row 1%; and what a row is told does not depend on what other
    rows are fed beside it.

    Parameters
    ----------
    layer
        A linear layer.
    reduce_range
        Round to 7 bits, for CPUs on which sums of two products overflow.
    """

    stored = "int8"

    def __init__(self, layer: torch.nn.Module, *, reduce_range: bool) -> None:
        super().__init__()
        weight = plain_weight(layer).detach().float()
        scales = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        zeros = torch.zeros(len(scales), dtype=torch.long)
        with switches.warnings_ignored(category=UserWarning, message="torch.quantize_per"):
            whole = torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(whole, None)
        self.bias = None if layer.bias is None else torch.nn.Parameter(layer.bias.detach().float(), False)
        self.steps = 63 if reduce_range else 127
        self.packed_bytes = weight.numel() + 4 * len(scales)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """FP32 to FP32."""
        sizes = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30)
        product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            x / sizes, 1 / self.steps, self.steps + 1, self.packed
        )
        product = product * sizes
        return product if self.bias is None else product + self.bias


class Linear(_Replacing):
    """A plain linear layer in the place of transformers' ``Conv1D``, or one in another dtype."""

    def __init__(self, layer: torch.nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(plain_weight(layer).detach().to(dtype).contiguous(), False)
        self.bias = None if layer.bias is None else torch.nn.Parameter(layer.bias.detach().to(dtype), False)
        self.stored = str(dtype).removeprefix("torch.")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """In the dtype of the weight."""
        return torch.nn.functional.linear(x, self.weight, self.bias)


def replace(model: torch.nn.Module, make: Callable[[str, torch.nn.Module], torch.nn.Module]) -> dict[str, str]:
    """Put another module in the place of every linear layer that can be replaced.

    Parameters
    ----------
    model
        A copy that nobody else uses.
    make
        Makes the other module, given the path and the layer. Layers that share their weight share what is made.

    Returns
    -------
    dict of str to str
        The layers that were left, by path, and why.
    """
    left: dict[str, str] = {}
    made: dict[tuple[int, int], torch.nn.Module] = {}
    for path, layer in linear_layers(model).items():
        reason = why_not_replaced(layer)
        if reason:
            left[path] = reason
            continue
        key = id(layer.weight), id(layer.bias)
        if key not in made:
            made[key] = make(path, layer)
        _set(model, path, made[key])
    return left


def saturated(layer: torch.nn.Module) -> int:
    """How many of a layer's weights FP16 has no number for."""
    return int((layer.weight.detach().abs() > _LARGEST_FP16).sum())


def _set(model: torch.nn.Module, path: str, module: torch.nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _is_conv1d(part: torch.nn.Module) -> bool:
    return type(part).forward is _conv1d_forward()


def _conv1d_forward() -> Callable[..., torch.Tensor]:
    from transformers.pytorch_utils import Conv1D

    return Conv1D.forward


def replaced_layers(model: torch.nn.Module) -> Iterator[_Replacing]:
    """The modules that stand in place of linear layers, each once."""
    for part in model.modules():
        if isinstance(part, _Replacing):
            yield part
