"""Trace a model, freeze it, prove that it gives the same answers, or fall back and say why."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers import graph
from cpuinfer_helpers.adapter import NamedInputs, eager_answers, named_inputs
from cpuinfer_helpers.artifacts import MODULE_FILE, new_artifact, read_manifest
from cpuinfer_helpers.display import Displayed, Table
from cpuinfer_helpers.errors import ArtifactError, InputError, TraceError, first_line
from cpuinfer_helpers.machine import detect_isa, installed_versions
from cpuinfer_helpers.outputs import OutputSpec, builder
from cpuinfer_helpers.receipts import Check, Receipt
from cpuinfer_helpers.serialised import read_module, read_named_tensors, write_module, write_named_tensors
from cpuinfer_helpers.signature import BoundInputs, argument_names, bind_inputs, check_model
from cpuinfer_helpers.verification import (
    CALLS_PER_CHECK,
    largest_error,
    run_seeded,
    tolerance_for,
    verify,
)

logger = logging.getLogger("cpuinfer_helpers")

_KIND = "cpuinfer-traced-model"
_FORMAT_VERSION = 1
_PROBE_FILE = "probe.safetensors"
_INPUT_STYLES = ("kwargs", "tuple")
_ON_FAILURE = ("fallback", "raise")


class TracedModel(Displayed):
    """A traced model, or the eager model that answers in its place; made by :func:`trace_model` and :meth:`load`.

    Call it with the keyword inputs that it was traced with; it returns the model's own output class, without gradients.

    Attributes
    ----------
    module : torch.jit.ScriptModule or None
        The traced module. It takes the same tensors by name and returns a dictionary of tensors. None after a fallback.
    reason : str or None
        Why the eager model answers; None if the trace does.
    receipt : Receipt
        What was requested and what was seen.
    config
        The model's configuration, as ``model.config``; None for models without one and after :meth:`load`.
    """

    def __init__(
        self,
        *,
        module: torch.jit.ScriptModule | None,
        model: torch.nn.Module | None,
        inputs: BoundInputs,
        spec: OutputSpec | None,
        receipt: Receipt,
        probe: Mapping[str, torch.Tensor],
        config: Any = None,
    ) -> None:
        self.module = module
        self.receipt = receipt
        self.config = config
        self._model = model
        self._inputs = inputs
        self._names = inputs.tensors.keys()
        self._positional = receipt.requested.get("input_style") == "tuple"
        self._spec = spec
        self._build = builder(spec) if spec else None
        self._probe = probe

    @property
    def traced(self) -> bool:
        """Whether calls run the traced module."""
        return self.module is not None

    @property
    def reason(self) -> str | None:
        """Why the eager model answers, or None."""
        return self.receipt.reason

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the tensors that a call takes, in the order of the trace."""
        return tuple(self._names)

    def __call__(self, **inputs: Any) -> Any:
        """Run the model.

        Parameters
        ----------
        **inputs
            The tensors that it was traced with, by name, in any batch size and length that the model takes.

        Returns
        -------
        The model's own output class.

        Raises
        ------
        InputError
            If an input is missing, is not one of the trace's, or is a constant with another value than the traced one.
        """
        if self.module is None:
            with torch.no_grad():
                return self._model(**{**self._inputs.constants, **inputs})
        if inputs.keys() != self._names:
            inputs = self._inputs.only_tensors(inputs)
        with torch.no_grad():
            if self._positional:
                return self._build(self.module(*(inputs[name] for name in self._names)))
            return self._build(self.module(**inputs))

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write the trace, its manifest and a probe to a folder, whole or not at all.

        The probe is the example with the model's own answers: :meth:`load` runs it before anybody else does.

        Parameters
        ----------
        directory
            The folder to make. A trace saved there before is replaced; a folder of anything else is refused.

        Returns
        -------
        Path
            The folder.

        Raises
        ------
        ArtifactError
            If nothing was traced, or the folder holds something else or cannot be written.

        Notes
        -----
        Needs memory for another copy of the weights meanwhile.
        """
        if self.module is None:
            raise ArtifactError(f"nothing was traced, so there is nothing to save: {self.reason}")
        manifest = {
            "format_version": _FORMAT_VERSION,
            "versions": installed_versions(),
            "isa": list(detect_isa()),
            "inputs": {name: _schema(tensor) for name, tensor in self._inputs.tensors.items()},
            "constants": self._inputs.constants,
            "output": self._spec.to_dict(),
            "receipt": self.receipt.to_dict(),
        }
        with new_artifact(directory, _KIND, manifest) as folder:
            write_module(self.module, folder / MODULE_FILE)
            write_named_tensors(self._probe, folder / _PROBE_FILE)
        return Path(directory)

    @classmethod
    def load(cls, directory: str | os.PathLike[str], *, verify: bool = True) -> TracedModel:
        """Read a folder that :meth:`save` wrote.

        The manifest and the sha256 of every file are checked before anything is deserialised. The sums tell of damage,
        not of malice: load only folders that come from someone you trust.

        Parameters
        ----------
        directory
            The folder.
        verify
            Run the probe three times and compare with the answers that the eager model gave when it was traced.

        Returns
        -------
        TracedModel

        Raises
        ------
        ArtifactError
            If the folder is damaged or of another kind, or the probe's answers differ.
        """
        manifest = read_manifest(directory, _KIND, _FORMAT_VERSION)
        folder = os.fspath(directory)
        try:
            _warn_of_other_versions(manifest, folder)
            loaded = cls._from_manifest(manifest, folder)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ArtifactError(f"{folder}: its manifest is not what save() writes ({error!r}); save again") from error
        if verify:
            loaded._run_probe(folder)
        return loaded

    @classmethod
    def _from_manifest(cls, manifest: Mapping[str, Any], folder: str) -> TracedModel:
        probe = read_named_tensors(os.path.join(folder, _PROBE_FILE))
        inputs = {name: probe[f"input.{name}"] for name in manifest["inputs"]}
        module = read_module(os.path.join(folder, MODULE_FILE))
        return cls(
            module=module,
            model=None,
            inputs=BoundInputs(inputs, manifest["constants"]),
            spec=OutputSpec.from_dict(manifest["output"]),
            receipt=Receipt.from_dict(manifest["receipt"]),
            probe=probe,
        )

    def __str__(self) -> str:
        name = self.receipt.requested.get("model", "model")
        if not self.traced:
            return f"{name}: NOT traced, the eager model answers, because {self.reason}"
        how = "traced and frozen" if self.receipt.frozen else "traced"
        checked = "verified" if self.receipt.verified else "not verified"
        return f"{name}: {how}, {checked} ({self.receipt.checks_summary()}), takes {', '.join(self.input_names)}"

    def table(self) -> Table:
        """The receipt's table."""
        return self.receipt.table()

    def _run_probe(self, folder: str) -> None:
        expected = {name.removeprefix("output."): t for name, t in self._probe.items() if name.startswith("output.")}
        for call in range(1, CALLS_PER_CHECK + 1):
            try:
                seen = run_seeded(lambda inputs: self(**inputs), self._inputs.tensors)
            except Exception as error:  # with a changed manifest it may be put together in any wrong way
                raise ArtifactError(f"{folder}: the loaded trace fails on call {call}: {first_line(error)}") from error
            missing = [name for name in expected if name not in seen]
            if missing or not expected:
                raise ArtifactError(f"{folder}: the probe does not fit the module, which returns {', '.join(seen)}")
            for name, wanted in expected.items():
                error_size, tolerance = largest_error(wanted, seen[name]), tolerance_for(wanted)
                if not error_size <= tolerance:
                    raise ArtifactError(
                        f"{folder}: on call {call} {name} differs from the model's by {error_size:.1e} "
                        f"(tolerance {tolerance:.1e}); trace and save the model again with the versions installed here"
                    )


