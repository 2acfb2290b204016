"""TorchScript with stock PyTorch's oneDNN: linear layers packed once, attention and norms fused by oneDNN Graph.

oneDNN Graph compiles for the shapes that it has seen. Left alone with the linear layers, it would pack their weights
anew for each length. So the layers are packed before, for all lengths, and only what has no weights is compiled for
each shape.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from cpuinfer_helpers import graph
from cpuinfer_helpers.errors import first_line
from cpuinfer_helpers.interface.copies import attention_of, cast_copy, with_attention
from cpuinfer_helpers.interface.inputs import BoundInputs
from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.machine.report import no_bf16_kernels
from cpuinfer_helpers.recipes.backends.torchscript import export_trace, load_trace
from cpuinfer_helpers.recipes.base import Build, Recipe, Request, Stored, Tensors
from cpuinfer_helpers.recipes.tools.buckets import Answer, LengthBuckets, with_buckets
from cpuinfer_helpers.recipes.tools.partitions import part_attention_of_other_heads, part_repeated_operands
from cpuinfer_helpers.recipes.tools.rewriting import Rewritten, as_function, pack_linears
from cpuinfer_helpers.tracing.trace import frozen_trace
from cpuinfer_helpers.tracing.traceable import without_loops_over_experts
from cpuinfer_helpers.verification.equality import difference, valid_for
from cpuinfer_helpers.verification.variations import valid_positions, with_padding

logger = logging.getLogger("cpuinfer_helpers")

_RUNS = "ScriptModule, frozen, linear layers packed for oneDNN"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_PARTITION = "prim::oneDNNFusionGroup"
# A shape costs a copy of the graph, no weights: under a megabyte for BERT-base.
_SHAPES_KEPT = 64
# How the library's own exceptions arrive here.
_REFUSALS = (RuntimeError, IndexError, ValueError)
_ANOTHER_ANSWER = "what oneDNN Graph makes of this model does not give its answers"


class PerShape:
    """Runs one graph, compiled apart for each shape of its inputs, with one copy of the weights.

    The first call of a shape runs the graph as it is, which costs little where a shape comes only once: its linear
    layers are packed and fused all the same. The next three calls are slower, while TorchScript looks at the shapes,
    oneDNN Graph compiles, and what it has made is compared with the graph as it is. Seen on BERT-base in BF16 at
    (8, 160), AMD EPYC (Zen 5), without the comparison, which is one more call of the first kind: 260 ms, 300, 330, then
    250; without the first step 300, 330, 250.

    Parameters
    ----------
    module
        The frozen module whose graph it is; runs the shapes of the example.
    example
        Tensors by name, in the order of the graph's inputs.
    weights
        The module's attributes by name, shared by all shapes.
    dtype
        Floating inputs are cast to it.
    way
        How it was made. Where nothing is fused, every shape runs the graph as it is.
    """

    def __init__(
        self,
        module: torch.jit.ScriptModule,
        example: Mapping[str, torch.Tensor],
        weights: Mapping[str, torch.Tensor],
        dtype: torch.dtype,
        way: _Way,
    ) -> None:
        self.way = way
        self._names = tuple(example)
        self._weights = tuple(weights.values())
        self._graph = as_function(module, tuple(weights))
        self._dtype = dtype
        self._example_shape = self._shape_of(example)
        self._module = module
        self._as_it_is = self._new_function()
        # Calls of each function that are over, apart for calls under autocast, of which TorchScript makes another plan.
        self._calls: Counter[tuple[Any, bool]] = Counter()
        # Those of which oneDNN Graph could make nothing.
        self._refused: set[tuple[Any, bool]] = set()
        # None for a shape that has come once.
        self._functions: OrderedDict[tuple[torch.Size, ...], torch.jit.ScriptFunction | None] = OrderedDict()
        self._lock = Lock()

    def __call__(self, tensors: dict[str, torch.Tensor]) -> Tensors:
        """Answer; what the first calls of a shape cost is said above."""
        tensors = {name: self._cast(tensors[name]) for name in self._names}
        if not self.way.fused:
            return self._run_as_it_is(tensors)
        shape = self._shape_of(tensors)
        if shape == self._example_shape:
            return self._run(self._module, lambda: self._module(**tensors), tensors)
        function = self._function(shape)
        if function is not None:
            return self._run(function, lambda: function(*tensors.values(), *self._weights), tensors)
        return self._run_as_it_is(tensors)

    def _run_as_it_is(self, tensors: dict[str, torch.Tensor]) -> Tensors:
        # This switch belongs to the thread.
        with torch.jit.optimized_execution(False):
            return self._as_it_is(*tensors.values(), *self._weights)

    def _run(self, function: Any, call: Callable[[], Tensors], tensors: dict[str, torch.Tensor]) -> Tensors:
        """Call a function: at first, while TorchScript makes its plan, with oneDNN Graph on; later nothing is changed.

        One thread at a time makes a plan, because its calls count together. While another one has the switches, which
        it may for seconds to prepare a model, the graph runs as it is, so that nobody waits for an answer.
        """
        key = (function, torch.is_autocast_enabled("cpu"))
        if key in self._refused:
            return self._run_as_it_is(tensors)
        if self._calls[key] >= graph.CALLS_UNTIL_OPTIMISED:
            return call()
        with switches.held_if_free() as held:
            if not held:
                return self._run_as_it_is(tensors)
            try:
                with _fusion(True):
                    answer = call()
                wanted = self._run_as_it_is(tensors)
                why = None if self._agree(wanted, answer, tensors) else _ANOTHER_ANSWER
            except _REFUSALS as error:
                # Raises what the graph itself raises.
                wanted, why = self._run_as_it_is(tensors), first_line(error)
            if why is None:
                self._calls[key] += 1
                return answer
            shape = ", ".join(f"{name}: {tuple(tensor.shape)}" for name, tensor in tensors.items())
            logger.info("at %s nothing is fused: %s", shape, why)
            self._refused.add(key)
            return wanted

    def _agree(self, wanted: Tensors, seen: Tensors, tensors: dict[str, torch.Tensor]) -> bool:
        """Whether a new plan gives the answers of the graph as it is, which was compared with the model's.

        Not every shape can be compared before it comes, and each has a plan of its own: seen wrong for BEiT at one size
        of image and right at others, torch 2.13.
        """
        valid = valid_positions(tensors)
        precision = "bf16" if self._dtype is torch.bfloat16 else None
        return all(
            difference(answer, seen[name], valid_for(answer, valid), precision).passed
            for name, answer in wanted.items()
        )

    def _function(self, shape: tuple[torch.Size, ...]) -> torch.jit.ScriptFunction | None:
        """The function of a shape; None if this is the first time that it comes."""
        with self._lock:
            if shape not in self._functions:
                self._functions[shape] = None
                if len(self._functions) > _SHAPES_KEPT:
                    _, dropped = self._functions.popitem(last=False)
                    for autocast in (False, True):
                        self._calls.pop((dropped, autocast), None)
                        self._refused.discard((dropped, autocast))
                return None
            self._functions.move_to_end(shape)
            if self._functions[shape] is None:
                self._functions[shape] = self._new_function()
            return self._functions[shape]

    def _new_function(self) -> torch.jit.ScriptFunction:
        return torch._C._create_function_from_graph("forward", self._graph.copy())

    def _shape_of(self, tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Size, ...]:
        return tuple(tensors[name].shape for name in self._names)

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor


@dataclass(frozen=True)
class _Way:
    """One way to make the recipe's graph.

    Attributes
    ----------
    fused
        oneDNN Graph compiles what it can; else the packed linear layers stand alone.
    padded
        The example is traced with padding in it.
    """

    fused: bool = True
    padded: bool = False


_FIRST_WAY = _Way()


def _build_fp32(request: Request) -> Build:
    return _build(request, _DTYPES["fp32"])


def _build_bf16(request: Request) -> Build:
    return _build(request, _DTYPES["bf16"])


def _build(request: Request, dtype: torch.dtype, way: _Way = _FIRST_WAY) -> Build:
    model, inputs = _own_model(request, dtype), _cast(request.inputs, dtype)
    warnings: tuple[str, ...] = ()

    def traced() -> torch.jit.ScriptModule:
        nonlocal warnings
        module, warnings = frozen_trace(model, inputs, padded=way.padded, random_is_constant=request.verified)
        return module

    example = inputs.tensors
    packed = _packed(traced, example, fused=way.fused)
    way = replace(way, fused=packed.fused)
    per_shape = PerShape(packed.module, example, packed.rewritten.weights, dtype, way)
    with _fusion(packed.fused):
        ran = graph.executed_graph(packed.module, example)
        linear_dtypes = graph.linear_dtypes(packed.module, example)
    nodes = graph.node_counts(ran)
    return Build(
        answer=with_buckets(request, per_shape),
        runs=_RUNS,
        module=packed.module,
        evidence=_evidence(packed, nodes.get(_PARTITION, 0), way),
        attention=attention_of(model),
        frozen=True,
        graph_nodes=nodes,
        weight_dtypes=_weight_dtypes(packed.rewritten, graph.weight_dtypes(packed.module, ran)),
        linear_dtypes=linear_dtypes,
        warnings=warnings,
        otherwise=_otherwise(request, dtype, way),
    )


def _otherwise(request: Request, dtype: torch.dtype, way: _Way) -> Callable[[], Build] | None:
    """What is tried next where the answers differ: no fusions, then a trace with padding."""
    if way.fused and not way.padded:
        return lambda: _build(request, dtype, replace(way, fused=False))
    if way.padded or with_padding(request.config, request.inputs.tensors) is None:
        return None
    return lambda: _build(request, dtype, _Way(padded=True))


def _evidence(packed: _Packed, partitions: int, way: _Way) -> dict[str, str]:
    evidence = {
        "linear layers": str(packed.rewritten),
        "oneDNN Graph partitions": f"0: {packed.why_not_fused}" if packed.why_not_fused else str(partitions),
    }
    return {**evidence, "traced with": "padding in the example"} if way.padded else evidence


def _own_model(request: Request, dtype: torch.dtype) -> torch.nn.Module:
    model = with_attention(request.model, "eager")
    without_loops_over_experts(model)
    return model if dtype is torch.float32 else cast_copy(model, dtype)


def _cast(inputs: BoundInputs, dtype: torch.dtype) -> BoundInputs:
    tensors = {n: t.to(dtype) if t.is_floating_point() else t for n, t in inputs.tensors.items()}
    return BoundInputs(tensors, inputs.constants)


@dataclass(frozen=True)
class _Packed:
    """A frozen module, rewritten and called until it runs what oneDNN Graph has made of it, if anything."""

    module: torch.jit.ScriptModule
    rewritten: Rewritten
    why_not_fused: str | None = None

    @property
    def fused(self) -> bool:
        return self.why_not_fused is None


def _packed(
    new_module: Callable[[], torch.jit.ScriptModule], example: Mapping[str, torch.Tensor], *, fused: bool
) -> _Packed:
    module, rewritten = _packed_alone(new_module, example)
    if not fused:
        return _Packed(module, rewritten, _ANOTHER_ANSWER)
    try:
        with _fusion(True):
            graph.executed_graph(module, example)
    except _REFUSALS as error:
        why = f"oneDNN Graph fails: {first_line(error)}"
        logger.info("nothing is fused: %s", why)
        # The plan that fails stays with the module.
        return _Packed(*_packed_alone(new_module, example), why)
    return _Packed(module, rewritten)


def _packed_alone(
    new_module: Callable[[], torch.jit.ScriptModule], example: Mapping[str, torch.Tensor]
) -> tuple[torch.jit.ScriptModule, Rewritten]:
    """A frozen module with packed linear layers, seen to run."""
    try:
        return _rewritten(new_module(), example, fuse_additions=True)
    except RuntimeError as error:
        # The kernel adds equal shapes only, and whether an addition broadcasts is not seen before it runs.
        logger.info("additions are left alone: %s", first_line(error))
        return _rewritten(new_module(), example, fuse_additions=False)


def _rewritten(
    module: torch.jit.ScriptModule, example: Mapping[str, torch.Tensor], *, fuse_additions: bool
) -> tuple[torch.jit.ScriptModule, Rewritten]:
    with torch.no_grad(), _fusion(False):
        part_attention_of_other_heads(module, example)
        rewritten = pack_linears(module, fuse_additions=fuse_additions)
        part_repeated_operands(module.graph)
        module(**example)
    return module, rewritten


@contextmanager
def _fusion(fused: bool) -> Iterator[None]:
    """Run graphs as oneDNN Graph compiles them, or as they are."""
    with switches.onednn_fusion(jit_autocast=False) if fused else torch.jit.optimized_execution(False):
        yield


def _export(request: Request, build: Build, folder: Path) -> dict[str, Any]:
    """Write the trace without packed weights, which cannot be written and take a moment to make."""
    dtype = _DTYPES[request.precision]
    buckets = build.answer if isinstance(build.answer, LengthBuckets) else None
    way = (buckets.answer if buckets else build.answer).way
    model, inputs = _own_model(request, dtype), _cast(request.inputs, dtype)
    module, _ = frozen_trace(model, inputs, padded=way.padded, random_is_constant=request.verified)
    export_trace(request, replace(build, module=module), folder)
    return {"dtype": request.precision, "buckets": buckets.details() if buckets else None, "fused": way.fused}


def _restore(stored: Stored, folder: Path) -> Build:
    dtype = _DTYPES[stored.details["dtype"]]
    inputs = _cast(stored.inputs, dtype)
    packed = _packed(lambda: load_trace(folder), inputs.tensors, fused=stored.details.get("fused", True))
    way = _Way(packed.fused)
    answer: Answer = PerShape(packed.module, inputs.tensors, packed.rewritten.weights, dtype, way)
    if stored.details["buckets"] is not None:
        answer = LengthBuckets.from_details(answer, stored.details["buckets"], inputs.tensors, stored.outputs)
    return Build(answer, runs=_RUNS, module=packed.module)


def _weight_dtypes(rewritten: Rewritten, others: Mapping[str, int]) -> dict[str, int]:
    packed = Counter(str(weight.dtype).removeprefix("torch.") for weight in rewritten.weights.values())
    return dict((packed + Counter(others)).most_common())


def _no_onednn() -> str | None:
    return None if torch.backends.mkldnn.is_available() else "this build of PyTorch has no oneDNN"


RECIPES = (
    Recipe(
        "onednn-graph-fp32",
        "traced, linear layers packed, the rest by oneDNN Graph",
        _build_fp32,
        obstacle=_no_onednn,
        export=_export,
        restore=_restore,
    ),
    Recipe(
        "onednn-graph-bf16",
        "the same with weights and activations in BF16",
        _build_bf16,
        obstacle=lambda: _no_onednn() or no_bf16_kernels(),
        export=_export,
        restore=_restore,
    ),
)
