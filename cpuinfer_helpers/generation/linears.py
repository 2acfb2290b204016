"""Linear layers with weights stored in fewer bits, by PyTorch's own kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch

from cpuinfer_helpers.interface.copies import has_own_code
from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.machine.report import machine_report

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


class Replacing(torch.nn.Module):
    """Stands in the place of a linear layer or of an embedding, with weights that are stored in another way.

    Attributes
    ----------
    stored : str
        The dtype of the weight.
    packed_bytes : int
        Bytes of what is no parameter and no buffer.
    """

    stored = ""
    packed_bytes = 0

    def tensors(self) -> dict[str, torch.Tensor]:
        """What ``from_tensors`` makes the same of, by name."""
        raise NotImplementedError

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Replacing:
        """Made of what :meth:`tensors` gave."""
        raise NotImplementedError


class Fp16Linear(Replacing):
    """Weights in FP16, products in FP32: fbgemm's kernel, which unpacks the weight while it multiplies.

    Parameters
    ----------
    weight
        (outputs, inputs), in any floating dtype; rounded to FP16.
    bias
        (outputs,), or None.
    """

    stored = "fp16"
    # Some models ask whether it is a tensor, to cast what is multiplied by it: T5.
    weight = None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight.float().contiguous(), _in_fp32(bias))
        self.packed_bytes = 2 * weight.numel()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """FP32 to FP32."""
        return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weight in FP16, and the bias."""
        weight, bias = torch.ops.quantized.linear_unpack_fp16(self.packed)
        return _named(weight=weight.half(), bias=bias)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Fp16Linear:
        """Made of what :meth:`tensors` gave."""
        return cls(tensors["weight"], tensors.get("bias"))


class Int8Linear(Replacing):
    """Weights in 8 bits with a scale for each output; what is multiplied is rounded to 8 bits row by row.

    fbgemm's kernel has one scale for all rows. Rows are therefore divided by their largest value first, so that one
    scale fits them all, and multiplied by it afterwards. With one scale for rows whose sizes lie a hundred times apart,
    the answers were seen to be 32% off, with one for each row 1%; and what a row is told does not depend on what other
    rows are fed beside it. On CPUs on which sums of two products overflow, 7 of the 8 bits are used.

    Parameters
    ----------
    whole
        The weight (outputs, inputs) in whole numbers of 8 bits.
    scales
        (outputs,): a weight is its whole number times the scale of its output.
    bias
        (outputs,), or None.
    """

    stored = "int8"
    weight = None

    def __init__(self, whole: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        zeros = torch.zeros(len(scales), dtype=torch.long)
        with switches.warnings_ignored(category=UserWarning, message="torch.quantize_per"):
            weight = torch._make_per_channel_quantized_tensor(whole, scales.double(), zeros, 0)
        self.packed = torch.ops.quantized.linear_prepack(weight, None)
        self.bias = None if bias is None else torch.nn.Parameter(_in_fp32(bias), False)
        self.steps = 63 if machine_report().int8_sums_overflow else 127
        self.packed_bytes = whole.numel() + 4 * len(scales)

    @classmethod
    def of(cls, weight: torch.Tensor, bias: torch.Tensor | None) -> Int8Linear:
        """Round a weight (outputs, inputs)."""
        return cls(*in_8_bits(weight), bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """FP32 to FP32."""
        sizes = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30)
        product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            x / sizes, 1 / self.steps, self.steps + 1, self.packed
        )
        product = product * sizes
        return product if self.bias is None else product + self.bias

    def tensors(self) -> dict[str, torch.Tensor]:
        """The whole numbers, the scales and the bias."""
        weight, _ = torch.ops.quantized.linear_unpack(self.packed)
        return _named(weight=weight.int_repr(), scales=weight.q_per_channel_scales().float(), bias=self.bias)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Int8Linear:
        """Made of what :meth:`tensors` gave."""
        return cls(tensors["weight"], tensors["scales"], tensors.get("bias"))


class Int8TwiceLinear(Int8Linear):
    """The same with twice the bits of what is multiplied: rounded, and what rounding has left, as two rows.

    One row and two take nearly the same time, because it is the weight that is waited for (768 to 50 257: 8980 us and
    9208 us, AVX2); for a prompt of many tokens it is twice the work.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """FP32 to FP32."""
        sizes = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30)
        scaled = x / sizes * self.steps
        whole = scaled.round()
        # What is left is at most a half, and fills the bits when it is taken twice.
        left = (scaled - whole) * 2
        rows = torch.stack([whole / self.steps, left], dim=-2)
        product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            rows, 1 / self.steps, self.steps + 1, self.packed
        )
        product = (product.select(-2, 0) + product.select(-2, 1) / (2 * self.steps)) * sizes
        return product if self.bias is None else product + self.bias


class PlainLinear(Replacing):
    """A plain linear layer in the place of transformers' ``Conv1D``.

    Parameters
    ----------
    weight
        (outputs, inputs).
    bias
        (outputs,), or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight.contiguous(), False)
        self.bias = None if bias is None else torch.nn.Parameter(bias, False)
        self.stored = str(weight.dtype).removeprefix("torch.")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """In the dtype of the weight."""
        return torch.nn.functional.linear(x, self.weight, self.bias)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weight and the bias."""
        return _named(weight=self.weight, bias=self.bias)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> PlainLinear:
        """Made of what :meth:`tensors` gave."""
        return cls(tensors["weight"], tensors.get("bias"))


class Fp16Embedding(Replacing):
    """Rows in FP16, looked up in FP32.

    Parameters
    ----------
    weight
        (tokens, size), in any floating dtype.
    """

    stored = "fp16"

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", weight.detach().half())

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids to FP32."""
        return torch.nn.functional.embedding(ids, self.rows).float()

    def tensors(self) -> dict[str, torch.Tensor]:
        """The rows."""
        return {"weight": self.rows}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Fp16Embedding:
        """Made of what :meth:`tensors` gave."""
        return cls(tensors["weight"])


