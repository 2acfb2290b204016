"""Rewrite the graph of a frozen trace: linear layers packed once for oneDNN, with what follows them fused in.

The kernels are those that PyTorch has for torch.compile. They take any batch and length, so one packed copy of the
weights serves them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cpuinfer_helpers.errors import RecipeError

_PACKED_LINEAR = "mkldnn::_linear_pointwise"
_TENSOR = torch._C.TensorType.get()
_SCALARS = torch._C.ListType(torch._C.OptionalType(torch._C.NumberType.get()))
# A head with a few outputs gains nothing from packing.
_FEWEST_OUTPUTS = 16


@dataclass(frozen=True)
class Rewritten:
    """What a rewrite has changed, and the weights that the graph now takes.

    Attributes
    ----------
    weights
        The packed weights by attribute name. They are opaque oneDNN tensors.
    packed, concatenated, with_gelu, with_add
        Linear layers packed; groups that read the same input made one; linear layers with a GELU or an addition fused.
    """

    weights: dict[str, torch.Tensor]
    packed: int
    concatenated: int
    with_gelu: int
    with_add: int

    def __str__(self) -> str:
        return (
            f"{self.packed} packed, {self.concatenated} of them several in one, "
            f"{self.with_gelu} with GELU, {self.with_add} with addition"
        )


def pack_linears(module: torch.jit.ScriptModule, *, fuse_additions: bool = True) -> Rewritten:
    """Rewrite a frozen module's graph in place, before its first call.

    Parameters
    ----------
    module
        Traced and frozen, never called: the executor keeps the first graph that it has seen.
    fuse_additions
        Fuse an addition whose other side is no constant into the linear layer before it. Both sides must have the same
        shape; the kernel refuses others when it runs.

    Returns
    -------
    Rewritten
    """
    graph = module.graph
    concatenated = sum(_concatenate(graph, group) for group in _sharing_input(graph))
    weights: dict[str, torch.Tensor] = {}
    fused: list[str] = []
    for node in _packable(graph):
        name = f"packed_weight_{len(weights)}"
        weights[name] = _pack(_weight(node))
        module._c._register_attribute(name, _TENSOR, weights[name])
        fused.append(_replace(graph, node, name, fuse_additions))
    torch._C._jit_pass_dce(graph)
    torch._C._jit_pass_lint(graph)
    return Rewritten(weights, len(weights), concatenated, fused.count("gelu"), fused.count("add"))


def as_function(module: torch.jit.ScriptModule, weights: Sequence[str]) -> torch._C.Graph:
    """A copy of a module's graph that takes its attributes as further inputs instead of the module itself.

    Raises
    ------
    RecipeError
        If it has others than these, which freezing leaves where calls write to them.
    """
    graph = module.graph.copy()
    for name in weights:
        lifted = graph.addInput(name)
        lifted.setType(_TENSOR)
        for node in [node for node in graph.findAllNodes("prim::GetAttr") if node.s("name") == name]:
            node.output().replaceAllUsesWith(lifted)
            node.destroy()
    left = [use.user.s("name") for use in next(iter(graph.inputs())).uses() if use.user.kind() == "prim::GetAttr"]
    if left:
        raise RecipeError(f"calls of the model write into {left[0]}, which the graphs of several shapes cannot share")
    graph.eraseInput(0)
    torch._C._jit_pass_lint(graph)
    return graph


def _packable(graph: torch.Graph) -> list[Any]:
    return [
        node
        for node in graph.findAllNodes("aten::linear")
        if _weight(node) is not None and _weight(node).shape[0] >= _FEWEST_OUTPUTS
    ]


def _weight(node: Any) -> torch.Tensor | None:
    """The weight of a linear node if it is a constant."""
    return list(node.inputs())[1].toIValue()


def _sharing_input(graph: torch.Graph) -> list[list[Any]]:
    """Linear nodes that read the same value, as queries, keys and values do."""
    groups: dict[str, list[Any]] = {}
    for node in _packable(graph):
        value, _, bias = node.inputs()
        if isinstance(bias.toIValue(), torch.Tensor):
            groups.setdefault(value.debugName(), []).append(node)
    return [group for group in groups.values() if len(group) > 1]


def _concatenate(graph: torch.Graph, nodes: Sequence[Any]) -> bool:
    """Make one linear node of several that read the same input, and split its output."""
    weights = [_weight(node).detach() for node in nodes]
    biases = [list(node.inputs())[2].toIValue().detach() for node in nodes]
    insert = _Inserter(graph, nodes[0])
    value = next(iter(nodes[0].inputs()))
    inputs = [value, insert.constant(torch.cat(weights)), insert.constant(torch.cat(biases))]
    joined = insert.node("aten::linear", inputs, _TENSOR)
    sizes = [insert.constant(weight.shape[0]) for weight in weights]
    size_list = insert.node("prim::ListConstruct", sizes, torch._C.ListType.ofInts())
    split_inputs = [joined, size_list, insert.constant(-1)]
    parts = insert.node("aten::split_with_sizes", split_inputs, torch._C.ListType.ofTensors())
    for node, part in zip(nodes, insert.unpacked(parts, len(nodes)), strict=True):
        node.output().replaceAllUsesWith(part)
    for node in nodes:
        node.destroy()
    return True


def _pack(weight: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)


def _replace(graph: torch.Graph, node: Any, weight_name: str, fuse_additions: bool) -> str:
    """Put the packed kernel in place of a linear node and of what can be fused into it; returns what that was."""
    value, _, bias = node.inputs()
    follower, kind, other = _follower(node, fuse_additions)
    last = follower or node
    insert = _Inserter(graph, last)
    module = next(iter(graph.inputs()))
    weight = insert.node("prim::GetAttr", [module], _TENSOR, name=weight_name)
    if kind == "add":
        inputs = [value, other, weight, bias, insert.constant("add")]
    else:
        algorithm = list(follower.inputs())[1] if kind == "gelu" else insert.constant("")
        scalars = insert.node("prim::ListConstruct", [], _SCALARS)
        inputs = [value, weight, bias, insert.constant(kind), scalars, algorithm]
    last.output().replaceAllUsesWith(insert.node(_PACKED_LINEAR, inputs, _TENSOR))
    if follower is not None:
        follower.destroy()
    node.destroy()
    return kind


def _follower(node: Any, fuse_additions: bool) -> tuple[Any, str, Any]:
    """The one node that uses a linear's output, if it can be fused: the node, its kind, the addition's other side."""
    output = node.output()
    uses = [use.user for use in output.uses()]
    if len(uses) == 1 and uses[0].kind() == "aten::gelu":
        return uses[0], "gelu", None
    if len(uses) == 1 and fuse_additions and uses[0].kind() == "aten::add":
        left, right, alpha = uses[0].inputs()
        other = right if left.debugName() == output.debugName() else left
        if alpha.toIValue() == 1 and other.node().kind() != "prim::Constant":
            return uses[0], "add", other
    return None, "none", None


class _Inserter:
    """Inserts constants and nodes in front of one node."""

    def __init__(self, graph: torch.Graph, before: Any) -> None:
        self.graph, self.before = graph, before

    def constant(self, value: Any) -> Any:
        self.graph.setInsertPoint(self.before)
        return self.graph.insertConstant(value)

    def node(self, kind: str, inputs: Sequence[Any], output_type: Any, *, name: str | None = None) -> Any:
        node = self.graph.create(kind, list(inputs), 1)
        if name is not None:
            node.s_("name", name)
        node.output().setType(output_type)
        node.insertBefore(self.before)
        return node.output()

    def unpacked(self, tensors: Any, count: int) -> list[Any]:
        node = self.graph.create("prim::ListUnpack", [tensors], count)
        node.insertBefore(self.before)
        outputs = list(node.outputs())
        for output in outputs:
            output.setType(_TENSOR)
        return outputs
