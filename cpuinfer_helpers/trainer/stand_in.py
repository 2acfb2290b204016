"""What the Trainer evaluates in place of the user's model: prepared by a recipe on the first batch."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

import torch

from cpuinfer_helpers.display import Table
from cpuinfer_helpers.errors import first_line
from cpuinfer_helpers.interface.carrying import refuse_fork
from cpuinfer_helpers.interface.drop_in import DropIn, SaysWhatItIs
from cpuinfer_helpers.interface.inputs import BoundInputs, argument_names
from cpuinfer_helpers.receipts import Receipt
from cpuinfer_helpers.trainer.emulation import Forecast, seconds_in_fp32, shortest, timed
from cpuinfer_helpers.trainer.losses import with_loss
from cpuinfer_helpers.trainer.plan import EvaluationPlan
from cpuinfer_helpers.trainer.preparation import Preparation, Ready
from cpuinfer_helpers.verification.sizes import ANY_SIZE, Sizes

logger = logging.getLogger("cpuinfer_helpers")


class StandIn(SaysWhatItIs, torch.nn.Module):
    """Answers in place of a model, and has no parameters, so that the Trainer can neither cast nor move the model.

    A copy of it, in this process or another, has the model and the plan, and prepares for its own first batch. It is no
    :class:`~cpuinfer_helpers.interface.drop_in.DropIn`, which takes only the inputs of its one example: this takes
    batches of any kind, by position and with labels too, and has a drop-in or the eager model answer each kind.

    Parameters
    ----------
    model
        The user's model. Left as it is.
    plan
        How to evaluate it.

    Attributes
    ----------
    receipt : Receipt or None
        Of what answered the last batch.
    seconds : float
        Time spent on preparation, and on a forecast, since this was last set to zero.
    forecast : Forecast or None
        To be told by the next batch.
    reason, inputs, sizes, config
        Of what answered the last batch; see :class:`~cpuinfer_helpers.interface.drop_in.SaysWhatItIs`. The eager model
        takes any inputs of any size.
    """

    def __init__(self, model: torch.nn.Module, plan: EvaluationPlan) -> None:
        super().__init__()
        self.training = False
        self.plan = plan
        self.receipt: Receipt | None = None
        self.seconds = 0.0
        self.forecast: Forecast | None = None
        self._answering: Ready | None = None
        # In a tuple: a module given as an attribute would become a part of this one.
        self._model = (model,)
        self._ready: dict[tuple[Any, ...], Ready] = {}
        self._process = os.getpid()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """What was compiled stays here."""
        return type(self), (self._model[0], self.plan)

    def forward(self, *by_position: Any, **inputs: Any) -> Any:
        """Answer a batch in the model's own output class; a new kind of batch is prepared for first."""
        refuse_fork(self, self._process, "evaluate in the process that made the Trainer")
        if by_position:
            inputs |= zip(argument_names(self._model[0]), by_position, strict=False)
        labels = {name: inputs.pop(name) for name in self.plan.label_names if inputs.get(name) is not None}
        inputs = {name: value for name, value in inputs.items() if value is not None}
        kind = _kind_of(inputs, labels)
        # What answers has its own precision; the Trainer's autocast would be a second one around it.
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            if kind not in self._ready:
                self._ready[kind] = self._prepared(inputs, labels)
            forecast, self.forecast = self.forecast, None
            if forecast is None:
                output = self._output(kind, inputs, labels)
            else:
                output = self._foretold(forecast, kind, inputs, labels)
        self._answering = self._ready[kind]
        self.receipt = self._answering.receipt
        return output

    @property
    def reason(self) -> str | None:
        """Why the eager model answered the last batch; None if it did not, or there was none yet."""
        return self.receipt.reason if self.receipt else None

    @property
    def inputs(self) -> BoundInputs:
        """The example that what answers was prepared with."""
        made = self._answering.answer if self._answering else None
        return made.inputs if isinstance(made, DropIn) else BoundInputs({}, {})

    @property
    def sizes(self) -> Sizes:
        """Which sizes of the inputs were compared with the model."""
        made = self._answering.answer if self._answering else None
        return made.sizes if isinstance(made, DropIn) else ANY_SIZE

    @property
    def config(self) -> Any:
        """The model's configuration, or None."""
        return getattr(self._model[0], "config", None)

    def table(self) -> Table:
        """The receipt of what answered the last batch."""
        if self.receipt is None:
            return Table(("evaluation", "value"), (("answers", "nothing yet: no batch has come"),))
        return self.receipt.table()

    def __getattr__(self, name: str) -> Any:
        """What it has not itself is the model's: a user's own ``compute_loss`` may ask for ``model.config``."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_model" not in vars(self):
                raise
            return getattr(self._model[0], name)

    def _get_name(self) -> str:
        """The model's class: the Trainer looks up by it how labels are smoothed."""
        return self._model[0]._get_name()

    def _output(self, kind: tuple[Any, ...], inputs: Mapping[str, Any], labels: Mapping[str, Any]) -> Any:
        try:
            return _answer(self._ready[kind], inputs, labels)
        except Exception as error:  # a trace fails with whatever its operators raise
            if not self._ready[kind].by_recipe or self.plan.on_failure == "raise":
                raise
            reason = f"a later batch failed: {first_line(error)}"
            logger.warning("%s; the eager model evaluates from here on", reason)
            self._ready[kind] = self._prepared(inputs, labels, reason)
            return _answer(self._ready[kind], inputs, labels)

    def _foretold(
        self, forecast: Forecast, kind: tuple[Any, ...], inputs: Mapping[str, Any], labels: Mapping[str, Any]
    ) -> Any:
        """The output, and what it took told; what is run for the forecast alone counts as preparation."""
        prepared = self.seconds
        output, seconds = timed(lambda: self._output(kind, inputs, labels))
        seconds -= self.seconds - prepared
        started = time.perf_counter()
        seconds = shortest(lambda: self._output(kind, inputs, labels), seconds)
        forecast.tell(seconds, seconds_in_fp32(self._model[0], {**inputs, **labels}))
        self.seconds += time.perf_counter() - started
        return output

    def _prepared(self, inputs: Mapping[str, Any], labels: Mapping[str, Any], failure: str | None = None) -> Ready:
        started = time.perf_counter()
        try:
            preparation = Preparation(self._model[0], self.plan, inputs, labels)
            return preparation.run() if failure is None else preparation.eager(failure)
        finally:
            self.seconds += time.perf_counter() - started


def _answer(ready: Ready, inputs: Mapping[str, Any], labels: Mapping[str, Any]) -> Any:
    if ready.loss is None:
        return ready.answer(**inputs, **labels)
    output = ready.answer(**inputs)
    return with_loss(output, ready.loss(output, labels))


def _kind_of(inputs: Mapping[str, Any], labels: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a preparation holds for: the names of tensors, and plain values."""
    plain = tuple((name, repr(value)) for name, value in sorted(inputs.items()) if not isinstance(value, torch.Tensor))
    return tuple(sorted(inputs)), tuple(sorted(labels)), plain
