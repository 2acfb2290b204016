"""A recipe carried out for each shape, where what it makes once does not give the answers at every shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from cpuinfer_helpers.interface.by_shape import Answer, EachShape, Shape
from cpuinfer_helpers.interface.copies import EagerModel
from cpuinfer_helpers.recipes.prepared import PreparedModel

HOW = "by the recipe, once for each shape"


class PreparedEachShape(EachShape, PreparedModel):
    """A model prepared by a recipe for each shape of its inputs; made by ``prepare(..., each_shape=True)``.

    A call with a new shape prepares the model for it, compares the answers with the eager model's on inputs of that
    very shape, and only then answers. Where nothing is right, the eager model answers such calls, with a WARNING.

    What was prepared for the 16 shapes that were called last is kept, each with weights of its own. No more than 64 are
    made; after that the eager model answers new shapes, which the receipt and a WARNING say. Pad to a few lengths, such
    as multiples of 32, and that does not happen.
    """

    _each_shape = True
    _shared = (*PreparedModel._shared, "_make", "_traces", "_model")
    _derived = ("_guard",)

    def __init__(
        self,
        first: PreparedModel,
        model: EagerModel,
        make: Callable[[dict[str, torch.Tensor]], PreparedModel],
        reason: str,
    ) -> None:
        super().__init__(
            recipe=first.recipe,
            model=model,
            inputs=first.inputs,
            spec=first.spec,
            dtypes=first.dtypes,
            receipt=first.receipt.with_evidence(**{"not once for all": reason}),
            build=first.build,
            config=first.config,
            probe=first.probe,
            tolerance=first.tolerance,
            eager=first._eager_model,
        )
        self._make = make
        shape: Shape = tuple(tensor.shape for tensor in first.inputs.tensors.values())
        self._start({shape: (_answer_of(first), first)})

    def _made_for(self, inputs: dict[str, torch.Tensor]) -> tuple[Answer, PreparedModel]:
        prepared = self._make(inputs)
        return _answer_of(prepared), prepared

    def _note(self) -> None:
        made = [prepared for _, prepared in self._traces.values()]
        evidence = {**self.receipt.evidence, "prepared": HOW, **self._shapes_evidence()}
        checks = tuple(check for prepared in made for check in prepared.receipt.checks) or self.receipt.checks
        self.receipt = replace(self.receipt, evidence=evidence, checks=checks)

    def __str__(self) -> str:
        return (
            f"{self.recipe}: {HOW}, {len(self._traces)} so far ({', '.join(self.shapes)}), each verified at its shape"
        )


def _answer_of(prepared: PreparedModel) -> Answer:
    return lambda inputs: prepared(**inputs)
