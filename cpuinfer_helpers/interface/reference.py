"""What everything that is prepared is compared with: the untouched model, and its own answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch

from cpuinfer_helpers.errors import InputError, TraceError, first_line
from cpuinfer_helpers.interface.adapter import named_inputs
from cpuinfer_helpers.interface.copies import EagerModel, changes_of_call, untouched
from cpuinfer_helpers.interface.inputs import BoundInputs, bind_inputs, check_model
from cpuinfer_helpers.interface.outputs import OutputSpec, take_apart
from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.verification.equality import difference, valid_part
from cpuinfer_helpers.verification.variations import valid_positions

logger = logging.getLogger("cpuinfer_helpers")

Tensors = Mapping[str, torch.Tensor]


class Reference:
    """The user's model, which is never called itself, with its inputs and its answers.

    Every call goes to a fresh copy, with inputs of its own: models that a call changes, and models that write into
    their buffers or inputs, answer each time as if it were the first.

    Parameters
    ----------
    model
        An eager model in evaluation mode.
    inputs
        The example.

    Attributes
    ----------
    model, inputs
        As given.
    expected : dict of str to Tensor
        The model's answers to the example; empty if its outputs are of a kind that cannot be compared.
    not_comparable : str or None
        Which kind that is.
    changed_by_calls : tuple of str
        Attributes of the model that calls have been seen to change.

    Raises
    ------
    InputError
        If the model cannot run its example.
    """

    def __init__(self, model: torch.nn.Module, inputs: BoundInputs) -> None:
        self.model = model
        self.inputs = inputs
        self.changed_by_calls: tuple[str, ...] = ()
        self._written: tuple[str, ...] = ()
        self.not_comparable: str | None = None
        self.expected = self._first_answers()

    @classmethod
    def of(cls, model: torch.nn.Module, example_inputs: object) -> Reference:
        """Check a model and its example, and ask the model for the first time.

        Raises
        ------
        InputError
            If either cannot be used, or the model cannot run the example.
        """
        check_model(model)
        with torch.inference_mode(False), torch.no_grad():
            return cls(model, bind_inputs(model, example_inputs))

    @property
    def config(self) -> Any:
        """The model's configuration, or None."""
        return getattr(self.model, "config", None)

    def answers(self, tensors: Tensors, *, seed: int = 0) -> dict[str, torch.Tensor]:
        """What a fresh copy answers under a seed, as named tensors; it may raise anything.

        Raises
        ------
        TraceError
            If an output is of a kind that cannot be compared.
        """
        model = untouched(self.model)
        own = {name: tensor.clone() for name, tensor in tensors.items()}
        found = run_seeded(lambda given: model(**given, **self.inputs.constants), own, seed=seed)
        self.changed_by_calls = self.changed_by_calls or changes_of_call(self.model, model)
        self._written = self._written or tuple(name for name, tensor in own.items() if tensor._version > 0)
        for name, tensor in found.items():
            _refuse_other_kinds(name, tensor)
        return found

    def ask(self, answer: Callable[[Tensors], Any], tensors: Tensors, *, seed: int = 0) -> dict[str, torch.Tensor]:
        """What something that was made of the model answers under a seed, as named tensors; it may raise anything."""
        return run_seeded(answer, tensors, seed)

    def output_spec(self) -> OutputSpec:
        """Structure of what a prepared model returns: without a key-value cache.

        Raises
        ------
        TraceError
            If there is no tensor at all.
        """
        adapter = named_inputs(untouched(self.model), self.inputs)
        with torch.no_grad():
            adapter.run_model({name: tensor.clone() for name, tensor in self.inputs.tensors.items()})
        return adapter.spec

    @cached_property
    def why_not_comparable(self) -> str | None:
        """Why nothing can be compared with this model's answers, in a sentence; None if they can be."""
        if self.not_comparable:
            return self.not_comparable
        if self._written:
            return (
                f"the model writes into its own inputs ({self._written[0]}), so a second call of it would be given "
                "others: have its forward work on a copy of them"
            )
        return self._without_numbers() or self._random()

    def eager(self) -> EagerModel:
        """The model as it answers eagerly, with its own output class.

        Whether calls change it is seen on the inputs that it has been asked for before, and on few and short rows.
        """
        self._ask_short_rows()
        return EagerModel(self.model, fresh=bool(self.changed_by_calls))

    def _ask_short_rows(self) -> None:
        tensors = self.inputs.tensors
        one_row = {name: tensor[:1] for name, tensor in tensors.items()}
        for rows in (one_row, {name: row[:, :3] if row.dim() == 2 else row for name, row in one_row.items()}):
            try:
                self.answers(rows)
            except Exception as error:  # a model may refuse such rows in any way
                logger.debug("%s does not take short rows: %s", type(self.model).__name__, error)

    def _first_answers(self) -> dict[str, torch.Tensor]:
        try:
            return self.answers(self.inputs.tensors)
        except TraceError as error:
            self.not_comparable = str(error)
            return {}
        except Exception as error:  # the user's model and inputs may fail in any way; the message carries it
            name = type(self.model).__name__
            why = f"{first_line(error)}{self._other_rows()}"
            raise InputError(f"{name} itself cannot run example_inputs: {why}") from error

    def _other_rows(self) -> str:
        """A note on inputs that have not as many rows as the first, which few models take."""
        (first, rows), *others = ((name, tensor.shape[0]) for name, tensor in self.inputs.tensors.items())
        other = next((f"{name} has {count}" for name, count in others if count != rows), None)
        return f" (batch sizes differ: {first} has {rows} rows, {other})" if other else ""

    def _without_numbers(self) -> str | None:
        valid = valid_positions(self.inputs.tensors, self.config)
        for name, tensor in self.expected.items():
            if not (tensor.is_floating_point() or tensor.is_complex()) or not tensor.numel():
                continue
            if bool(valid_part(tensor, valid).isnan().any()):
                return f"the model's own answers to the example are not numbers ({name} holds NaN)"
            if not bool(tensor.isfinite().any()):
                return f"the model's own answers to the example are infinite ({name} holds no finite number)"
        return None

    def _random(self) -> str | None:
        again = self.answers(self.inputs.tensors, seed=1)
        valid = valid_positions(self.inputs.tensors, self.config)
        for name, wanted in self.expected.items():
            if again[name].shape != wanted.shape or not difference(wanted, again[name], valid).passed:
                return (
                    f"the model itself gives other answers ({name}) to the same inputs under another random seed, "
                    "so nothing that is made of it can be verified: is a dropout always on?"
                )
        return None


def run_seeded(function: Callable[[Tensors], Any], inputs: Tensors, seed: int = 0) -> dict[str, torch.Tensor]:
    """One call under a fixed seed, without gradients; the process's random state is restored."""
    with torch.no_grad(), switches.random_state_kept():
        # torch.manual_seed asks for the accelerators too, and formats the stack for each of them.
        torch.default_generator.manual_seed(seed)
        return take_apart(function(inputs))[0]


def _refuse_other_kinds(name: str, tensor: torch.Tensor) -> None:
    kind = "nested" if tensor.is_nested else "quantised" if tensor.is_quantized else None
    kind = kind or (None if tensor.layout == torch.strided else str(tensor.layout).removeprefix("torch."))
    if kind:
        raise TraceError(f"the model's {name!r} is a {kind} tensor, which cannot be compared with another")
