"""Whether a Trainer, of any version and with any model, does what its flags ask for."""

from __future__ import annotations

import copy
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

from cpuinfer_helpers.display import Displayed, Table
from cpuinfer_helpers.errors import InputError, first_line
from cpuinfer_helpers.graph import linear_dtypes
from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.machine.report import machine_report
from cpuinfer_helpers.recipes.backends import ipex
from cpuinfer_helpers.trainer.grouping import rows_at
from cpuinfer_helpers.trainer.plan import FLAGS
from cpuinfer_helpers.trainer.stand_in import StandIn

_FELL_BACK = "failed to use PyTorch jit mode due to"
_IPEX = "intel_extension_for_pytorch"


@dataclass(frozen=True, repr=False)
class TrainerVerdict(Displayed):
    """What a Trainer's evaluation really ran; made by :func:`verify_trainer`.

    Attributes
    ----------
    trainer
        Class of the Trainer, and the version of transformers.
    requested
        The flags that were set: ``jit_mode_eval``, ``use_ipex``, ``bf16``, ``bf16_full_eval``.
    jit_mode_eval, use_ipex
        ``not requested``, ``done``, ``fell back`` or ``ignored``.
    reason
        Why it fell back, in the Trainer's own words; None if it did not.
    model
        Class of what evaluated.
    linear_dtypes
        Number of linear layers that ran at each dtype: as the profiler saw their inputs or, for IPEX, as oneDNN told.
    messages
        What transformers logged meanwhile, warnings and errors.
    emulated
        Whether BF16 is emulated here, whatever ran.
    """

    trainer: str
    requested: tuple[str, ...]
    jit_mode_eval: str
    use_ipex: str
    model: str
    reason: str | None = None
    linear_dtypes: Mapping[str, int] = field(default_factory=dict)
    messages: tuple[str, ...] = ()
    emulated: bool = False

    @property
    def traced(self) -> bool:
        """Whether a ScriptModule evaluated."""
        return self.jit_mode_eval == "done"

    @property
    def as_requested(self) -> bool:
        """Whether every flag that was set was carried out, as far as this was seen."""
        flags = {self.jit_mode_eval, self.use_ipex} <= {"done", "not requested"}
        return flags and not self._lacks_bf16

    @property
    def precision(self) -> str:
        """What the linear layers ran in, beside what was asked for."""
        if not self.linear_dtypes:
            return "not seen"
        if "bfloat16" in self.linear_dtypes:
            return "BF16, emulated" if self.emulated else "BF16"
        return "FP32, though BF16 was asked for" if self._lacks_bf16 else "FP32"

    @property
    def _lacks_bf16(self) -> bool:
        """Whether BF16 was asked for, and linear layers were seen to run, none of them in it."""
        asked = {"bf16", "bf16_full_eval"} & set(self.requested)
        return bool(asked and self.linear_dtypes and "bfloat16" not in self.linear_dtypes)

    def table(self) -> Table:
        """Requested against seen."""
        rows = [
            ("asked for", ", ".join(self.requested) or "nothing"),
            ("jit_mode_eval", self.jit_mode_eval),
            ("use_ipex", self.use_ipex),
            ("evaluated by", self.model),
            ("linear layers ran in", self._linear_text()),
        ]
        if self.reason:
            rows.append(("reason", self.reason))
        rows += [("transformers said", message) for message in self.messages if not self.reason]
        return Table(("verdict", self.trainer), tuple(rows))

    def _linear_text(self) -> str:
        counts = ", ".join(f"{name} {count}" for name, count in self.linear_dtypes.items())
        return f"{self.precision} ({counts})" if counts else self.precision


def verify_trainer(trainer: transformers.Trainer, dataset: Any = None) -> TrainerVerdict:
    """Have a Trainer evaluate one batch, and tell whether it traced, fell back, or ignored its flags.

    It is done on a copy: neither the Trainer nor its model changes. A Trainer that uses IPEX imports it, here as in its
    own evaluations, and that changes the process.

    Parameters
    ----------
    trainer
        Transformers' own, of any version, or a subclass, with any model.
    dataset
        Where to take the batch from; the Trainer's ``eval_dataset`` unless given.

    Returns
    -------
    TrainerVerdict

    Raises
    ------
    InputError
        If there is no batch, or the Trainer cannot evaluate it.
    """
    rows = _first_rows(trainer, dataset)
    requested = tuple(name for name in FLAGS if getattr(trainer.args, name, False))
    spy = _Spy()
    with _unharmed(trainer) as copied, _messages() as messages:
        spy.watch(copied)
        try:
            copied.predict(rows)
        except Exception as error:  # the user's model and data may fail in any way
            name = type(trainer).__name__
            raise InputError(f"{name} cannot evaluate its first batch: {first_line(error)}") from error
    fallback = next((text for text in messages if _FELL_BACK in text), None)
    return TrainerVerdict(
        trainer=f"{type(trainer).__name__}, transformers {transformers.__version__}",
        requested=requested,
        jit_mode_eval=_status("jit_mode_eval" in requested, spy.traced, bool(fallback or spy.reason)),
        use_ipex=_status("use_ipex" in requested, spy.uses_ipex, bool(spy.reason)),
        model=spy.model,
        reason=fallback.partition(_FELL_BACK)[2].strip(" :.") if fallback else spy.reason,
        linear_dtypes=spy.linear_dtypes,
        messages=tuple(messages),
        emulated=not machine_report().bf16_native,
    )


