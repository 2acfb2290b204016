"""Which inputs a model takes, and whether the given ones can be used."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from cpuinfer_helpers.errors import InputError, first_line

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

    def fit(self, given: Mapping[str, Any]) -> bool:
        """Whether a call has exactly the example's tensors, in its dtypes: then nothing has to be looked at closer."""
        return given.keys() == self.tensors.keys() and all(
            isinstance(value, torch.Tensor) and value.dtype is self.tensors[name].dtype and value.numel()
            for name, value in given.items()
        )

    def blame(self, given: Mapping[str, torch.Tensor], error: Exception) -> None:
        """Raise of a call that failed what is to blame for it, if an input is missing or of another kind.

        Raises
        ------
        InputError
            That names the input. Such are not refused at once: the eager model takes most of them.
        """
        missing = [name for name in self.tensors if name not in given]
        if missing and isinstance(error, TypeError):
            raise InputError(f"{missing[0]!r} is missing, without which it fails: {first_line(error)}") from error
        for name, tensor in given.items():
            if tensor.dim() != self.tensors[name].dim():
                raise InputError(
                    f"{name} has {tensor.dim()} dimensions, and had {self.tensors[name].dim()} in the example, with "
                    f"which it fails: {first_line(error)}"
                ) from error
            if tensor.dtype != self.tensors[name].dtype:
                raise InputError(f"{self._dtypes(name, tensor)}, with which it fails: {first_line(error)}") from error

    def _dtypes(self, name: str, tensor: torch.Tensor) -> str:
        dtypes = [str(one.dtype).removeprefix("torch.") for one in (tensor, self.tensors[name])]
        return f"{name} is of {dtypes[0]}, and was of {dtypes[1]} in the example"

    def only_tensors(self, given: Mapping[str, Any], *, some: bool = False) -> dict[str, torch.Tensor]:
        """The tensors of a call, without entries that are None and constants of the same value.

        Parameters
        ----------
        given
            What the call was given.
        some
            The eager model answers, which tells itself what it cannot do without.

        Raises
        ------
        InputError
            If a tensor is missing, is unknown or of another kind of numbers, or a constant has another value.
        """
        tensors = {name: value for name, value in given.items() if value is not None and name not in self.constants}
        for name, value in self.constants.items():
            if name in given and given[name] != value:
                raise InputError(
                    f"{name} was traced as {value!r} and is a constant now, not {given[name]!r}; trace again with it"
                )
        for name in self.tensors:
            if name in tensors or not some:
                check_tensor(name, tensors.get(name))
        missing = [name for name in self.tensors if name not in tensors]
        if missing and not some:
            raise InputError(f"{missing[0]!r} is missing: this trace takes {', '.join(self.tensors)}")
        unknown = [name for name in tensors if name not in self.tensors]
        if unknown:
            raise InputError(
                f"{unknown[0]!r} was not among the inputs when this was traced ({', '.join(self.tensors)}); "
                "leave it out, or trace again with it"
            )
        for name, tensor in tensors.items():
            if not isinstance(tensor, torch.Tensor):
                raise InputError(f"{name} is a {type(tensor).__name__}, and was a tensor in the example")
            # Some backends would cut off what stands behind the point, without a word.
            if _kind(tensor) != _kind(self.tensors[name]):
                raise InputError(f"{self._dtypes(name, tensor)}: these mean different things; give what it was")
        return tensors


def _kind(tensor: torch.Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


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


def given_rows(argument: str, rows: object) -> tuple[Mapping[str, Any], ...]:
    """Several groups of inputs, as calibration takes them.

    Parameters
    ----------
    argument
        What the caller calls them, for the message.
    rows
        An iterable of mappings from input names to tensors.

    Raises
    ------
    InputError
        If it is something else, or holds something else.
    """
    if isinstance(rows, (Mapping, str, bytes, torch.Tensor)) or not isinstance(rows, Iterable):
        raise InputError(
            f"{argument} is a {type(rows).__name__}; give a list of mappings from argument names to tensors"
        )
    given = tuple(rows)
    for number, row in enumerate(given):
        if not isinstance(row, Mapping):
            raise InputError(
                f"{argument}[{number}] is a {type(row).__name__}; give a mapping from argument names to tensors"
            )
    return given


def calibration_rows(calibration: object, inputs: BoundInputs) -> tuple[dict[str, torch.Tensor], ...]:
    """Calibration inputs: of each the tensors that the example has.

    Raises
    ------
    InputError
        If they are no mappings, or a row would be refused by a call; the message tells which.
    """
    tensors = []
    for number, row in enumerate(given_rows("calibration", calibration)):
        try:
            tensors.append(inputs.only_tensors(row))
        except InputError as error:
            raise InputError(f"calibration[{number}]: {error}") from error
    return tuple(tensors)


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
