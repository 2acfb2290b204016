"""An encoder layer of a model, computed by the fast path of torch.nn.TransformerEncoderLayer."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch

from cpuinfer_helpers.bettertransformer.layouts import NORMS, Layout, Parts, layout_of, parts_of
from cpuinfer_helpers.bettertransformer.padding import valid_positions
from cpuinfer_helpers.errors import RecipeError, first_line

_MASKS = ("attention_mask", "attn_mask")
# Arguments that say nothing about what a single pass through an encoder computes.
_WITHOUT_EFFECT = frozenset({"use_cache", "cache_position", "position_ids", "return_dict"})
# Rows and lengths that the layers are compared on: a short one and one that no window or landmark divides.
_PROBES = ((2, 5), (1, 67))
# The same products in another order differ by about 1e-6 of the largest answer, BF16 keeps 8 bits.
_PROBE_TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-10, torch.bfloat16: 5e-2, torch.float16: 1e-2}


class FastEncoderLayer(torch.nn.Module):
    """Takes the place of a model's encoder layer: called as that is, computed by PyTorch's fused kernel.

    The first layer that sees padding on the right turns the batch into a nested tensor, which holds the valid positions
    only; the last turns it back, with zeros where the padding was. A call keeps nothing, so threads may share it.

    Parameters
    ----------
    layer
        The encoder layer, in evaluation mode.
    last
        Whether it is the last of its encoder.

    Attributes
    ----------
    fast : torch.nn.TransformerEncoderLayer
        Holds the weights: queries, keys and values packed into one, all others shared with the layer.
    """

    def __init__(self, layer: torch.nn.Module, *, last: bool) -> None:
        super().__init__()
        layout = layout_of(layer)
        if layout is None:
            raise RecipeError(f"{type(layer).__name__} is no encoder layer whose weights have a known place")
        parts = parts_of(layer, layout)
        self.last = last
        self.argument_names = tuple(inspect.signature(layer.forward).parameters)
        self.original = _Skeleton(layer, layout)
        self.fast, self.returns_tuple = _same_as(layer, parts)
        self.eval()

    def forward(self, *given: Any, **named: Any) -> Any:
        """Compute the layer; takes what the original takes and returns what it returns.

        Raises
        ------
        RecipeError
            If it is asked for something that the fast path cannot do, such as attention maps.
        """
        arguments = {**dict(zip(self.argument_names, given, strict=False)), **named}
        hidden = arguments.pop(self.argument_names[0])
        mask = next((arguments.pop(name) for name in _MASKS if name in arguments), None)
        self._refuse(hidden, arguments)
        with torch.no_grad():
            answer = self._compute(hidden, mask)
        return (answer,) if self.returns_tuple else answer

    def original_layer(self) -> torch.nn.Module:
        """The original layer with copies of the weights that are here now; this one is of no more use afterwards."""
        return self.original.filled(self.fast)

    def _compute(self, hidden: torch.Tensor, mask: Any) -> torch.Tensor:
        keep = valid_positions(mask, hidden.size(0), mask.shape[-1] if hidden.is_nested else hidden.shape[1])
        padding = None
        if hidden.is_nested:
            _refuse_other_lengths(hidden, keep)
        elif keep is not None and torch._nested_tensor_from_mask_left_aligned(hidden, keep):
            hidden = torch._nested_tensor_from_mask(hidden, keep, mask_check=False)
        elif keep is not None:
            padding = ~keep
        answer = self.fast(hidden, src_key_padding_mask=padding)
        if answer.is_nested and self.last:
            return answer.to_padded_tensor(0.0, (answer.size(0), mask.shape[-1], answer.size(2)))
        return answer

    def _refuse(self, hidden: torch.Tensor, arguments: Mapping[str, Any]) -> None:
        if self.training:
            raise RecipeError("a converted model cannot be trained; reverse_bettertransformer() gives one that can")
        if torch.is_autocast_enabled("cpu"):
            raise RecipeError("PyTorch has no fast path under autocast; use the recipe bettertransformer-bf16 instead")
        if not torch.backends.mha.get_fastpath_enabled():
            raise RecipeError("the fast path is switched off: call torch.backends.mha.set_fastpath_enabled(True)")
        if torch.is_grad_enabled() and hidden.requires_grad:
            raise RecipeError("the fast path computes no gradients, and the hidden states ask for them")
        for name, value in arguments.items():
            if value is not None and value is not False and name not in _WITHOUT_EFFECT:
                raise RecipeError(f"the fast path cannot take {name}, which the layers were given")


def _refuse_other_lengths(hidden: torch.Tensor, keep: torch.Tensor | None) -> None:
    """A model may give its layers different masks, such as local ones to some of them."""
    lengths = hidden._nested_tensor_size()[:, 0]
    if keep is None or not torch.equal(keep.sum(dim=1), lengths):
        raise RecipeError(
            "the layers were given different attention masks; the fast path takes one padding mask for all"
        )


def _same_as(layer: torch.nn.Module, parts: Parts) -> tuple[torch.nn.TransformerEncoderLayer, bool]:
    """The fast layer that gives the layer's own answers, and whether the layer returns a tuple.

    Whether norms come first or last does not stand in their names: both are tried.
    """
    generator = torch.Generator().manual_seed(0)
    weight = parts.linears["query"].weight
    probes = [torch.randn(*shape, parts.width, generator=generator).to(weight.dtype) for shape in _PROBES]
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        expected = [_answer_of(layer, probe) for probe in probes]
        for norm_first in (False, True):
            fast = _fast_layer(parts, norm_first=norm_first)
            if all(_close(fast(probe), wanted) for probe, (wanted, _) in zip(probes, expected, strict=True)):
                return fast, expected[0][1]
    raise RecipeError(
        f"{type(layer).__name__} computes something else than torch.nn.TransformerEncoderLayer does with its weights"
    )


def _answer_of(layer: torch.nn.Module, hidden: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """What the layer makes of hidden states without padding, and whether it returns a tuple."""
    parameters = list(inspect.signature(layer.forward).parameters.values())[1:]
    required = {p.name: None for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    ones = {name: torch.ones(hidden.shape[:2]) for name in _MASKS if name in {p.name for p in parameters}}
    # Some layers cannot do without a mask; without one, attention is computed as the configuration says.
    for mask in ({}, ones):
        try:
            answer = layer(hidden, **{**required, **mask})
        except Exception as error:  # the layer's own Python may raise anything; the next way or the message carries it
            failure = error
            continue
        return (answer[0], True) if isinstance(answer, tuple) else (answer, False)
    raise RecipeError(f"{type(layer).__name__} does not run by itself: {first_line(failure)}") from failure


def _close(seen: torch.Tensor, wanted: object) -> bool:
    if not isinstance(wanted, torch.Tensor) or wanted.shape != seen.shape:
        return False
    tolerance = _PROBE_TOLERANCE[seen.dtype] * wanted.abs().max().item()
    return torch.allclose(seen, wanted, atol=tolerance, rtol=0)


def _fast_layer(parts: Parts, *, norm_first: bool) -> torch.nn.TransformerEncoderLayer:
    """A torch.nn.TransformerEncoderLayer with the weights of the parts."""
    with torch.device("meta"):
        fast = torch.nn.TransformerEncoderLayer(
            parts.width,
            parts.heads,
            parts.inner_width,
            dropout=0.0,
            activation=parts.activation,
            layer_norm_eps=parts.eps,
            batch_first=True,
            norm_first=norm_first,
        )
    projections = [parts.linears[role] for role in ("query", "key", "value")]
    packed = torch.cat([linear.weight.detach() for linear in projections])
    fast.self_attn.in_proj_weight = _frozen(packed)
    fast.self_attn.in_proj_bias = _frozen(torch.cat([_bias(linear) for linear in projections]))
    for role, part in _shared_parts(fast).items():
        source = parts.norms[role] if role in NORMS else parts.linears[role]
        part.weight, part.bias = _frozen(source.weight), _frozen(_bias(source))
    return fast.eval()


def _shared_parts(fast: torch.nn.TransformerEncoderLayer) -> dict[str, torch.nn.Module]:
    """The parts whose weights are the layer's own, by what they do."""
    named = {role: getattr(fast, role) for role in ("norm1", "norm2", "linear1", "linear2")}
    return {"out": fast.self_attn.out_proj, **named}


