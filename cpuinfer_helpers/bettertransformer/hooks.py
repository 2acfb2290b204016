"""Refuse calls that ask a converted model for what is inside of its layers, such as attention maps."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

import torch

from cpuinfer_helpers.errors import RecipeError
from cpuinfer_helpers.interface.inputs import argument_names

INNER_OUTPUTS = ("output_attentions", "output_hidden_states")
# Where the hooks of transformers 5 come from, and its wrapper of forward methods that always asks for hidden states.
_CAPTURING = "transformers.utils.output_capturing"
_ALWAYS_ASKING = "backbone_utils.py"

_inside: ContextVar[bool] = ContextVar("inside of a call of a converted model", default=False)


def guard(model: torch.nn.Module, parts: list[torch.nn.Module]) -> None:
    """Have a converted model, and the parts of it that its layers are in, refuse such calls.

    Transformers 5 has audio classifiers that always ask their encoder for hidden states, and drop them where nobody
    else has asked: there the request is dropped instead, inside of a call of the model.
    """
    model.register_forward_pre_hook(_refuse, with_kwargs=True)
    asks_itself = _always_asks(model)
    if asks_itself:
        model.register_forward_pre_hook(_enter)
        model.register_forward_hook(_leave, always_call=True)
    for part in parts:
        part.register_forward_pre_hook(_drop_inside if asks_itself else _refuse, with_kwargs=True)


def unguard(part: torch.nn.Module) -> None:
    """Remove the hooks of :func:`guard` from a module."""
    _remove(part._forward_pre_hooks, lambda hook: hook in (_refuse, _enter, _drop_inside))
    _remove(part._forward_hooks, lambda hook: hook is _leave)


def remove_capturing_hooks(part: torch.nn.Module) -> None:
    """Remove what transformers 5 leaves on a module once hidden states were asked for; it puts them back if needed."""
    _remove(part._forward_hooks, lambda hook: str(getattr(hook, "__module__", "")).startswith(_CAPTURING))
    part.__dict__.pop("_output_capturing_hooks_installed", None)


def _refuse(module: torch.nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
    arguments = {**dict(zip(argument_names(module), given, strict=False)), **named} if given else named
    for name in INNER_OUTPUTS:
        asked = arguments.get(name)
        if asked or (asked is None and getattr(getattr(module, "config", None), name, False)):
            raise RecipeError(f"{name} was asked for, and the fast path keeps nothing of what is inside of its layers")


def _enter(module: torch.nn.Module, given: tuple[Any, ...]) -> None:
    _inside.set(True)


def _leave(module: torch.nn.Module, given: tuple[Any, ...], answer: Any) -> None:
    _inside.set(False)


def _drop_inside(
    module: torch.nn.Module, given: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if _inside.get():
        named = {**named, "output_hidden_states": False} if "output_hidden_states" in named else named
    _refuse(module, given, named)
    return given, named


def _always_asks(model: torch.nn.Module) -> bool:
    function: Any = type(model).forward
    while function is not None:
        code = getattr(function, "__code__", None)
        if code is not None and code.co_filename.endswith(_ALWAYS_ASKING):
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def _remove(hooks: MutableMapping[int, Any], chosen: Callable[[Any], bool]) -> None:
    for key, hook in list(hooks.items()):
        if chosen(hook):
            del hooks[key]
