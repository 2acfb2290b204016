"""A model that a recipe has prepared, or the eager model that answers in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from cpuinfer_helpers.interface.drop_in import DropIn
from cpuinfer_helpers.interface.inputs import BoundInputs
from cpuinfer_helpers.interface.outputs import OutputSpec
from cpuinfer_helpers.receipts import Receipt
from cpuinfer_helpers.recipes.base import Build
from cpuinfer_helpers.verification.sizes import ANY_SIZE, Sizes

# Their runtimes start threads when a model is prepared, or their kernels are compiled for a number of threads.
_WITH_THREADS = ("openvino-", "onnxruntime-", "onednn-graph-")
# Compiles again for other inputs and numbers of threads, in threads that only the process itself has.
_WITH_A_COMPILER = "compile-"


class PreparedModel(DropIn):
    """A model prepared by a recipe, or the eager model that answers in its place; made by :meth:`Recipe.prepare`.

    Call it with the keyword inputs of the example; it returns the model's own output class, in the model's own dtype,
    without gradients. It computes in the recipe's precision, also under autocast.

    Attributes
    ----------
    recipe : str
        Name of the recipe that was asked for.
    reason : str or None
        Why the eager model answers; None if what the recipe made does.
    receipt : Receipt
        What was requested and what was seen.
    build : Build or None
        What the backend handed back; None if the eager model answers.
    inputs : BoundInputs
        The example: tensors by name, and the plain values that are constants.
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

    _shared = ("build", "_assemble")
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
        super().__init__(inputs=inputs, receipt=receipt, model=model, spec=spec, config=config, sizes=sizes)
        self.recipe = recipe
        self.other_ways = other_ways
        self.build = build
        self._dtypes = dict(dtypes)

    @property
    def _compiled(self) -> bool:
        return self.prepared

    @property
    def _own_threads(self) -> bool:
        if self.recipe.startswith(_WITH_A_COMPILER):
            return self.prepared
        return self.prepared and self.recipe.startswith(_WITH_THREADS) and self._threads > 1

    @property
    def prepared(self) -> bool:
        """Whether calls run what the recipe made; False if the eager model answers in its place."""
        return self.build is not None

    @property
    def module(self) -> torch.jit.ScriptModule | None:
        """The ScriptModule that runs, where there is one."""
        return self.build.module if self.build else None

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Dtype of each output tensor, the eager model's own."""
        return dict(self._dtypes)

    def _answer(self, inputs: Mapping[str, torch.Tensor]) -> Any:
        with _no_autocast():
            outputs = self.build.answer(inputs)
            return self._assemble({name: outputs[name].to(dtype) for name, dtype in self._dtypes.items()})

    def __str__(self) -> str:
        if not self.prepared:
            return f"{self.recipe}: NOT prepared, the eager model answers, because {self.reason}"
        checked = "verified" if self.receipt.verified else "not verified"
        text = f"{self.recipe}: {self.receipt.runs}, {checked} ({self.receipt.checks_summary()})"
        return text + self.receipt.branches_text()


def _no_autocast() -> AbstractContextManager[Any]:
    """What a recipe made has a precision of its own: autocast around a call would make another plan of its graph."""
    return torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext()
