"""What takes a model's place: called like the model, and says of itself what was asked for and what was seen."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch

from cpuinfer_helpers.display import Displayed, Table
from cpuinfer_helpers.interface.carrying import Carried
from cpuinfer_helpers.interface.inputs import BoundInputs
from cpuinfer_helpers.interface.outputs import OutputSpec, builder
from cpuinfer_helpers.interface.reference import run_seeded
from cpuinfer_helpers.machine.report import detect_isa
from cpuinfer_helpers.machine.versions import installed_versions
from cpuinfer_helpers.receipts import Receipt
from cpuinfer_helpers.verification.sizes import ANY_SIZE, Sizes

Tensors = Mapping[str, torch.Tensor]


class SaysWhatItIs(Displayed):
    """What everything that takes a model's place says of itself: reason, names and sizes, and its receipt to look at.

    Attributes
    ----------
    receipt : Receipt
        What was requested and what was seen.
    inputs : BoundInputs
        The example: tensors by name, and the plain values that are constants.
    config
        The model's configuration, as ``model.config``; None for models without one.
    sizes : Sizes
        Which sizes of the inputs were compared with the model; calls with others are refused.
    """

    receipt: Receipt
    inputs: BoundInputs
    config: Any
    sizes: Sizes

    @property
    def reason(self) -> str | None:
        """Why the eager model answers, or None."""
        return self.receipt.reason

    @property
    def fixed_sizes(self) -> dict[str, torch.Size]:
        """Sizes of a row that calls must have, of the inputs of which no dimension may vary: images of one size."""
        return self.sizes.fixed

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the tensors that a call takes, in the order of the example."""
        return tuple(self.inputs.tensors)

    def table(self) -> Table:
        """The receipt's table."""
        return self.receipt.table()


class DropIn(SaysWhatItIs, Carried):
    """Takes a model's place: what was made of it answers, or the eager model itself where nothing could be made.

    Called with the keyword inputs of the example; returns the model's own output class, without gradients.

    Parameters
    ----------
    inputs, receipt, config, sizes
        As the attributes; see :class:`SaysWhatItIs`.
    model
        The eager model that answers after a fallback; None where what was made answers.
    spec
        Structure of the output; None after a fallback.
    """

    def __init__(
        self,
        *,
        inputs: BoundInputs,
        receipt: Receipt,
        model: Callable[..., Any] | None = None,
        spec: OutputSpec | None = None,
        config: Any = None,
        sizes: Sizes = ANY_SIZE,
    ) -> None:
        self.inputs = inputs
        self.receipt = receipt
        self.spec = spec
        self.config = config
        self.sizes = sizes
        self._model = model
        self._assemble = builder(spec) if spec else None

    @property
    @abstractmethod
    def _compiled(self) -> bool:
        """Whether calls run what was made; False if the eager model answers in its place."""

    @abstractmethod
    def _answer(self, inputs: Tensors) -> Any:
        """What was made answers, in the model's own output class."""

    def __call__(self, **inputs: Any) -> Any:
        """Run the model.

        Parameters
        ----------
        **inputs
            Tensors by the names of the example, in any batch size and length that the model takes.

        Returns
        -------
        The model's own output class.

        Raises
        ------
        InputError
            If an input is missing or unknown, is no tensor, is of a dtype with which it fails, is a constant with
            another value, or has a size beyond those that were compared with the model. The eager model in its place
            takes any size, and fewer inputs where it can.
        """
        tensors = self._tensors_of(inputs)
        if self._compiled:
            self.sizes.refuse_others(tensors)
            return self._blaming(self._answer, tensors)
        return self._in_place(tensors)

    def named_answers(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """The answers to inputs as tensors by name, under a fixed seed."""
        return run_seeded(lambda given: self(**given), tensors)

    def _tensors_of(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The tensors of a call, seen to be those of the example."""
        self._refuse_fork()
        if self.inputs.fit(inputs):
            return inputs
        return self.inputs.only_tensors(inputs, some=not self._compiled)

    def _in_place(self, tensors: Tensors) -> Any:
        """What the eager model answers; the same wherever it stands in for what could not be made."""
        return self._blaming(lambda given: self._model(**given, **self.inputs.constants), tensors)

    def _blaming(self, answer: Callable[[Tensors], Any], tensors: Tensors) -> Any:
        """An answer without gradients; where it fails because of an input, an InputError that names it."""
        try:
            with torch.no_grad():
                return answer(tensors)
        except Exception as error:  # of the backend, or of the model
            self.inputs.blame(tensors, error)
            raise


def receipt_here(requested: Mapping[str, Any], *, script_module: bool = False, **observed: Any) -> Receipt:
    """A receipt of something made in this process, on this machine, now.

    Parameters
    ----------
    requested
        What was asked for.
    script_module, **observed
        What was seen; see :class:`~cpuinfer_helpers.receipts.Receipt`.
    """
    return Receipt(
        requested=requested,
        script_module=script_module,
        isa=detect_isa(),
        threads=torch.get_num_threads(),
        versions=installed_versions(),
        **observed,
    )