def trace_model(
    model: torch.nn.Module,
    example_inputs: Mapping[str, Any],
    *,
    input_style: str = "kwargs",
    freeze: bool = True,
    verify: bool = True,
    on_failure: str = "fallback",
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
    inputs = bind_inputs(model, example_inputs)
    expected = eager_answers(model, inputs)
    job = _Job(model, inputs, input_style, freeze, verify, expected)
    try:
        return job.run()
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

    def run(self) -> TracedModel:
        self._refuse_wrong_order()
        self._refuse_random_answers()
        adapter = named_inputs(self.model, self.inputs)
        module = self._trace(adapter)
        traced = self._result(module, adapter.spec, self._receipt(module, adapter.spec))
        if self.verify:
            self.checks = verify(lambda i: traced(**i), self._reference, _config(self.model), self.inputs.tensors)
            self._refuse_differences()
            traced.receipt = replace(traced.receipt, checks=self.checks)
        return traced

    def fallback(self, reason: str) -> TracedModel:
        return self._result(None, None, self._receipt(None, None, reason))

    def _trace(self, adapter: NamedInputs) -> torch.jit.ScriptModule:
        by_name = {"example_kwarg_inputs": self.inputs.tensors}
        by_position = {"example_inputs": tuple(self.inputs.tensors.values())}
        arguments = by_position if self.input_style == "tuple" else by_name
        recorded: list[str] = []
        started = time.perf_counter()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), _record_warnings(recorded):
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
        return self.model(**inputs, **self.inputs.constants)

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


def _warn_of_other_versions(manifest: Mapping[str, Any], folder: str) -> None:
    here = installed_versions()
    for name in ("torch", "intel-extension-for-pytorch"):
        saved = manifest["versions"].get(name)
        if saved != here.get(name):
            logger.warning(
                "%s was saved with %s %s, here is %s",
                folder,
                name,
                saved or "not installed",
                here.get(name, "none"),
            )
    isa = detect_isa()
    missing = [name for name in manifest["isa"] if name not in isa]
    if missing:
        logger.warning("%s was saved on a CPU with %s, which this one lacks", folder, ", ".join(missing))


def _schema(tensor: torch.Tensor) -> dict[str, Any]:
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "example_shape": list(tensor.shape)}


def _config(model: torch.nn.Module) -> Any:
    return getattr(model, "config", None)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name} is {value!r}; choose from {', '.join(choices)}")
