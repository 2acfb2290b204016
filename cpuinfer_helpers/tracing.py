"""Trace a model, freeze it, prove that it gives the same answers, or fall back and say why."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from cpuinfer_helpers import graph
from cpuinfer_helpers.adapter import NamedInputs, eager_answers, named_inputs
from cpuinfer_helpers.copies import untouched
from cpuinfer_helpers.each_shape import ShapeTrace, TracedEachShape
from cpuinfer_helpers.errors import InputError, TraceError, first_line
from cpuinfer_helpers.machine import detect_isa, installed_versions
from cpuinfer_helpers.outputs import OutputSpec
from cpuinfer_helpers.receipts import Check, Receipt
from cpuinfer_helpers.scratch import sweep
from cpuinfer_helpers.signature import BoundInputs, argument_names, bind_inputs, check_model
from cpuinfer_helpers.traceable import number_of_experts, traceable_operators, without_loops_over_experts
from cpuinfer_helpers.traced_model import TracedModel
from cpuinfer_helpers.verification import (
    Variation,
    far_variations,
    largest_error,
    run_seeded,
    same_shape_variations,
    tolerance_for,
    verify,
    with_padding,
)

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
        Compare with the eager model on other batch sizes, shorter and longer sequences, paddings, and with other
        tokens under the padding, three calls each.
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
    check_model(model)
    sweep()
    inputs = bind_inputs(model, example_inputs)
    expected = eager_answers(model, inputs)
    job = _Job(model, inputs, input_style, freeze, verify, expected)
    try:
        return job.run_each_shape() if each_shape else job.run()
    except TraceError as error:
        if on_failure == "raise":
            raise
        reason = str(error)
        logger.warning("could not trace %s, the eager model answers: %s", type(model).__name__, reason)
        return job.fallback(reason)


def frozen_trace(model: torch.nn.Module, inputs: BoundInputs) -> tuple[torch.jit.ScriptModule, tuple[str, ...]]:
    """Trace and freeze a model, named inputs and a flat dictionary of outputs, without calling the result.

    Returns
    -------
    module : torch.jit.ScriptModule
    warnings : tuple of str
        Those that tracing raised.
    """
    recorded: list[str] = []
    with torch.no_grad(), torch.random.fork_rng(devices=[]), _record_warnings(recorded):
        adapter = named_inputs(model, inputs)
        with traceable_operators(experts=number_of_experts(model)):
            module = torch.jit.trace(adapter, example_kwarg_inputs=inputs.tensors, check_trace=False, strict=False)
        module = torch.jit.freeze(module)
    return module, tuple(dict.fromkeys(recorded))


@dataclass
class _Job:
    """One request to trace a model: carries what is seen on the way into the receipt."""

    model: torch.nn.Module
    inputs: BoundInputs
    input_style: str
    freeze: bool
    verify: bool
    expected: dict[str, torch.Tensor]
    padded: bool = False
    warnings: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    seconds: float = 0.0
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

    def run(self) -> TracedModel:
        self._refuse_wrong_order()
        self._refuse_random_answers()
        adapter = named_inputs(self._traceable(), self.inputs)
        module = self._trace(adapter)
        traced = self._result(module, adapter.spec, self._receipt(module, adapter.spec))
        if self.verify:
            self._compare(traced)
            self._refuse_differences()
            traced.receipt = replace(traced.receipt, checks=self.checks)
            self._look_far(traced)
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
            if not single.fixed_sizes:
                return single
            reason = single.receipt.evidence["sizes"]
            break
        return self._by_shape(reason)

    def _by_shape(self, reason: str) -> TracedEachShape:
        self._refuse_wrong_order()
        self._refuse_random_answers()
        trace = self._first_right_at_shape()
        shape = tuple(tensor.shape for tensor in self.inputs.tensors.values())
        receipt = self._receipt(trace.module, trace.spec)
        return TracedEachShape(
            traces={shape: trace},
            make=lambda tensors: self._again(tensors)._first_right_at_shape(),
            inputs=self.inputs,
            receipt=replace(receipt, evidence={"no single trace": reason}),
            model=self.model,
            config=_config(self.model),
        )

    def _ways(self) -> Iterator[_Job]:
        """This job, and the same with padding in what is traced, for models that look whether there is any."""
        yield self
        if with_padding(_config(self.model), self.inputs.tensors) is not None:
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
        self._compare(traced, same_shape_variations(_config(self.model), self.inputs.tensors))
        self._refuse_differences()
        return ShapeTrace(module, adapter.spec, traced.probe, self.checks)

    def _again(self, tensors: dict[str, torch.Tensor]) -> _Job:
        """The same request for inputs of another shape."""
        inputs = BoundInputs(tensors, self.inputs.constants)
        expected = eager_answers(self.model, inputs)
        return _Job(self.model, inputs, self.input_style, self.freeze, self.verify, expected)

    def _compare(self, traced: TracedModel, planned: Iterable[Variation] | None = None) -> None:
        config, example = _config(self.model), self.inputs.tensors
        self.checks = verify(
            lambda tensors: traced(**tensors), self._reference, config, example, planned=planned, other_seeds=True
        )

    def _look_far(self, traced: TracedModel) -> None:
        """Check sizes far from the example's; a trace that is wrong on other images only is kept for its own size."""
        close = self.checks
        self._compare(traced, far_variations(_config(self.model), self.inputs.tensors))
        failed = [check for check in self.checks if check.passed is False]
        image = "pixel_values" in self.inputs.tensors and bool(failed) and "image" in failed[0].name
        far, self.checks = self.checks, (*close, *self.checks)
        if not image:
            self._refuse_differences()
            traced.receipt = replace(traced.receipt, checks=self.checks)
            return
        size = self.inputs.tensors["pixel_values"].shape[1:]
        traced.fixed_sizes = {"pixel_values": size}
        self.checks = (*close, *(replace(check, passed=None) for check in far if check.passed is False))
        text = f"only {' x '.join(map(str, size))}: on {failed[0].name!r} it does not give the model's answers"
        evidence = {**traced.receipt.evidence, "sizes": text}
        traced.receipt = replace(traced.receipt, checks=self.checks, evidence=evidence)

    def fallback(self, reason: str) -> TracedModel:
        return self._result(None, None, self._receipt(None, None, reason))

    def _traceable(self) -> torch.nn.Module:
        """A copy of the model to trace, so that nothing that tracing does to it lasts."""
        model = untouched(self.model)
        if model is not self.model and without_loops_over_experts(model):
            self.requested["experts"] = "in one operator, not in a loop"
        return model

    def _trace(self, adapter: NamedInputs) -> torch.jit.ScriptModule:
        tensors = with_padding(_config(self.model), self.inputs.tensors) if self.padded else self.inputs.tensors
        by_name = {"example_kwarg_inputs": tensors}
        by_position = {"example_inputs": tuple(tensors.values())}
        arguments = by_position if self.input_style == "tuple" else by_name
        recorded: list[str] = []
        started = time.perf_counter()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), _record_warnings(recorded):
                experts = number_of_experts(self.model)
                with traceable_operators(random_is_constant=self.verify, experts=experts):
                    module = torch.jit.trace(adapter, **arguments, check_trace=False, strict=False)
                if self.freeze:
                    module = torch.jit.freeze(module)
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
        return Receipt(
            requested=self.requested,
            script_module=module is not None,
            frozen=self.freeze and module is not None and not any(True for _ in module.parameters()),
            **self._observed(module),
            attention_implementation=getattr(_config(self.model), "_attn_implementation", None),
            isa=detect_isa(),
            threads=torch.get_num_threads(),
            versions=installed_versions(),
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
        probe = {f"input.{name}": tensor for name, tensor in self.inputs.tensors.items()}
        kept = spec.tensor_names() if spec else ()
        probe |= {f"output.{name}": self.expected[name] for name in kept if name in self.expected}
        return TracedModel(
            module=module,
            model=None if module is not None else self.model,
            inputs=self.inputs,
            spec=spec,
            receipt=receipt,
            probe=probe,
            config=_config(self.model),
        )

    def _left_out(self, spec: OutputSpec) -> tuple[str, ...]:
        kept = set(spec.tensor_names())
        missing = (name.split(".")[0] for name in self.expected if name not in kept)
        return tuple(dict.fromkeys((*spec.left_out(), *missing)))

    def _reference(self, inputs: Mapping[str, torch.Tensor]) -> Any:
        return untouched(self.model)(**inputs, **self.inputs.constants)

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

    def _refuse_random_answers(self) -> None:
        if not self.verify:
            return
        again = run_seeded(self._reference, self.inputs.tensors, seed=1)
        for name, wanted in self.expected.items():
            if largest_error(wanted, again[name]) > tolerance_for(wanted):
                raise TraceError(
                    f"the model itself gives other answers ({name}) to the same inputs under another random seed, "
                    "so no trace of it can be verified"
                )

    def _refuse_differences(self) -> None:
        failed = [check for check in self.checks if check.passed is False]
        if failed:
            check = failed[0]
            size = f", largest error {check.max_error:.1e}, tolerance {check.tolerance:.1e}" if check.max_error else ""
            raise TraceError(
                f"the trace does not give the model's answers on {check.name!r} ({check.shape}): {check.note}{size}"
            )


class _Collector(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(f"{record.name}: {' '.join(record.getMessage().split())}")


@contextmanager
def _transformers_log_collected(messages: list[str]) -> Iterator[None]:
    """Tracing looks at every attribute of a model, and transformers logs a warning at some of them."""
    library = logging.getLogger("transformers")
    handlers, propagate = library.handlers, library.propagate
    library.handlers, library.propagate = [_Collector(messages)], False
    try:
        yield
    finally:
        library.handlers, library.propagate = handlers, propagate


@contextmanager
def _record_warnings(messages: list[str]) -> Iterator[None]:
    """Collect every warning for the receipt, which is where they are shown."""
    with _transformers_log_collected(messages), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            messages.extend(f"{w.category.__name__}: {' '.join(str(w.message).split())}" for w in caught)


def _config(model: torch.nn.Module) -> Any:
    return getattr(model, "config", None)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} is {value!r}; choose from {', '.join(choices)}")
