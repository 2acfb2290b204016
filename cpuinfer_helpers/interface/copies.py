"""Copies of a model that share its weights, so that nothing that is done with them changes the user's model."""

from __future__ import annotations

import copy
import logging
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cpuinfer_helpers.errors import InputError, first_line
from cpuinfer_helpers.machine import switches

logger = logging.getLogger("cpuinfer_helpers")


def shared_copy(model: torch.nn.Module) -> torch.nn.Module:
    """A copy whose modules and buffers are its own and whose parameters are the model's.

    Replace its parameters or modules as you like; never write into a parameter of it. Parameters that were made under
    ``inference_mode`` keep no version and cannot be traced, so they are copied.
    """
    with torch.inference_mode(False), torch.no_grad():
        memo: dict[int, Any] = _empty_dictionaries(model)
        for parameter in model.parameters():
            memo[id(parameter)] = _ordinary(parameter) if parameter.is_inference() else parameter
        for buffer in model.buffers():
            memo[id(buffer)] = buffer.detach().clone()
        return copy.deepcopy(model, memo=memo)


def untouched(model: torch.nn.Module) -> torch.nn.Module:
    """A copy to call in the model's place, for models that a call changes; the model itself where it has no copy.

    Swin shrinks its windows for good when it sees a small image, BigBird turns to full attention for good when it sees
    a short text: what such a model answers depends on what it was asked before. Modules that IPEX has packed hold
    objects of its own, which have no copy; they are not changed by calls either.
    """
    if any(isinstance(value, torch.ScriptObject) for part in model.modules() for value in vars(part).values()):
        return model
    try:
        return shared_copy(model)
    except Exception as error:  # a module may hold anything, among it what cannot be copied
        logger.debug("%s cannot be copied: %s", type(model).__name__, error)
        return model


class EagerModel:
    """A model that answers eagerly and is never changed by it.

    Parameters
    ----------
    model
        The model, which is not called itself where it can be copied.
    fresh
        Whether each call needs a copy of its own, because calls change the model.
    """

    def __init__(self, model: torch.nn.Module, *, fresh: bool) -> None:
        self._model = model if fresh else untouched(model)
        self.fresh = fresh

    def __call__(self, **inputs: Any) -> Any:
        """The model's own output."""
        model = untouched(self._model) if self.fresh else self._model
        return model(**inputs)


def changes_of_call(before: torch.nn.Module, called: torch.nn.Module) -> tuple[str, ...]:
    """What calls have changed in a copy: plain attributes, buffers that were written to, modules that were replaced.

    Parameters
    ----------
    before
        The model, never called.
    called
        A copy of it by :func:`untouched` that was called.

    Returns
    -------
    tuple of str
        Paths of attributes and modules; empty if nothing has changed, or there was no copy.
    """
    if before is called:
        return ()
    parts = dict(called.named_modules())
    changed = []
    for path, part in before.named_modules():
        other = parts.get(path)
        if other is None or type(other) is not type(part):
            changed.append(path)
            continue
        names = [name for name, value in vars(part).items() if is_plain(value) and vars(other).get(name) != value]
        names += [name for name, value in vars(other).items() if name not in vars(part) and is_plain(value)]
        names += [name for name, buffer in other._buffers.items() if _was_written(buffer)]
        changed += [f"{path}.{name}".removeprefix(".") for name in names]
    return tuple(changed)


def _empty_dictionaries(model: torch.nn.Module) -> dict[int, Any]:
    """New ones for those that every module keeps its hooks in, by identity; deepcopy takes far longer for each."""
    values = (value for part in model.modules() for value in vars(part).values())
    return {id(value): OrderedDict() for value in values if type(value) is OrderedDict and not value}


def _ordinary(parameter: torch.Tensor) -> torch.Tensor:
    return torch.nn.Parameter(parameter.detach().clone(), requires_grad=False)


def is_plain(value: object) -> bool:
    """Whether a value is a number, a text, a truth value or None, or a list or tuple of these."""
    if isinstance(value, (list, tuple)):
        return all(is_plain(entry) for entry in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _was_written(buffer: torch.Tensor | None) -> bool:
    return buffer is not None and not buffer.is_inference() and buffer._version > 0


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
        _change_attention(copied, _as_constructed(model, current), _as_constructed(model, implementation))
    except Exception as error:  # a constructor may refuse in any way; the receipt tells what it kept
        logger.info("%s keeps its %s attention: %s", type(model).__name__, current, error)
        return shared_copy(model)
    return copied.eval()


def _as_constructed(model: torch.nn.Module, implementation: str) -> torch.nn.Module:
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


def evaluation_copy(model: torch.nn.Module) -> torch.nn.Module:
    """A copy that shares the model's weights, in evaluation mode, without what accelerate has put around its forward.

    Raises
    ------
    InputError
        If it cannot be copied.
    """
    try:
        copied = shared_copy(model)
    except Exception as error:  # a module of the user's may hold anything
        raise InputError(f"{type(model).__name__} cannot be copied: {first_line(error)}") from error
    # Under mixed precision accelerate replaces forward by one that calls the original's under autocast.
    if "_original_forward" in vars(copied):
        vars(copied).pop("forward", None)
        original = vars(copied).pop("_original_forward")
        if getattr(original, "__func__", None) is not type(copied).forward:
            copied.forward = original
    return copied.eval()


def in_evaluation_mode(model: torch.nn.Module) -> Callable[..., Any]:
    """The model itself, for one that cannot be copied: in evaluation mode for each call, then as it was."""

    def answer(**inputs: Any) -> Any:
        with _evaluating(model):
            return model(**inputs)

    return answer


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    before = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training
