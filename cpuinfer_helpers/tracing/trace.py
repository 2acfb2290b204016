"""Trace a model, freeze it, prove that it gives the same answers, or fall back and say why."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from cpuinfer_helpers import graph
from cpuinfer_helpers.errors import InputError, TraceError, first_line
from cpuinfer_helpers.interface.adapter import NamedInputs, named_inputs
from cpuinfer_helpers.interface.copies import untouched
from cpuinfer_helpers.interface.drop_in import receipt_here
from cpuinfer_helpers.interface.inputs import BoundInputs, argument_names
from cpuinfer_helpers.interface.outputs import OutputSpec
from cpuinfer_helpers.interface.reference import Reference
from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.machine.scratch import sweep
from cpuinfer_helpers.receipts import Check, Receipt
from cpuinfer_helpers.saving.probe import probe_of
from cpuinfer_helpers.tracing.each_shape import ShapeTrace, TracedEachShape
from cpuinfer_helpers.tracing.traceable import (
    number_of_experts,
    own_code_of,
    traceable_operators,
    without_loops_over_experts,
)
from cpuinfer_helpers.tracing.traced import TracedModel
from cpuinfer_helpers.verification.checks import Verification, verify
from cpuinfer_helpers.verification.variations import Question, same_shape_plan, with_padding

__all__ = ["TracedModel", "frozen_trace", "trace_model"]

logger = logging.getLogger("cpuinfer_helpers")

_INPUT_STYLES = ("kwargs", "tuple")
_ON_FAILURE = ("fallback", "raise")


def trace_model(
    model: torch.nn.Module,
    example_inputs: Mapping[str, Any],
    *,
    input_style: str = "kwargs",
    freeze: bool = True,
    verify: bool = True,
    on_failure: str = "fallback",
    each_shape: bool = False,
) -> TracedModel:
    """Trace a model and prove that the trace gives the model's answers.

    Parameters
    ----------
    model
        An eager model in evaluation mode, from transformers or any other. It is left as it was.
    example_inputs
        Tensors by argument name, batch first: (batch, length) for token ids and masks. Plain values
        (``output_hidden_states=True``) become constants of the trace.
    input_style
        ``kwargs`` binds tensors to the model's arguments by name. ``tuple`` hands them over by position, as everybody
        had to before PyTorch 2.0 (then called 1.14); an order that feeds a tensor to the wrong argument is refused.
    freeze
        Inline the weights as constants, which most fusions need. Doubles the memory for weights while the eager model
        lives.
    verify
        Compare with the eager model on other batch sizes, every dimension shorter, longer and far longer, other
        contents, paddings, and other tokens under the padding, three calls each
        (:func:`~cpuinfer_helpers.verification.variations.plan`). A call with a size beyond those that were compared is
        an InputError.
    on_failure
        ``fallback``: the eager model answers, with a reason and a WARNING. ``raise``: a TraceError.
    each_shape
        Where no single trace gives the model's answers at every shape: make one for each shape, when it is first
        called with it, and verify it before it answers. The eager model stays in memory for that.

    Returns
    -------
    TracedModel
        With ``traced``, ``reason``, ``module`` and ``receipt``.

    Raises
    ------
    InputError
        If the model or the inputs cannot be used at all; see the message.
    TraceError
        If tracing or verification fails and ``on_failure`` is ``raise``.

    Examples
    --------
    >>> layer = torch.nn.Linear(4, 2).eval()
    >>> traced = trace_model(layer, {"input": torch.ones(3, 4)})
    >>> traced.traced, tuple(traced(input=torch.ones(5, 4)).shape)
    (True, (5, 2))
    """
    _check_choice("input_style", input_style, _INPUT_STYLES)
    _check_choice("on_failure", on_failure, _ON_FAILURE)
    sweep()
    job = _TraceRequest(Reference.of(model, example_inputs), input_style, freeze, verify)
    try:
        with switches.held(), torch.inference_mode(False):
            return job.run_each_shape() if each_shape else job.run()
    except TraceError as error:
        if on_failure == "raise":
            raise
        reason = str(error)
        logger.warning("could not trace %s, the eager model answers: %s", type(model).__name__, reason)
        return job.fallback(reason)


def frozen_trace(
    model: torch.nn.Module, inputs: BoundInputs, *, padded: bool = False, random_is_constant: bool = True
) -> tuple[torch.jit.ScriptModule, tuple[str, ...]]:
    """Trace and freeze a model, named inputs and a flat dictionary of outputs, without calling the result.

    Parameters
    ----------
    model
        In evaluation mode.
    inputs
        The example.
    padded
        Trace with padding in the example, for models that look whether there is any; only where
        :func:`~cpuinfer_helpers.verification.variations.with_padding` can put some there.
    random_is_constant
        As for :func:`~cpuinfer_helpers.tracing.traceable.traceable_operators`; only where the answers will be verified.

    Returns
    -------
    module : torch.jit.ScriptModule
    warnings : tuple of str
        Those that tracing raised.
    """
    recorded: list[str] = []
    tensors = with_padding(getattr(model, "config", None), inputs.tensors) if padded else inputs.tensors
    with torch.no_grad(), switches.random_state_kept(), _record_warnings(recorded):
        arguments = {"example_kwarg_inputs": tensors}
        module = frozen(_traced(model, named_inputs(model, inputs), arguments, random_is_constant))
    return module, tuple(dict.fromkeys(recorded))


def frozen_trace_by_position(
    model: torch.nn.Module, adapter: torch.nn.Module, example: Sequence[torch.Tensor]
) -> tuple[torch.jit.ScriptModule, tuple[str, ...]]:
    """Trace and freeze a module that takes tensors by position, some of which it may write to.

    Parameters
    ----------
    model
        The model that the module runs.
    adapter
        The module, in evaluation mode.
    example
        Tensors; those that are written to are the caller's to throw away.

    Returns
    -------
    module : torch.jit.ScriptModule
    warnings : tuple of str
        Those that tracing raised.
    """
    recorded: list[str] = []
    with torch.no_grad(), switches.random_state_kept(), _record_warnings(recorded):
        module = frozen(_traced(model, adapter, {"example_inputs": tuple(example)}, random_is_constant=True))
    return module, tuple(dict.fromkeys(recorded))


def _traced(
    model: torch.nn.Module, adapter: torch.nn.Module, arguments: Mapping[str, Any], random_is_constant: bool
) -> torch.jit.ScriptModule:
    """Trace an adapter of the model with its operators put into a form that a trace can hold."""
    experts, own = number_of_experts(model), own_code_of(model)
    with traceable_operators(random_is_constant=random_is_constant, experts=experts, own_code=own):
        return torch.jit.trace(adapter, **arguments, check_trace=False, strict=False)


def frozen(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """Freeze a traced module so that an error in one of its calls is an exception.

    Freezing alone inlines the functions of a clone and frees them, while the graph's nodes still point to them as their
    call stack: to tell where a call has failed, TorchScript reads freed memory, and the process may end (RWKV called
    with a shorter text, torch 2.8). Here the functions that are inlined are the trace's own, which stay.
    """
    torch._C._jit_pass_inline(module.graph)
    return torch.jit.freeze(module)


def _autocast_now() -> Callable[[], torch.autocast]:
    """Makes a context in which autocast is as it is now, in this thread."""
    dtype, cached = torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled()
    enabled = torch.is_autocast_enabled("cpu")
    return lambda: torch.autocast("cpu", dtype=dtype, enabled=enabled, cache_enabled=cached)


@dataclass
class _TraceRequest:
    """One request to trace a model: carries what is seen on the way into the receipt."""

    reference: Reference
    input_style: str
    freeze: bool
    verify: bool
    padded: bool = False
    warnings: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    seconds: float = 0.0
    # That of whoever asked for the model: a call that meets a new shape may have another, which is not to be traced.
    autocast: Callable[[], torch.autocast] = field(default_factory=_autocast_now)
    requested: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.requested = {
            "model": type(self.model).__name__,
            "recipe": "torchscript",
            "input_style": self.input_style,
            "freeze": self.freeze,
            "verify": self.verify,
        }
        if self.padded:
            self.requested["traced with"] = "padding in the example"

    @property
    def model(self) -> torch.nn.Module:
        return self.reference.model

    @property
    def inputs(self) -> BoundInputs:
        return self.reference.inputs

    def run(self) -> TracedModel:
        self._refuse_unlike_answers()
        adapter = named_inputs(self._traceable(), self.inputs)
        module = self._trace(adapter)
        traced = self._result(module, adapter.spec, self._receipt(module, adapter.spec))
        if self.verify:
            found = self._compared(traced)
            traced.sizes = found.sizes
            traced.receipt = replace(traced.receipt, checks=found.checks)
            if found.kept_to_size:
                traced.receipt = traced.receipt.with_evidence(sizes=found.kept_to_size)
        return traced

    def run_each_shape(self) -> TracedModel:
        """One trace if one is right everywhere, else one for each shape."""
        reason = ""
        for job in self._ways():
            try:
                single = job.run()
            except TraceError as error:
                if not self.verify:
                    raise
                reason = reason or str(error)
                continue
            if "sizes" not in single.receipt.evidence:
                return single
            reason = single.receipt.evidence["sizes"]
            break
        return self._by_shape(reason)

    def _by_shape(self, reason: str) -> TracedEachShape:
        self._refuse_unlike_answers()
        trace = self._first_right_at_shape()
        shape = tuple(tensor.shape for tensor in self.inputs.tensors.values())
        receipt = self._receipt(trace.module, trace.spec)
        return TracedEachShape(
            traces={shape: trace},
            make=self._make,
            inputs=self.inputs,
            receipt=receipt.with_evidence(**{"no single trace": reason}),
            model=self.reference.eager(),
            config=self.reference.config,
        )

    def _make(self, tensors: dict[str, torch.Tensor]) -> ShapeTrace:
        with switches.held(), torch.inference_mode(False), self.autocast():
            return self._again(tensors)._first_right_at_shape()

    def _ways(self) -> Iterator[_TraceRequest]:
        """This job, and the same with padding in what is traced, for models that look whether there is any."""
        yield self
        if with_padding(self.reference.config, self.inputs.tensors) is not None:
            yield replace(self, padded=True)

    def _first_right_at_shape(self) -> ShapeTrace:
        """The first of the ways to trace that is right at this shape; the first one's error if none is."""
        failed: list[TraceError] = []
        for job in self._ways():
            try:
                return job.at_shape()
            except TraceError as error:
                failed.append(error)
        raise failed[0]

    def at_shape(self) -> ShapeTrace:
        """A trace that gives the model's answers on inputs of the shape of these, whatever else is in them."""
        adapter = named_inputs(self._traceable(), self.inputs)
        module = self._trace(adapter)
        # What runs was looked at in the first trace; this is made while somebody waits for an answer.
        traced = self._result(module, adapter.spec, Receipt(self.requested, script_module=True))
        self._compared(traced, same_shape_plan(self.reference.config, self.inputs.tensors))
        return ShapeTrace(module, adapter.spec, traced.probe, self.checks)

    def _again(self, tensors: dict[str, torch.Tensor]) -> _TraceRequest:
        """The same request for inputs of another shape."""
        reference = Reference(self.model, BoundInputs(tensors, self.inputs.constants))
        return _TraceRequest(reference, self.input_style, self.freeze, self.verify)

    def _compared(self, traced: TracedModel, questions: Iterable[Question] | None = None) -> Verification:
        """What the comparison has found; TraceError where an answer is not the model's."""
        found = verify(lambda tensors: traced(**tensors), self.reference, questions=questions)
        self.checks = found.checks
        if found.difference:
            raise TraceError(found.difference.replace("it does not", "the trace does not", 1))
        return found

    def fallback(self, reason: str) -> TracedModel:
        return self._result(None, None, self._receipt(None, None, reason))

    def _traceable(self) -> torch.nn.Module:
        """A copy of the model to trace, so that nothing that tracing does to it lasts."""
        model = untouched(self.model)
        if model is not self.model and without_loops_over_experts(model):
            self.requested["experts"] = "in one operator, not in a loop"
        return model

    def _trace(self, adapter: NamedInputs) -> torch.jit.ScriptModule:
        tensors = with_padding(self.reference.config, self.inputs.tensors) if self.padded else self.inputs.tensors
        by_name = {"example_kwarg_inputs": tensors}
        by_position = {"example_inputs": tuple(tensors.values())}
        arguments = by_position if self.input_style == "tuple" else by_name
        recorded: list[str] = []
        started = time.perf_counter()
        try:
            with torch.no_grad(), switches.random_state_kept(), _record_warnings(recorded):
                module = _traced(self.model, adapter, arguments, random_is_constant=self.verify)
                if self.freeze:
                    module = frozen(module)
        except TraceError:
            raise
        except Exception as error:  # tracing runs the model's own Python, which may raise anything
            raise TraceError(f"tracing fails: {first_line(error)}") from error
        finally:
            self.seconds = time.perf_counter() - started
            self.warnings = tuple(dict.fromkeys(recorded))
        return module

    def _receipt(
        self,
        module: torch.jit.ScriptModule | None,
        spec: OutputSpec | None,
        reason: str | None = None,
    ) -> Receipt:
        return receipt_here(
            self.requested,
            script_module=module is not None,
            frozen=self.freeze and module is not None and not any(True for _ in module.parameters()),
            **self._observed(module),
            attention_implementation=getattr(self.reference.config, "_attn_implementation", None),
            outputs_left_out=self._left_out(spec) if spec else (),
            checks=self.checks,
            warnings=self.warnings,
            prepare_seconds=self.seconds,
            reason=reason,
        )

    def _observed(self, module: torch.jit.ScriptModule | None) -> dict[str, Any]:
        if module is None:
            return {}
        try:
            ran = graph.executed_graph(module, self.inputs.tensors)
            return {
                "graph_nodes": graph.node_counts(ran),
                "weight_dtypes": graph.weight_dtypes(module, ran),
                "linear_dtypes": graph.linear_dtypes(module, self.inputs.tensors),
            }
        except RuntimeError as error:
            raise TraceError(f"the traced module fails on its own example: {first_line(error)}") from error

    def _result(self, module: torch.jit.ScriptModule | None, spec: OutputSpec | None, receipt: Receipt) -> TracedModel:
        kept, expected = spec.tensor_names() if spec else (), self.reference.expected
        answers = {name: expected[name] for name in kept if name in expected}
        return TracedModel(
            module=module,
            model=None if module is not None else self.reference.eager(),
            inputs=self.inputs,
            spec=spec,
            receipt=receipt,
            probe=probe_of(self.inputs.tensors, answers),
            config=self.reference.config,
        )

    def _left_out(self, spec: OutputSpec) -> tuple[str, ...]:
        kept = set(spec.tensor_names())
        missing = (name.split(".")[0] for name in self.reference.expected if name not in kept)
        return tuple(dict.fromkeys((*spec.left_out(), *missing)))

    def _refuse_unlike_answers(self) -> None:
        """Raise where tensors would go to other arguments, or the model's answers cannot be compared."""
        self._refuse_wrong_order()
        if self.verify and self.reference.why_not_comparable:
            raise TraceError(self.reference.why_not_comparable)

    def _refuse_wrong_order(self) -> None:
        if self.input_style != "tuple":
            return
        for position, (given, taken) in enumerate(
            zip(self.inputs.tensors, argument_names(self.model), strict=False), 1
        ):
            if given != taken:
                raise TraceError(
                    f"input_style='tuple' hands tensors over by position: {given!r}, number {position}, would be taken "
                    f"as {taken!r}; order them as {type(self.model).__name__}.forward does, or use input_style='kwargs'"
                )


class _Collector(logging.Handler):
    """Collects this thread's messages; those of other threads go to the handlers that there were."""

    def __init__(self, messages: list[str], others: Sequence[logging.Handler]) -> None:
        super().__init__()
        self.messages, self.others = messages, tuple(others)
        self.thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread != self.thread:
            for handler in self.others:
                if record.levelno >= handler.level:
                    handler.handle(record)
        elif record.levelno >= logging.WARNING:
            self.messages.append(f"{record.name}: {' '.join(record.getMessage().split())}")


@contextmanager
def _transformers_log_collected(messages: list[str]) -> Iterator[None]:
    """Tracing looks at every attribute of a model, and transformers logs a warning at some of them."""
    library = logging.getLogger("transformers")
    collector = _Collector(messages, library.handlers)
    with switches.attributes(library, handlers=[collector], propagate=False):
        yield


@contextmanager
def _record_warnings(messages: list[str]) -> Iterator[None]:
    """Collect every warning for the receipt, which is where they are shown."""
    with _transformers_log_collected(messages), switches.warnings_caught() as caught:
        try:
            yield
        finally:
            messages.extend(f"{w.category.__name__}: {' '.join(str(w.message).split())}" for w in caught)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} is {value!r}; choose from {', '.join(choices)}")