def _bias(part: torch.nn.Module) -> torch.Tensor:
    return part.weight.new_zeros(part.weight.shape[0]) if part.bias is None else part.bias.detach()


def _frozen(tensor: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(tensor.detach(), requires_grad=False)


class _Skeleton:
    """An encoder layer without its weights, and where they go."""

    def __init__(self, layer: torch.nn.Module, layout: Layout) -> None:
        kept: dict[int, Any] = {
            id(weight): torch.nn.Parameter(weight.detach().to("meta"), weight.requires_grad)
            for weight in layer.parameters()
        }
        # The parts of a model share one configuration, and read it at every call.
        configs = [part.config for part in layer.modules() if hasattr(part, "config")]
        kept.update({id(config): config for config in configs})
        self.layer = copy.deepcopy(layer, memo=kept)
        self.layout = layout

    def filled(self, fast: torch.nn.TransformerEncoderLayer) -> torch.nn.Module:
        """The layer with copies of a fast layer's weights."""
        weights, biases = fast.self_attn.in_proj_weight.chunk(3), fast.self_attn.in_proj_bias.chunk(3)
        tensors = dict(zip(("query", "key", "value"), zip(weights, biases, strict=True), strict=True))
        tensors.update({role: (part.weight, part.bias) for role, part in _shared_parts(fast).items()})
        for role, path in self.layout.paths().items():
            part = self.layer.get_submodule(path)
            for name, tensor in zip(("weight", "bias"), tensors[role], strict=True):
                before = getattr(part, name)
                if before is not None:
                    setattr(part, name, torch.nn.Parameter(tensor.detach().clone(), before.requires_grad))
        return self.layer
