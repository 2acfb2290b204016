"""What the graph that ran holds: node kinds, weights and the dtypes of its linear layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.machine.switches import native_stderr_logged

onednn_fusion = switches.onednn_fusion

# The profiling executor records shapes on the first calls, and has optimised for them after two to three.
CALLS_UNTIL_OPTIMISED = 3
# Operators that hold others which run as one kernel.
PARTITIONS = ("prim::oneDNNFusionGroup", "ipex::LlgaFusionGroup")
# What decides between an optimised branch and its fallback.
_GUARDS = (
    "prim::oneDNNFusionGuard",
    "prim::TypeCheck",
    "prim::RequiresGradCheck",
    "prim::TensorExprDynamicGuard",
    "ipex::LlgaFusionGuard",
)
_LINEAR_EVENTS = ("aten::linear", "aten::mkldnn_linear", "mkldnn::_linear_pointwise")
_PROFILER_DTYPES = {
    "float": "float32",
    "double": "float64",
    "c10::BFloat16": "bfloat16",
    "c10::Half": "float16",
    "signed char": "int8",
    "unsigned char": "uint8",
}


def executed_graph(
    module: torch.jit.ScriptModule, inputs: Mapping[str, torch.Tensor], calls: int = CALLS_UNTIL_OPTIMISED
) -> torch.Graph:
    """Run a ScriptModule and return the graph that the last call ran.

    Parameters
    ----------
    module
        A traced or scripted module that takes ``inputs`` by name.
    inputs
        Tensors by name.
    calls
        How often to run it before looking. Optimised plans appear after two to three calls, for each thread anew.

    Returns
    -------
    torch.Graph
        The optimised graph of the last call.
    """
    with switches.held(), torch.no_grad():
        for _ in range(calls):
            module(**inputs)
        return torch.jit.last_executed_optimized_graph()


def walk(block: Any) -> Iterator[Any]:
    """Every node of a graph or block, nested blocks and fused sub-graphs included."""
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from walk(inner)
        if node.hasAttribute("Subgraph"):
            yield from walk(node.g("Subgraph"))


def executed_nodes(block: Any) -> Iterator[Node]:
    """The nodes that calls run, in order, each with whether every call runs it exactly once.

    The fallback branch behind a guard is left out, and so is what is inside a partition: both repeat operators that
    already stand there once. Nodes in loops and in branches that the data decide are yielded as not certain.

    Parameters
    ----------
    block
        An executed graph, or a block of it.
    """
    for node in block.nodes():
        yield Node(node, True)
        if node.kind() not in PARTITIONS and node.hasAttribute("Subgraph"):
            yield from executed_nodes(node.g("Subgraph"))
        blocks = list(node.blocks())
        if node.kind() == "prim::If" and node.inputsAt(0).node().kind() in _GUARDS:
            yield from executed_nodes(blocks[0])
        else:
            for inner in blocks:
                yield from (replace(found, certain=False) for found in executed_nodes(inner))


@dataclass(frozen=True)
class Node:
    """A node of an executed graph; ``certain`` tells that every call runs it exactly once."""

    node: Any
    certain: bool

    @property
    def kind(self) -> str:
        """Kind of the node, such as ``aten::linear``."""
        return self.node.kind()


def node_counts(graph: torch.Graph) -> dict[str, int]:
    """How often each kind of node stands in the graph, most frequent first; constants are left out."""
    counts = Counter(node.kind() for node in walk(graph) if node.kind() != "prim::Constant")
    return dict(counts.most_common())


def weight_dtypes(module: torch.jit.ScriptModule, graph: torch.Graph) -> dict[str, int]:
    """Number of weight tensors of each floating or quantised dtype: graph constants and parameters together."""
    constants = [
        node.t("value")
        for node in walk(graph)
        if node.kind() == "prim::Constant" and isinstance(node.output().type(), torch._C.TensorType)
    ]
    tensors = [tensor for tensor in (*constants, *module.parameters()) if tensor.dim() > 0]
    return dict(Counter(_dtype_name(tensor) for tensor in tensors if _is_weight(tensor)).most_common())


def linear_dtypes(module: torch.jit.ScriptModule, inputs: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """How many linear layers ran at each dtype, as the profiler saw the dtype of their first input.

    Fused kernels that have no linear event of their own do not appear.
    """
    with (
        torch.no_grad(),
        native_stderr_logged(),
        profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler,
    ):
        module(**inputs)
    events = (event for event in profiler.profiler.kineto_results.events() if event.name() in _LINEAR_EVENTS)
    names = Counter(str(event.dtypes()[0]) for event in events)
    return {_PROFILER_DTYPES.get(name, name): count for name, count in names.most_common()}


@contextmanager
def jit_deprecations_ignored() -> Iterator[None]:
    """Silence the warning that torch gives from 2.10 on at every use of torch.jit; the course says it once."""
    with switches.warnings_ignored(r".*torch\.jit\..* is deprecated", DeprecationWarning):
        yield


def _is_weight(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.dtype in (torch.int8, torch.uint8, torch.qint8, torch.quint8)


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
