"""How the weights of a model are stored, and how many bytes of them a token reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container
from dataclasses import dataclass, replace

import torch

from cpuinfer_helpers.errors import RecipeError
from cpuinfer_helpers.generation.linears import Fp16Embedding, Int8Embedding, linear_layers, replaced_layers

# Those of a decoder beside an encoder come first.
_LIMITS = ("max_target_positions", "max_decoder_position_embeddings", "max_position_embeddings")
_EMBEDDINGS = (Fp16Embedding, Int8Embedding)


@dataclass(frozen=True)
class Weights:
    """Weights of a model, as they are stored.

    Attributes
    ----------
    read
        Bytes that one token reads: everything but embeddings that are only looked up, what is shared counted once for
        each use.
    stored
        Bytes in memory, what is shared counted once.
    by_dtype
        Number of linear layers with weights of each dtype.
    """

    read: int
    stored: int
    by_dtype: dict[str, int]

    @property
    def layers(self) -> int:
        """Number of linear layers."""
        return sum(self.by_dtype.values())

    @property
    def dtypes(self) -> str:
        """The dtypes of linear layers, with how many there are of each where there are several."""
        if len(self.by_dtype) == 1:
            return next(iter(self.by_dtype))
        return ", ".join(f"{dtype} ({count} of {self.layers} layers)" for dtype, count in self.by_dtype.items())


def weights_of(model: torch.nn.Module, used: Container[int] | None = None) -> Weights:
    """Look at every linear layer of a model, those that stand in the place of others included.

    Parameters
    ----------
    model
        The model.
    used
        The ids of the modules that a token goes through, see :func:`modules_called`; None for all of them.
    """
    everything = _weights_of(model, {id(part) for part in model.modules()})
    return everything if used is None else replace(everything, read=_weights_of(model, used).read)


def modules_called(model: torch.nn.Module, call: Callable[[], object]) -> frozenset[int]:
    """The ids of the modules that a call goes through."""
    seen: set[int] = set()
    hooks = [part.register_forward_hook(lambda part, *_: seen.add(id(part))) for part in model.modules()]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return frozenset(seen)


def _weights_of(model: torch.nn.Module, used: Container[int]) -> Weights:
    replaced = {id(layer): layer for layer in replaced_layers(model)}
    embeddings = [layer for layer in replaced.values() if isinstance(layer, _EMBEDDINGS)]
    plain = [layer for layer in linear_layers(model).values() if id(layer) not in replaced]
    kinds = Counter(layer.stored for layer in replaced.values() if not isinstance(layer, _EMBEDDINGS))
    kinds.update(str(layer.weight.dtype).removeprefix("torch.") for layer in plain)
    packed = sum(layer.packed_bytes for layer in replaced.values() if id(layer) in used)
    own = [part for part in model.modules() if id(part) in used]
    tensors = {id(t): t for part in own for t in (*part._parameters.values(), *part._buffers.values()) if t is not None}
    looked_up = {id(part.weight) for part in model.modules() if isinstance(part, torch.nn.Embedding)}
    looked_up |= {id(tensor) for layer in embeddings for tensor in layer.buffers()}
    multiplied = {id(layer.weight) for layer in plain if id(layer) in used}
    read = sum(_bytes(tensor) for key, tensor in tensors.items() if key not in looked_up or key in multiplied)
    return Weights(read + packed, sum(map(_bytes, tensors.values())) + packed, dict(kinds))


def limit_of(model: torch.nn.Module) -> int | None:
    """The most tokens that a row may have, as the configuration of what writes the text says."""
    config = model.config.get_text_config(decoder=True)
    found = (getattr(config, name, None) for name in _LIMITS)
    return next((limit for limit in found if isinstance(limit, int) and limit > 0), None)


def refuse_less_than_fp32(model: torch.nn.Module) -> None:
    """Raise where a model's own weights have fewer bits than FP32.

    Raises
    ------
    RecipeError
    """
    less = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32, torch.float64}
    if less:
        names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in less))
        raise RecipeError(f"the model's own weights are {names}; call model.float() first for FP32")


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
