"""Which inputs a model takes, and whether the given ones can be used."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from cpuinfer_helpers.errors import InputError

_CONSTANT_TYPES = (bool, int, float, str)


@dataclass(frozen=True)
class BoundInputs:
    """Example inputs, sorted into what varies from call to call and what a trace fixes.

    Attributes
    ----------
    tensors
        Tensors by name, in the order in which they were given.
    constants
        Plain values by name (``output_hidden_states=True`` ...), which a trace bakes in.
    """

    tensors: dict[str, torch.Tensor]
    constants: dict[str, Any]

    def only_tensors(self, given: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The tensors of a call, without entries that are None and constants of the same value.

        Raises
        ------
        InputError
            If a tensor is missing, is unknown, or a constant has another value.
        """
        tensors = {name: value for name, value in given.items() if value is not None and name not in self.constants}
        for name, value in self.constants.items():
            if name in given and given[name] != value:
                raise InputError(
                    f"{name} was traced as {value!r} and is a constant now, not {given[name]!r}; trace again with it"
                )
        for name in self.tensors:
            check_tensor(name, tensors.get(name))
        missing = [name for name in self.tensors if name not in tensors]
        if missing:
            raise InputError(f"{missing[0]!r} is missing: this trace takes {', '.join(self.tensors)}")
        unknown = [name for name in tensors if name not in self.tensors]
        if unknown:
            raise InputError(
                f"{unknown[0]!r} was not among the inputs when this was traced ({', '.join(self.tensors)}); "
                "leave it out, or trace again with it"
            )
        return tensors


def all_tensors(inputs: Mapping[str, Any]) -> bool:
    """Whether there is nothing that has to be looked at closer."""
    return all(isinstance(value, torch.Tensor) and value.numel() for value in inputs.values())


def check_tensor(name: str, value: object) -> None:
    """Refuse what is meant as a tensor and is none: arrays and lists, such as a tokenizer returns unless told.

    Raises
    ------
    InputError
        If it is such a one, or holds nothing.
    """
    if isinstance(value, torch.Tensor):
        if value.numel() == 0:
            if not value.shape[0]:
                raise InputError(f"{name} has no rows, shape {list(value.shape)}, and holds nothing; give at least one")
            raise InputError(f"{name} is of shape {list(value.shape)} and holds nothing; leave such batches out")
    elif isinstance(value, (list, tuple)) or hasattr(value, "__array__"):
        raise InputError(
            f"{name} is a {type(value).__name__}, not a tensor; use return_tensors='pt' with a tokenizer, or "
            "torch.from_numpy"
        )


def check_model(model: object) -> torch.nn.Module:
    """Return the model if it is an eager module in evaluation mode.

    Raises
    ------
    InputError
        For a ScriptModule, for something that is no module, and for a model of which any part is in training mode.
    """
    if isinstance(model, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        raise InputError(
            f"model is a {type(model).__name__}, which is traced or scripted already; give the eager model"
        )
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"model is a {type(model).__name__}, not a torch.nn.Module; give the eager model")
    in_training = [name or "the model itself" for name, part in model.named_modules() if part.training]
    if in_training:
        others = f" and {len(in_training) - 1} more" if len(in_training) > 1 else ""
        raise InputError(f"model is in training mode ({in_training[0]}{others}); call model.eval() first")
    return model


def bind_inputs(model: torch.nn.Module, example_inputs: object) -> BoundInputs:
    """Sort the example inputs and check them against the model's signature.

    Parameters
    ----------
    model
        An eager module.
    example_inputs
        A mapping from the model's argument names to tensors, such as a tokenizer's output. Entries that are None are
        dropped.

    Returns
    -------
    BoundInputs

    Raises
    ------
    InputError
        If there are none, a key is not an argument of the model, a value cannot be used, or a tensor has no rows.
    """
    if not isinstance(example_inputs, Mapping):
        raise InputError(
            f"example_inputs is a {type(example_inputs).__name__}; give a mapping from argument names to tensors, "
            "such as tokenizer(..., return_tensors='pt')"
        )
    given = {name: value for name, value in example_inputs.items() if value is not None}
    tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
    constants = {name: value for name, value in given.items() if name not in tensors}
    for name, value in given.items():
        check_tensor(f"example_inputs[{name!r}]", value)
    if not tensors:
        raise InputError("example_inputs holds no tensor; give at least one, such as input_ids")
    for name, value in constants.items():
        if not isinstance(value, _CONSTANT_TYPES):
            raise InputError(
                f"example_inputs[{name!r}] is a {type(value).__name__}; a trace takes tensors, and plain numbers, "
                "texts and truth values as constants. Use return_tensors='pt' with a tokenizer"
            )
    _check_names(model, given)
    _check_batches(tensors)
    return BoundInputs({name: tensor.detach().clone() for name, tensor in tensors.items()}, constants)


def argument_names(model: torch.nn.Module) -> tuple[str, ...]:
    """Names of the arguments of the model's forward, in their order; further keyword arguments not included."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(model.forward).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind in kinds)


def _check_names(model: torch.nn.Module, given: Mapping[str, object]) -> None:
    known = argument_names(model)
    further = _further_names(model)
    if further is None:
        return
    for name in given:
        if name not in known and name not in further:
            raise InputError(
                f"example_inputs has {name!r}, which {type(model).__name__} does not take; it takes {', '.join(known)}"
            )


def _further_names(model: torch.nn.Module) -> frozenset[str] | None:
    """Names that **kwargs accepts: those of its TypedDict (transformers 5 has one), or None where any name goes."""
    for parameter in inspect.signature(model.forward).parameters.values():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            continue
        typed_dict = _unpacked_typed_dict(parameter.annotation)
        return None if typed_dict is None else frozenset(typed_dict.__annotations__)
    return frozenset()


def _unpacked_typed_dict(annotation: object) -> Any:
    arguments = typing.get_args(annotation)
    if len(arguments) == 1 and hasattr(arguments[0], "__total__"):
        return arguments[0]
    return None


def _check_batches(tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.dim() == 0:
            raise InputError(f"example_inputs[{name!r}] is a single number; every tensor needs a batch dimension first")
        if tensor.shape[0] == 0:
            raise InputError(f"example_inputs[{name!r}] has no rows; give at least one")
