"""One trace for each shape, for models of which no single trace gives the answers at every shape."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.errors import ArtifactError
from cpuinfer_helpers.interface.by_shape import Answer, EachShape, Shape
from cpuinfer_helpers.interface.inputs import BoundInputs
from cpuinfer_helpers.interface.outputs import OutputSpec, builder
from cpuinfer_helpers.receipts import Check, Receipt
from cpuinfer_helpers.saving.folders import new_artifact
from cpuinfer_helpers.saving.plain import read
from cpuinfer_helpers.saving.probe import inputs_of, run_probe
from cpuinfer_helpers.saving.tensors import read_module, read_named_tensors, write_module, write_named_tensors
from cpuinfer_helpers.tracing.traced import TracedModel

HOW = "one trace for each shape"


@dataclass(frozen=True)
class ShapeTrace:
    """A trace that was verified at one shape.

    Attributes
    ----------
    module
        The traced module.
    spec
        Structure of its output.
    probe
        The inputs that it was traced with and the model's own answers, by name.
    checks
        The comparisons with the model, all at this shape.
    """

    module: torch.jit.ScriptModule
    spec: OutputSpec
    probe: Mapping[str, torch.Tensor]
    checks: tuple[Check, ...] = ()

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """The inputs that it was traced with."""
        return inputs_of(self.probe)


class TracedEachShape(EachShape, TracedModel):
    """A model with a trace for each shape of its inputs; made by ``trace_model(..., each_shape=True)``.

    A call with a new shape makes a trace, compares it with the eager model on inputs of that very shape, and only then
    answers. Where no trace is right, the eager model answers such calls, with a WARNING. After :meth:`load` there is no
    eager model: then a new shape is an InputError that names the shapes there are.

    Of the traces, the 16 that were called last are kept. PyTorch does not give back all memory of those that are let
    go: 2.5 to 10 MiB of each stay. So no more than 64 are made; after that the eager model answers new shapes, which
    the receipt and a WARNING say. Pad to a few lengths, such as multiples of 32, and that does not happen.
    """

    _kind = "cpuinfer-traced-model-each-shape"
    _shared = (*TracedModel._shared, "_make", "_traces")
    _derived = ("_guard",)

    def __init__(
        self,
        *,
        traces: Mapping[Shape, ShapeTrace],
        make: Callable[[dict[str, torch.Tensor]], ShapeTrace] | None,
        inputs: BoundInputs,
        receipt: Receipt,
        model: Callable[..., Any] | None = None,
        config: Any = None,
    ) -> None:
        first = next(iter(traces.values()))
        super().__init__(
            module=first.module,
            model=model,
            inputs=inputs,
            spec=first.spec,
            receipt=receipt,
            probe=first.probe,
            config=config,
        )
        self._make = make
        self._start({shape: (self._answer_of(trace), trace) for shape, trace in traces.items()})

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write all traces, a manifest and a probe for each to a folder; see :meth:`TracedModel.save`.

        Every trace carries the weights, so the folder is as many times their size as there are shapes.

        Raises
        ------
        ArtifactError
            As for :class:`TracedModel`; and if no shape has a trace any more.
        """
        with self._guard:
            traces = [trace for _, trace in self._traces.values()]
        if not traces:
            raise ArtifactError("the eager model answers for every shape, so there is no trace to save")
        # The first that is written becomes the example of what is loaded.
        manifest = self._manifest(traces[0].inputs) | {"outputs": [trace.spec.to_dict() for trace in traces]}
        with new_artifact(directory, self._kind, manifest) as folder:
            for number, trace in enumerate(traces):
                write_module(trace.module, folder / _module_file(number))
                write_named_tensors(trace.probe, folder / _probe_file(number))
            self._check_written(manifest, folder)
        return Path(directory)

    @classmethod
    def _from_manifest(cls, manifest: Mapping[str, Any], folder: str) -> TracedEachShape:
        traces: dict[Shape, ShapeTrace] = {}
        for number, spec in enumerate(manifest["outputs"]):
            module = read_module(os.path.join(folder, _module_file(number)))
            probe = read_named_tensors(os.path.join(folder, _probe_file(number)))
            trace = ShapeTrace(module, OutputSpec.from_dict(spec), probe)
            traces[tuple(trace.inputs[name].shape for name in manifest["inputs"])] = trace
        inputs = next(iter(traces.values())).inputs
        bound = BoundInputs({name: inputs[name] for name in manifest["inputs"]}, manifest["constants"])
        return cls(
            traces=traces, make=None, inputs=bound, receipt=read(Receipt, manifest["receipt"], "receipt", older=True)
        )

    def _run_probe(self, folder: str) -> None:
        for _, trace in list(self._traces.values()):
            run_probe(self.named_answers, trace.probe, folder)

    def __str__(self) -> str:
        name = self.receipt.requested.get("model", "model")
        return (
            f"{name}: {HOW}, {len(self._traces)} so far ({', '.join(self.shapes)}), "
            f"each verified at its shape, takes {', '.join(self.input_names)}"
        )

    def _made_for(self, inputs: dict[str, torch.Tensor]) -> tuple[Answer, ShapeTrace]:
        trace = self._make(inputs)
        return self._answer_of(trace), trace

    def _answer_of(self, trace: ShapeTrace) -> Answer:
        module, build, names = trace.module, builder(trace.spec), self.input_names
        if self._positional:
            return lambda inputs: build(module(*(inputs[name] for name in names)))
        return lambda inputs: build(module(**inputs))

    def _note(self) -> None:
        """Write into the receipt how many traces there are and what they hold in memory."""
        traces = [trace for _, trace in self._traces.values()]
        megabytes = sum(_weights(trace.module for trace in traces).values()) / 2**20
        evidence = {
            **self.receipt.evidence,
            "traced": HOW,
            **self._shapes_evidence(),
            "weights of all traces": f"{megabytes:.1f} MB; those that several traces share are counted once",
        }
        checks = tuple(check for trace in traces for check in trace.checks) or self.receipt.checks
        self.receipt = replace(self.receipt, evidence=evidence, checks=checks)


def _weights(modules: Any) -> dict[int, int]:
    """Bytes of every tensor that the modules hold, by its address."""
    found: dict[int, int] = {}
    for module in modules:
        constants = [
            node.t("value")
            for node in module.graph.findAllNodes("prim::Constant")
            if isinstance(node.output().type(), torch._C.TensorType)
        ]
        for tensor in (*constants, *module.parameters(), *module.buffers()):
            if not tensor.is_mkldnn:
                found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return found


def _module_file(number: int) -> str:
    return f"model-{number:02}.torchscript.pt"


def _probe_file(number: int) -> str:
    return f"probe-{number:02}.safetensors"
