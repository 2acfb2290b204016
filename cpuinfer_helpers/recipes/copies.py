"""Copies of a model that share its weights, so that a backend can change the copy and not the user's model."""

from __future__ import annotations

import copy
import logging
import types

import torch

from cpuinfer_helpers import switches
from cpuinfer_helpers.copies import is_plain, shared_copy

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

    The copy is one of the object itself, with its hooks, attributes, parametrisations and replaced methods. What the
    choice of attention changes in a model of this class and configuration is found by building two without weights, and
    is changed in the copy, if that has there what such a model usually has.

    Parameters
    ----------
    model
        Any module. One that has no attention to choose is copied as it is.
    implementation
        ``eager``: matrix products and a softmax, which graph fusions look for. ``sdpa``: one fused operator.

    Returns
    -------
    torch.nn.Module
        In evaluation mode. :func:`attention_of` tells what it has: a model that does not support the implementation, or
        in which other parts than usual would have to be changed, keeps its own, with a log message.
    """
    current, copied = attention_of(model), shared_copy(model)
    if current is None or current == implementation:
        return copied
    try:
        _change_attention(copied, _usual(model, current), _usual(model, implementation))
    except Exception as error:  # a constructor may refuse in any way; the receipt tells what it kept
        logger.info("%s keeps its %s attention: %s", type(model).__name__, current, error)
        return shared_copy(model)
    return copied.eval()


def _usual(model: torch.nn.Module, implementation: str) -> torch.nn.Module:
    """A model of this class and configuration as it is constructed, on the meta device."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = implementation
    # Transformers sets the default dtype of the process while it constructs.
    with switches.held(), torch.device("meta"):
        built = type(model)._from_config(config, attn_implementation=implementation).eval()
    if attention_of(built) != implementation:
        raise ValueError(f"it is built with {attention_of(built)} attention, not {implementation}")
    return built


def _change_attention(copied: torch.nn.Module, before: torch.nn.Module, after: torch.nn.Module) -> None:
    """Change in the copy what differs between two usual models; ValueError where it is not as they are."""
    wanted = dict(after.named_modules())
    own = dict(copied.named_modules())
    if wanted.keys() != dict(before.named_modules()).keys():
        raise ValueError("its parts have other names with it")
    for path, usual in before.named_modules():
        names, kind = _differing(usual, wanted[path]), type(wanted[path])
        if not names and kind is type(usual):
            continue
        part = own.get(path)
        if part is None or type(part) is not type(usual) or _differing(part, usual) or has_own_code(part):
            raise ValueError(f"{path or type(copied).__name__} is not what a model of this class has there")
        part.__class__ = kind
        for name in names:
            vars(part).pop(name, None)
        vars(part).update({name: value for name, value in vars(wanted[path]).items() if name in names})
    _change_configs(copied, after)


def _differing(part: torch.nn.Module, other: torch.nn.Module) -> set[str]:
    """Names of plain attributes, and of attributes that hold a library's functions, in which two modules differ."""
    everything = (*vars(part).items(), *vars(other).items())
    plain = {name for name, value in everything if is_plain(value) or _is_of_a_module(value)}
    missing = object()
    return {name for name in plain if vars(part).get(name, missing) != vars(other).get(name, missing)}


def _is_of_a_module(value: object) -> bool:
    return isinstance(value, types.FunctionType) and "<" not in value.__qualname__


def _change_configs(copied: torch.nn.Module, after: torch.nn.Module) -> None:
    """Have every configuration in the copy name the attention that its counterpart names."""
    own = dict(copied.named_modules())
    for path, part in after.named_modules():
        for name, config in vars(part).items():
            held = vars(own[path]).get(name) if path in own else None
            if hasattr(config, "_attn_implementation") and type(held) is type(config):
                held._attn_implementation = config._attn_implementation
    for name, config in vars(after.config).items():
        held = getattr(copied.config, name, None)
        if hasattr(config, "_attn_implementation") and type(held) is type(config):
            held._attn_implementation = config._attn_implementation


def has_own_code(part: torch.nn.Module) -> str | None:
    """What a module carries beside its class's code: hooks, a replaced method, parametrisations; None if nothing.

    Whoever puts another module in its place loses that.
    """
    own = vars(part)
    if any(own.get(name) for name in ("_forward_hooks", "_forward_pre_hooks")):
        return "hooks"
    replaced = [name for name, value in own.items() if callable(value) and callable(getattr(type(part), name, None))]
    if replaced:
        return f"a {replaced[0]} of its own"
    return "parametrisations" if "parametrizations" in part._modules else None
