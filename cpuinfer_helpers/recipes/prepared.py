"""A model that a recipe has prepared, or the eager model that answers in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from cpuinfer_helpers.display import Displayed, Table
from cpuinfer_helpers.interface.carrying import Carried
from cpuinfer_helpers.interface.inputs import BoundInputs
from cpuinfer_helpers.interface.outputs import OutputSpec, builder
from cpuinfer_helpers.receipts import Receipt
from cpuinfer_helpers.recipes.base import Build
from cpuinfer_helpers.verification.sizes import ANY_SIZE, Sizes

Tensors = Mapping[str, torch.Tensor]

# Their runtimes start threads when a model is prepared, or their kernels are compiled for a number of threads.
_WITH_THREADS = ("openvino-", "onnxruntime-", "onednn-graph-")
# Compiles again for other inputs and numbers of threads, in threads that only the process itself has.
_WITH_A_COMPILER = "compile-"


class PreparedModel(Displayed, Carried):
    """A model prepared by a recipe, or the eager model that answers in its place; made by :meth:`Recipe.prepare`.

    Call it with the keyword inputs of the example; it returns the model's own output class, in the model's own dtype,
    without gradients. It computes in the recipe's precision, also under autocast.

    Attributes
    ----------
    recipe : str
        Name of the recipe that was asked for.
    receipt : Receipt
        What was requested and what was seen.
    build : Build or None
        What the backend handed back; None if the eager model answers.
    spec : OutputSpec or None
        Structure of the output; None if the eager model answers.
    config
        The model's configuration, as ``model.config``; None for models without one.
    sizes : Sizes
        Which sizes of the inputs were compared with the model; calls with others are refused.
    other_ways : bool
        Whether the recipe has other ways to make it, which :func:`~cpuinfer_helpers.prepare` tries where the answers
        turn out to differ.
    """

    _shared = ("build", "_answer", "_output")
    _derived = ("_names",)
    _elsewhere = "prepare the model in the other process, or save what optimize() gives and load it there"

    def __init__(
        self,
        *,
        recipe: str,
        model: Callable[..., Any] | None,
        inputs: BoundInputs,
        spec: OutputSpec | None,
        dtypes: Mapping[str, torch.dtype],
        receipt: Receipt,
        build: Build | None = None,
        config: Any = None,
        sizes: Sizes = ANY_SIZE,
        other_ways: bool = False,
    ) -> None:
        self.recipe = recipe
        self.other_ways = other_ways
        self.receipt = receipt
        self.build = build
        self.config = config
        self._answer = build.answer if build else None
        self._model = model
        self._inputs = inputs
        self._names = inputs.tensors.keys()
        self.spec = spec
        self._output = builder(spec) if spec else None
        self._dtypes = dict(dtypes)
        self.sizes = sizes

    @property
    def _compiled(self) -> bool:
        return self.build is not None

    @property
    def _own_threads(self) -> bool:
        if self.recipe.startswith(_WITH_A_COMPILER):
            return self.prepared
        return self.prepared and self.recipe.startswith(_WITH_THREADS) and self._threads > 1

    def _derive(self) -> None:
        self._names = self._inputs.tensors.keys()

    @property
    def prepared(self) -> bool:
        """Whether calls run what the recipe made; False if the eager model answers in its place."""
        return self._answer is not None

    @property
    def module(self) -> torch.jit.ScriptModule | None:
        """The ScriptModule that runs, where there is one."""
        return self.build.module if self.build else None

    @property
    def reason(self) -> str | None:
        """Why the eager model answers, or None."""
        return self.receipt.reason

    @property
    def inputs(self) -> BoundInputs:
        """The example: tensors by name, and the plain values that are constants."""
        return self._inputs

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the tensors that a call takes."""
        return tuple(self._names)

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
        self._refuse_fork()
        if not self._inputs.fit(inputs):
            inputs = self._inputs.only_tensors(inputs, some=not self.prepared)
        if self.prepared:
            self.sizes.refuse_others(inputs)
        try:
            with torch.no_grad():
                return self._run(inputs)
        except Exception as error:  # of the backend, or of the model
            self._inputs.blame(inputs, error)
            raise

    def _run(self, inputs: dict[str, torch.Tensor]) -> Any:
        if self._answer is None:
            return self._model(**inputs, **self._inputs.constants)
        with _no_autocast():
            return self._output(self._in_own_dtype(self._answer(inputs)))

    @property
    def fixed_sizes(self) -> dict[str, torch.Size]:
        """Sizes of a row that calls must have, of the inputs of which no dimension may vary: images of one size."""
        return self.sizes.fixed

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Dtype of each output tensor, the eager model's own."""
        return dict(self._dtypes)

    def _in_own_dtype(self, outputs: Tensors) -> dict[str, torch.Tensor]:
        return {name: outputs[name].to(dtype) for name, dtype in self._dtypes.items()}

    def __str__(self) -> str:
        if not self.prepared:
            return f"{self.recipe}: NOT prepared, the eager model answers, because {self.reason}"
        checked = "verified" if self.receipt.verified else "not verified"
        text = f"{self.recipe}: {self.receipt.runs}, {checked} ({self.receipt.checks_summary()})"
        return text + self.receipt.branches_text()

    def table(self) -> Table:
        """The receipt's table."""
        return self.receipt.table()


def _no_autocast() -> AbstractContextManager[Any]:
    """What a recipe made has a precision of its own: autocast around a call would make another plan of its graph."""
    return torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext()
