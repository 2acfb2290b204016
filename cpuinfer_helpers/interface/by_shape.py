"""One trace, or whatever a recipe makes, for each shape of the inputs: made once, kept for a while, or refused."""

from __future__ import annotations

import logging
import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from cpuinfer_helpers.display import format_bytes
from cpuinfer_helpers.errors import InputError, RecipeError, TraceError, first_line
from cpuinfer_helpers.interface.drop_in import DropIn
from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.machine.limits import free_bytes

logger = logging.getLogger("cpuinfer_helpers")

# What is kept; that which was not called for longest goes first. With lengths padded to multiples of 32 and full
# batches, texts of up to 512 tokens have 16 shapes.
SHAPES_KEPT = 16
# What is made, right or not. PyTorch keeps some memory of each trace for as long as the process lives: 2.5 to 10 MiB
# were seen, so at most 640 MiB; more where a loop over the positions is unrolled (Zamba, 139 tokens: 560 MiB).
TRACES_MADE = 64
# The next one may be for a longer shape, and to make it takes more than to keep it: so many times the largest so far
# has to be free.
_ROOM = 4

Shape = tuple[torch.Size, ...]
Answer = Callable[[Mapping[str, torch.Tensor]], Any]


class EachShape(DropIn):
    """Part of a drop-in that has something of its own for each shape of its inputs; stands before the drop-in's class.

    Its class says how it is made (:meth:`_made_for`), and what the receipt tells of it (:meth:`_note`).
    """

    def _start(self, made: Mapping[Shape, tuple[Answer, Any]]) -> None:
        """Set up with what has been made before."""
        self._traces: OrderedDict[Shape, tuple[Answer, Any]] = OrderedDict(made)
        self._eager: dict[Shape, str] = {}
        # Held for a moment, never while a trace is made: calls of shapes that are known do not wait for a new one.
        self._guard = threading.RLock()
        self._made = len(self._traces)
        self._largest_bytes = 0
        self._note()

    def _derive(self) -> None:
        super()._derive()
        self._guard = threading.RLock()

    def _state(self) -> dict[str, Any]:
        with self._guard:
            return super()._state() | {"_traces": self._traces.copy(), "_eager": dict(self._eager)}

    @abstractmethod
    def _made_for(self, inputs: dict[str, torch.Tensor]) -> tuple[Answer, Any]:
        """Make what answers for the shape of these inputs; TraceError or RecipeError where it is not right."""

    @abstractmethod
    def _note(self) -> None:
        """Write into the receipt what there is."""

    def __call__(self, **inputs: Any) -> Any:
        """Answer by what there is for this shape, made now if need be; else by the eager model.

        Raises
        ------
        InputError
            If an input is missing or unknown, is no tensor, is of a dtype with which it fails, or is a constant with
            another value; and for a shape that there is nothing for, where there is no eager model.
        """
        return self._answer_at(self._tensors_of(inputs))

    @property
    def shapes(self) -> tuple[str, ...]:
        """The shapes that there is something for, by the first input: ``2 x 24``; the one called last comes last."""
        with self._guard:
            return tuple(text_of_shape(shape) for shape in self._traces)

    @property
    def eager_shapes(self) -> Mapping[str, str]:
        """The shapes that the eager model answers, each with the reason."""
        with self._guard:
            return {text_of_shape(shape): reason for shape, reason in self._eager.items()}

    def _answer_at(self, inputs: dict[str, torch.Tensor]) -> Any:
        shape = tuple(inputs[name].shape for name in self.inputs.tensors)
        found = self._known(shape) or self._new_once(shape, inputs)
        if found is None:
            return self._in_place(inputs)
        try:
            with torch.no_grad():
                return found[0](inputs)
        except Exception as error:  # of TorchScript, or of what backends put into the graph
            if self._model is None:
                text = text_of_shape(shape)
                raise TraceError(f"the trace for {text} fails on these inputs: {first_line(error)}") from error
            # Where the model fails as well, with its own error, the inputs are to blame and not the trace.
            answer = self._in_place(inputs)
            self._refuse(shape, f"its trace fails on other inputs: {first_line(error)}")
            return answer

    def _known(self, shape: Shape) -> tuple[Answer, Any] | None:
        with self._guard:
            found = self._traces.get(shape)
            if found is not None:
                self._traces.move_to_end(shape)
            return found

    def _new_once(self, shape: Shape, inputs: dict[str, torch.Tensor]) -> tuple[Answer, Any] | None:
        """What a shape has that had nothing a moment ago, made once however many threads ask for it."""
        if shape in self._eager:
            return None
        # The lock under which traces are made anyway: a second one could be waited for in the other order.
        with switches.held():
            found = self._known(shape)
            if found is not None or shape in self._eager:
                return found
            return self._new(shape, inputs)

    def _new(self, shape: Shape, inputs: dict[str, torch.Tensor]) -> tuple[Answer, Any] | None:
        """Make and keep what a new shape needs; None if nothing is right there, or enough was made."""
        if self._model is None:
            raise InputError(
                f"there is no trace for {text_of_shape(shape)}, only for {', '.join(self.shapes)}, and no eager model "
                "to make one of: pad to one of these shapes, or trace the model anew, call it with the shapes it will "
                "see, and save it again"
            )
        if self._has_ended():
            return None
        self._made += 1
        before = _resident_bytes()
        try:
            new = self._made_for({name: inputs[name].detach().clone() for name in self.inputs.tensors})
        except (TraceError, RecipeError) as error:
            self._refuse(shape, str(error))
            return None
        finally:
            self._largest_bytes = max(self._largest_bytes, _resident_bytes() - before)
        with self._guard:
            self._traces[shape] = new
            while len(self._traces) > SHAPES_KEPT:
                self._traces.popitem(last=False)
            self._note()
        return new

    def _refuse(self, shape: Shape, reason: str) -> None:
        name, text = self.receipt.requested["model"], text_of_shape(shape)
        logger.warning("%s: the eager model answers for %s: %s", name, text, reason)
        with self._guard:
            self._traces.pop(shape, None)
            self._eager[shape] = reason
            self._note()

    def _why_no_more(self) -> str | None:
        """Why nothing is made for further shapes, or None."""
        if self._made >= TRACES_MADE:
            return f"{TRACES_MADE} were made, and PyTorch keeps 2.5 to 10 MiB of each; pad to fewer shapes"
        free = free_bytes()
        if free < _ROOM * self._largest_bytes:
            took = f"the largest took {format_bytes(self._largest_bytes)} of memory, and {format_bytes(free)} is free"
            return f"{took}; pad to fewer and shorter shapes"
        return None

    def _has_ended(self) -> bool:
        """Whether nothing is made for further shapes; that is said once, and holds from then on."""
        if "no more traces" in self.receipt.evidence:
            return True
        why = self._why_no_more()
        if why is None:
            return False
        logger.warning("%s: the eager model answers for new shapes: %s", self.receipt.requested["model"], why)
        self.receipt = replace(self.receipt, evidence={**self.receipt.evidence, "no more traces": why})
        return True

    def _shapes_evidence(self) -> dict[str, str]:
        """How many shapes there are, for the receipt."""
        evidence = {
            "shapes": f"{len(self._traces)} of at most {SHAPES_KEPT}: {', '.join(self.shapes)}",
            "traces made": f"{self._made} of at most {TRACES_MADE}, of which PyTorch keeps 2.5 to 10 MiB each",
        }
        if self._eager:
            evidence["eager model answers for"] = ", ".join(map(text_of_shape, self._eager))
        return evidence


def _resident_bytes() -> int:
    import psutil

    return psutil.Process().memory_info().rss


def text_of_shape(shape: Shape) -> str:
    """``2 x 24``, the shape of the first input."""
    return " x ".join(map(str, shape[0]))
