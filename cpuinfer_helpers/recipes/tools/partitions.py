"""Keep from oneDNN Graph what it compiles into a program that ends the process.

Its faults do not raise: they write beyond their memory. So what it must not see together is parted here, by a view of
the same tensor that it has no operator for, before it looks at the graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from cpuinfer_helpers.machine.versions import release_of
from cpuinfer_helpers.recipes.tools.rewriting import as_function

# Element by element, of two tensors.
_BINARY = ("aten::add", "aten::sub", "aten::mul", "aten::div")
_PRODUCT = "aten::matmul"
# The most operators that stand between the two products of an attention: scale, mask, softmax and what copies.
_FARTHEST = 8
# Attention whose values are narrower than its keys is computed right by 2.13; those in between were not tried.
_OTHER_HEADS_ARE_RIGHT = (2, 13)


def part_repeated_operands(graph: torch.Graph) -> int:
    """Give every use of a value after the first in sums, products and quotients of two tensors a view of its own.

    A tensor that is broadcast and comes twice in one partition, as in ``(scores + mask) + mask``, ends the process with
    a segmentation fault: seen with torch 2.8 and 2.13, for Swin v2.

    Returns
    -------
    int
        Uses that were given one.
    """
    seen: set[str] = set()
    parted = 0
    for node in _nodes(graph, *_BINARY):
        for number, value in enumerate(list(node.inputs())[:2]):
            # A constant may come as often as it likes; and a number in a tensor, of any dtype, is one.
            if not _is_tensor(value) or value.node().kind() == "prim::Constant":
                continue
            if value.debugName() in seen:
                node.replaceInput(number, _view(graph, value, node))
                parted += 1
            seen.add(value.debugName())
    return parted


def part_attention_of_other_heads(module: torch.jit.ScriptModule, example: Mapping[str, torch.Tensor]) -> int:
    """Part the products of attention whose values are of another width than its queries and keys.

    oneDNN Graph takes them for equal: with torch 2.8 it fails or writes beyond the answer, seen for Perceiver.

    Parameters
    ----------
    module
        Traced and frozen, never called.
    example
        Tensors by name, in the order of the graph's inputs.

    Returns
    -------
    int
        Attentions that were parted.
    """
    if release_of(torch.__version__)[:2] >= _OTHER_HEADS_ARE_RIGHT:
        return 0
    products = _nodes(module.graph, _PRODUCT)
    pairs = list(_attentions(products))
    if not pairs:
        return 0
    widths = _widths(module, example, pairs)
    other = [second for (_, second), (query, value) in zip(pairs, widths, strict=True) if query != value]
    for number in other:
        node = products[number]
        node.replaceInput(0, _view(module.graph, _input(node, 0), node))
    return len(other)


def _nodes(graph: torch.Graph, *kinds: str) -> list[Any]:
    return [node for kind in kinds for node in graph.findAllNodes(kind)]


def _view(graph: torch.Graph, value: Any, before: Any) -> Any:
    node = graph.create("aten::alias", [value], 1)
    node.output().setType(torch._C.TensorType.get())
    node.insertBefore(before)
    return node.output()


def _attentions(products: list[Any]) -> Iterator[tuple[int, int]]:
    """Numbers of the products of which the second takes a softmax of the first."""
    numbers = {node.output().debugName(): number for number, node in enumerate(products)}
    for second, node in enumerate(products):
        first = _first_product(_input(node, 0), numbers)
        if first is not None:
            yield first, second


def _first_product(value: Any, numbers: Mapping[str, int]) -> int | None:
    """The nearest product before a value, if there is a softmax between them."""
    reached, softmax = [value], False
    for _ in range(_FARTHEST):
        found = next((numbers[value.debugName()] for value in reached if value.debugName() in numbers), None)
        if found is not None:
            return found if softmax else None
        before = [value.node() for value in reached]
        softmax = softmax or any(node.kind() == "aten::softmax" for node in before)
        tensors = (value for node in before for value in node.inputs() if _is_tensor(value))
        reached = list({value.debugName(): value for value in tensors}.values())
    return None


def _input(node: Any, number: int) -> Any:
    return list(node.inputs())[number]


def _is_tensor(value: Any) -> bool:
    return value.type().isSubtypeOf(torch._C.TensorType.get())


def _widths(
    module: torch.jit.ScriptModule, example: Mapping[str, torch.Tensor], pairs: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Last sizes of the queries and of the values of each attention, seen on the example."""
    graph = as_function(module, ())
    products = _nodes(graph, _PRODUCT)
    wanted = [value for first, second in pairs for value in (_input(products[first], 0), _input(products[second], 1))]
    together = graph.insertNode(graph.create("prim::ListConstruct", wanted, 1))
    together.output().setType(torch._C.ListType.ofTensors())
    for _ in list(graph.outputs()):
        graph.eraseOutput(0)
    graph.registerOutput(together.output())
    torch._C._jit_pass_dce(graph)
    seen = iter(torch._C._create_function_from_graph("widths", graph)(*example.values()))
    return [(query.shape[-1], value.shape[-1]) for query, value in zip(seen, seen, strict=True)]