class _Spy:
    """Looks at what a Trainer hands to ``prediction_step``."""

    def __init__(self) -> None:
        self.model = "nothing"
        self.traced = self.uses_ipex = False
        self.reason: str | None = None
        self.linear_dtypes: Mapping[str, int] = {}

    def watch(self, trainer: transformers.Trainer) -> None:
        """Have the Trainer call this in place of its own step."""
        step = trainer.prediction_step

        def watched(model: torch.nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            result = step(model, inputs, *args, **kwargs)
            self._look(model, lambda **given: step(model, given, *args, **kwargs), inputs)
            return result

        trainer.prediction_step = watched

    def _look(self, model: torch.nn.Module, again: Callable[..., Any], inputs: Mapping[str, Any]) -> None:
        if isinstance(model, StandIn):
            receipt = model.receipt
            self.model, self.reason = receipt.runs, receipt.reason
            self.traced, self.linear_dtypes = receipt.script_module, receipt.linear_dtypes
            self.uses_ipex = "IPEX kernels" in receipt.evidence
            return
        self.model = type(model).__name__
        self.traced = isinstance(model, torch.jit.ScriptModule)
        self.uses_ipex = _holds_ipex(model)
        self.linear_dtypes = (ipex.linear_dtypes if self.uses_ipex else linear_dtypes)(again, inputs)


def _holds_ipex(model: torch.nn.Module) -> bool:
    """IPEX replaces modules by its own, and stands in the graph of a trace of them."""
    if _IPEX not in sys.modules:
        return False
    if isinstance(model, torch.jit.ScriptModule):
        return "ipex" in str(model.inlined_graph)
    return any(type(part).__module__.startswith(_IPEX) for part in model.modules())


def _status(requested: bool, done: bool, fell_back: bool) -> str:
    if not requested:
        return "not requested"
    return "done" if done else ("fell back" if fell_back else "ignored")


def _first_rows(trainer: transformers.Trainer, dataset: Any) -> Any:
    dataset = trainer.eval_dataset if dataset is None else dataset
    if isinstance(dataset, dict):
        dataset = next(iter(dataset.values()), None)
    if dataset is None or not hasattr(dataset, "__len__") or not len(dataset):
        raise InputError("verify_trainer: there is no batch to evaluate; give a dataset with a length and rows")
    return rows_at(dataset, range(min(len(dataset), trainer.args.eval_batch_size)))


@contextmanager
def _unharmed(trainer: transformers.Trainer) -> Iterator[transformers.Trainer]:
    """A copy of the Trainer with a model of its own and without callbacks; accelerate's state is put back."""
    copied = copy.copy(trainer)
    copied.model = copied.model_wrapped = copy.deepcopy(trainer.model)
    copied.state, copied.control = copy.copy(trainer.state), copy.copy(trainer.control)
    copied.callback_handler = CallbackHandler([DefaultFlowCallback()], copied.model, None, None, None)
    copied.compute_metrics = None
    models = list(trainer.accelerator._models)
    # An evaluation in a process that has not trained prepares the model only while there is none.
    trainer.accelerator._models.clear()
    try:
        yield copied
    finally:
        trainer.accelerator._models[:] = models


@contextmanager
def _messages() -> Iterator[list[str]]:
    """Warnings and errors that transformers' Trainer gives in this thread, also where the user has silenced them."""
    found: list[str] = []
    handler, thread = logging.Handler(logging.WARNING), threading.get_ident()

    def emit(record: logging.LogRecord) -> None:
        if threading.get_ident() == thread:
            found.append(record.getMessage())

    handler.emit = emit
    with _heard.needed():
        _log.addHandler(handler)
        try:
            yield found
        finally:
            _log.removeHandler(handler)


class _Heard:
    """Has the Trainer's log go to the handlers here, and nowhere else, while anybody verifies one."""

    def __init__(self) -> None:
        self._before: tuple[bool, bool, int] = (False, True, logging.NOTSET)
        # The lock is not held meanwhile: an evaluation may wait for processes and threads of the user's.
        self.needed = switches.Counted(self._listen, self._put_back).needed

    def _listen(self) -> None:
        self._before = (_log.disabled, _log.propagate, _log.level)
        self._set(False, False, logging.WARNING)

    def _put_back(self) -> None:
        self._set(*self._before)

    def _set(self, disabled: bool, propagate: bool, level: int) -> None:
        _log.disabled, _log.propagate = disabled, propagate
        _log.setLevel(level)


_log = logging.getLogger("transformers.trainer")
_heard = _Heard()
