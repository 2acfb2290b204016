"""Convert a model's encoder layers to PyTorch's fast path, and back."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch

from cpuinfer_helpers.bettertransformer.hooks import INNER_OUTPUTS, guard, remove_capturing_hooks, unguard
from cpuinfer_helpers.bettertransformer.layer import FastEncoderLayer
from cpuinfer_helpers.bettertransformer.layouts import layout_of
from cpuinfer_helpers.errors import InputError, RecipeError
from cpuinfer_helpers.interface.copies import shared_copy
from cpuinfer_helpers.interface.inputs import check_model
from cpuinfer_helpers.machine import switches

_RELATIVE = re.compile(r"relative_attention_bias|relative_position|rel_pos|rel_embeddings|distance_embedding")
_TRAINABLE = "_trainable_before_bettertransformer"


def to_bettertransformer(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of a model whose encoder layers run PyTorch's fast path, as ``BetterTransformer.transform`` once made.

    Every encoder layer becomes a ``torch.nn.TransformerEncoderLayer`` with the same weights; it is compared with the
    original layer before it is used. Everything else is the model's own: forward, configuration and output class. A
    batch that is padded on the right runs on nested tensors, which hold its valid tokens only; what comes out for
    padded positions is zero before the model's head, and means nothing, as before.

    Parameters
    ----------
    model
        A text, image or audio encoder in evaluation mode: BERT and its kin, DistilBERT, ViT, Wav2Vec2, HuBERT ...
        It is left as it was; the copy shares its weights, all but those of queries, keys and values, so do not write
        into them.

    Returns
    -------
    torch.nn.Module
        Of the model's own class, for inference only: it has no gradients. :func:`reverse_bettertransformer` undoes it.

    Raises
    ------
    RecipeError
        If the model has no encoder layers that the fast path can compute; it says why. The converted model raises it
        too, when it is called with what the fast path cannot do: in training mode, under autocast, for attention maps,
        hidden states, head masks, or masks that are no padding masks.

    Examples
    --------
    >>> from transformers import BertConfig, BertModel
    >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=64)
    >>> model = BertModel(config).eval()
    >>> converted = to_bettertransformer(model)
    >>> type(converted).__name__, type(converted.encoder.layer[0].fast).__name__
    ('BertModel', 'TransformerEncoderLayer')
    """
    check_model(model)
    _refuse_kind(model)
    if any(isinstance(part, FastEncoderLayer) for part in model.modules()):
        raise InputError(f"this {type(model).__name__} is converted already")
    converted = shared_copy(model)
    for part in converted.modules():
        remove_capturing_hooks(part)
    encoders = _encoders(converted)
    if not encoders:
        raise RecipeError(_why_none(model))
    for path in encoders:
        layers = converted.get_submodule(path)
        for i, layer in enumerate(layers):
            layers[i] = FastEncoderLayer(layer, last=i == len(layers) - 1)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    setattr(converted, _TRAINABLE, frozenset(trainable))
    _freeze(converted)
    around = _around(converted, encoders)
    guard(converted, around[1:])
    for part in around:
        if hasattr(part, "save_pretrained"):
            part.save_pretrained = refuse_to_save
    _warn_of_nested_tensors_now()
    return converted


def reverse_bettertransformer(converted: torch.nn.Module) -> torch.nn.Module:
    """The model with its original layers again, as ``BetterTransformer.reverse`` once made.

    Parameters
    ----------
    converted
        What :func:`to_bettertransformer` returned. It is left as it was.

    Returns
    -------
    torch.nn.Module
        Of the same class, with copies of the weights: bit for bit those of the model that was converted, under the same
        names.

    Raises
    ------
    InputError
        If it was not converted.

    Examples
    --------
    >>> from transformers import BertConfig, BertModel
    >>> config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=64)
    >>> model = BertModel(config).eval()
    >>> again = reverse_bettertransformer(to_bettertransformer(model))
    >>> all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in again.state_dict().items())
    True
    """
    if not hasattr(converted, _TRAINABLE):
        raise InputError(f"this {type(converted).__name__} was not made by to_bettertransformer()")
    model = copy.deepcopy(converted)
    trainable = model.__dict__.pop(_TRAINABLE)
    for part in list(model.modules()):
        if isinstance(part, torch.nn.ModuleList):
            for i, layer in enumerate(part):
                if isinstance(layer, FastEncoderLayer):
                    part[i] = layer.original_layer()
        unguard(part)
        remove_capturing_hooks(part)
        if part.__dict__.get("save_pretrained") is refuse_to_save:
            del part.__dict__["save_pretrained"]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    return model


def refuse_to_save(*_: Any, **__: Any) -> None:
    """Stands in for ``save_pretrained``: nobody could load what it would write."""
    raise RecipeError("a converted model has weights under other names; save reverse_bettertransformer(model) instead")


def _refuse_kind(model: torch.nn.Module) -> None:
    config, kind = getattr(model, "config", None), type(model).__name__
    parts = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    # An audio classifier may use a model's encoder alone.
    if getattr(config, "is_encoder_decoder", False) and "decoder" in parts:
        raise RecipeError(f"{kind} has a decoder; the fast path is for encoders")
    if getattr(config, "is_decoder", False) or getattr(config, "add_cross_attention", False):
        raise RecipeError(f"{kind} is configured as a decoder; the fast path is for encoders")
    for name in INNER_OUTPUTS:
        if getattr(config, name, False):
            raise RecipeError(f"{kind} is configured for {name}, which the fast path does not have")
    if getattr(config, "use_weighted_layer_sum", False):
        raise RecipeError(f"{kind} sums the hidden states of all layers, which the fast path does not keep")
    relative = next((name for name, _ in model.named_parameters() if _RELATIVE.search(name)), None)
    if relative:
        raise RecipeError(f"{kind} has relative position embeddings ({relative}); the fast path has none")


def _encoders(model: torch.nn.Module) -> list[str]:
    """Paths of the lists of encoder layers."""
    return [
        path
        for path, part in model.named_modules()
        if isinstance(part, torch.nn.ModuleList) and len(part) and all(layout_of(layer) for layer in part)
    ]


def _why_none(model: torch.nn.Module) -> str:
    lists = [part for part in model.modules() if isinstance(part, torch.nn.ModuleList) and len(part)]
    longest = max(lists, key=lambda part: sum(p.numel() for p in part.parameters()), default=None)
    found = f"its layers are {type(longest[0]).__name__}" if longest is not None else "it has no list of layers"
    return f"{type(model).__name__} has no encoder layers with attention and weights of a known kind: {found}"


def _freeze(model: torch.nn.Module) -> None:
    """Give the model parameters of its own, on the same memory, that ask for no gradients."""
    frozen: dict[int, torch.nn.Parameter] = {}
    for part in model.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                new = torch.nn.Parameter(parameter.detach(), requires_grad=False)
                part._parameters[name] = frozen.setdefault(id(parameter), new)


def _around(model: torch.nn.Module, encoders: list[str]) -> list[torch.nn.Module]:
    """The modules that lists of layers are in: the model first, then its parts, each once."""
    paths = {"": None}
    for path in encoders:
        names = path.split(".")
        paths.update({".".join(names[:count]): None for count in range(1, len(names))})
    return [model.get_submodule(path) for path in paths]


def _warn_of_nested_tensors_now() -> None:
    """PyTorch warns once in a process that nested tensors are a prototype; nobody is to meet that in a later call."""
    with switches.warnings_ignored():
        torch._nested_tensor_from_mask(torch.zeros(1, 2, 1), torch.tensor([[True, False]]))