class Int8Embedding(Replacing):
    """Rows in whole numbers of 8 bits with a scale for each, looked up in FP32.

    Parameters
    ----------
    whole, scales
        (tokens, size) and (tokens,).
    """

    stored = "int8"

    def __init__(self, whole: torch.Tensor, scales: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", whole)
        self.register_buffer("scales", scales)

    @classmethod
    def of(cls, weight: torch.Tensor) -> Int8Embedding:
        """Round the rows of (tokens, size)."""
        return cls(*in_8_bits(weight))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids to FP32."""
        scales = torch.nn.functional.embedding(ids, self.scales[:, None])
        return torch.nn.functional.embedding(ids, self.rows).float() * scales

    def tensors(self) -> dict[str, torch.Tensor]:
        """The whole numbers and the scales."""
        return {"weight": self.rows, "scales": self.scales}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Int8Embedding:
        """Made of what :meth:`tensors` gave."""
        return cls(tensors["weight"], tensors["scales"])


KINDS: dict[str, type[Replacing]] = {
    kind.__name__: kind for kind in (Fp16Linear, Int8Linear, Int8TwiceLinear, PlainLinear, Fp16Embedding, Int8Embedding)
}


def in_8_bits(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers of 8 bits (outputs, inputs) and a scale for each output, the largest of whose weights is 127."""
    weight = weight.detach().float()
    scales = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (weight / scales[:, None]).round_().clamp_(-127, 127).to(torch.int8), scales


def made_of(layer: torch.nn.Module, kind: type[Replacing]) -> Replacing:
    """What a kind stores of a linear layer or an embedding."""
    make = getattr(kind, "of", kind)
    if isinstance(layer, torch.nn.Embedding):
        return make(layer.weight.detach())
    return make(plain_weight(layer).detach(), None if layer.bias is None else layer.bias.detach())


def replace(
    model: torch.nn.Module,
    kind: type[Replacing],
    others: Mapping[str, type[Replacing]] | None = None,
) -> dict[str, str]:
    """Put another module in the place of every linear layer that can be replaced.

    Parameters
    ----------
    model
        A copy that nobody else uses.
    kind
        The class of the other module. Layers that share weight and bias share what is made.
    others
        By path, the class of those that are to be another one.

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
            made[key] = made_of(layer, (others or {}).get(path, kind))
        put(model, path, made[key])
    return left


def replace_embedding(model: torch.nn.Module, make: Callable[[torch.Tensor], Replacing]) -> None:
    """Put another module in the place of the token embedding, where that only looks rows up.

    An encoder and a decoder look up the same rows, each in a module of its own or both in one.
    """
    weight = model.get_input_embeddings().weight
    same = {
        path: part
        for path, part in model.named_modules(remove_duplicate=False)
        if path and isinstance(part, torch.nn.Embedding) and part.weight is weight
    }
    if all(type(part).forward is torch.nn.Embedding.forward and not has_own_code(part) for part in same.values()):
        made = make(weight)
        for path in same:
            put(model, path, made)


def saturated(layer: torch.nn.Module) -> int:
    """How many of a layer's weights FP16 has no number for."""
    return int((layer.weight.detach().abs() > _LARGEST_FP16).sum())


def put(model: torch.nn.Module, path: str, module: torch.nn.Module) -> None:
    """Put a module where another one of that path is."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _in_fp32(bias: torch.Tensor | None) -> torch.Tensor | None:
    return None if bias is None else bias.detach().float()


def _named(**tensors: torch.Tensor | None) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in tensors.items() if tensor is not None}


def _is_conv1d(part: torch.nn.Module) -> bool:
    return type(part).forward is _conv1d_forward()


def _conv1d_forward() -> Callable[..., torch.Tensor]:
    from transformers.pytorch_utils import Conv1D

    return Conv1D.forward


def replaced_layers(model: torch.nn.Module) -> Iterator[Replacing]:
    """The modules that stand in place of linear layers, each once."""
    for part in model.modules():
        if isinstance(part, Replacing):
            yield part
