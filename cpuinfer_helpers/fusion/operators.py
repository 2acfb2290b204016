"""Operators of a graph as a reader thinks of them: what makes a value, what uses it, who put the operator there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch

# Inside prim:: and aten:: these compute nothing, or only move and cast.
NO_WORK = frozenset(
    f"aten::{name}"
    for name in (
        "size view reshape permute transpose t slice select unsqueeze squeeze expand expand_as contiguous detach to "
        "type_as dropout dropout_ split split_with_sizes chunk unbind flatten clone alias Int ScalarImplicit item "
        "dequantize quantize_per_tensor _autocast_to_reduced_precision _autocast_to_full_precision as_tensor"
    ).split()
)
# What lies between an operator and the one that it works for.
_TRANSPARENT = frozenset(
    f"aten::{name}"
    for name in (
        "dropout dropout_ to type_as detach contiguous dequantize quantize_per_tensor alias "
        "_autocast_to_reduced_precision _autocast_to_full_precision"
    ).split()
)
STOCK_LINEAR = ("mkldnn::_linear_pointwise", "onednn::qlinear_pointwise")
LINEAR = (
    "aten::linear",
    "torch_ipex::ipex_linear",
    "torch_ipex::ipex_MKLSGEMM",
    "ipex_prepack::linear_run",
    "ipex_prepack::mkl_sgemm_run",
    *STOCK_LINEAR,
)
_SPLITS = (
    "aten::split_with_sizes",
    "ipex::split_tensor",
    "aten::split",
    "aten::chunk",
    "aten::tensor_split",
    "prim::ConstantChunk",
)
_SLICES = ("aten::slice", "aten::narrow")
_TAKES_JOINED_QKV = ("ipex::bert_flash_mha",)
# How the source of a traced ("file.py(7): forward") and of a scripted operator ('File "file.py", line 7') begins.
_WRITTEN_IN_PYTHON = re.compile(r'^\s*(\S.*\(\d+\): \w|File "(?!code/__torch__))')


def source(value: Any) -> Any:
    """The node that made a value, casts, dropout and quantisation looked through."""
    node = value.node()
    while node.kind() in _TRANSPARENT:
        node = node.inputsAt(0).node()
    return node


def origin(value: Any) -> str:
    """Name of the value behind casts, dropout and quantisation: two that share it work on the same tensor."""
    while value.node().kind() in _TRANSPARENT:
        value = value.node().inputsAt(0)
    return value.debugName()


def users(value: Any) -> Iterator[Any]:
    """The nodes that use a value."""
    for use in value.uses():
        yield use.user


def real_users(value: Any) -> Iterator[Any]:
    """The nodes that use a value, casts, dropout and quantisation looked through."""
    for user in users(value):
        if user.kind() in _TRANSPARENT:
            yield from real_users(user.output())
        else:
            yield user


def is_linear(node: Any) -> bool:
    """Whether a node is a linear layer, by an operator that may hold nothing else."""
    return node.kind() in LINEAR


def tensor_inputs(node: Any) -> list[Any]:
    """The inputs of a node that are tensors."""
    return [value for value in node.inputs() if isinstance(value.type(), torch._C.TensorType)]


def argument(node: Any, name: str) -> Any:
    """The constant that a node gets as an argument, by the name in its schema; None if it is none or no constant."""
    names = [given.name for given in torch._C.parse_schema(node.schema()).arguments]
    return node.inputsAt(names.index(name)).toIValue() if name in names else None


def made_by_a_pass(node: Any) -> bool:
    """Whether an optimisation put the node into the graph: it has no source in a model's Python then."""
    where = node.sourceRange()
    return not _WRITTEN_IN_PYTHON.match(where) or "cpuinfer_helpers" in where.splitlines()[0]


def joined_layers(node: Any) -> int:
    """How many linear layers an optimisation has joined into this one, 1 if none.

    The joined layer's result is split again, by an operator that no source line of the model has written, or goes as it
    is into an attention kernel that takes queries, keys and values in one piece.
    """
    if not is_linear(node):
        return 1
    following = list(real_users(node.output()))
    if any(user.kind() in _TAKES_JOINED_QKV for user in following):
        return 3
    for user in following:
        if user.kind() in _SPLITS and made_by_a_pass(user):
            return _pieces(user)
    slices = [user for user in following if user.kind() in _SLICES and made_by_a_pass(user)]
    return max(len(slices), 1)


def layer_of(node: Any) -> str | None:
    """Path of the numbered module that a traced node belongs to, such as ``bert.encoder.layer.0``.

    Empty for a node of the model outside numbered modules; None for a node without a path.
    """
    scope = node.scopeName()
    if not scope:
        return None
    numbered = re.match(r"(.*?\.\d+)(?:\.|$)", scope.rpartition("/")[2].removeprefix("__module."))
    return numbered.group(1) if numbered else ""


def contents(partition: Any) -> tuple[str, ...]:
    """Short names of the operators inside a partition, in order."""
    nodes = partition.g("Subgraph").nodes()
    return tuple(short(node.kind()) for node in nodes if not node.kind().startswith("prim::"))


def short(kind: str) -> str:
    """``linear`` for ``aten::linear`` and whatever else is one; other kinds without ``aten::`` and in-place mark."""
    if kind in LINEAR:
        return "linear"
    return kind.removeprefix("aten::").rstrip("_")


def kinds(nodes: Iterable[Any], *wanted: str) -> list[Any]:
    """The nodes of some kinds."""
    return [node for node in nodes if node.kind() in wanted]


def _pieces(split: Any) -> int:
    outputs = list(split.outputs())
    if len(outputs) > 1:
        return len(outputs)
    unpacked = [user for user in users(outputs[0]) if user.kind() == "prim::ListUnpack"]
    return len(list(unpacked[0].outputs())) if unpacked else 2


def gives_tensor(node: Any) -> bool:
    """Whether the first output of a node is a tensor."""
    return isinstance(node.output().type(), torch._C.TensorType)


def parts_of_kind(kind: str) -> tuple[str, ...]:
    """What an operator that no pattern knows does, by its name: ``linear, tanh`` for ``linear_tanh_run``."""
    if kind in LINEAR:
        return ("linear",)
    prepacked = re.fullmatch(r"ipex_prepack::linear_(\w+)_run", kind)
    if prepacked:
        return ("linear", *prepacked.group(1).split("_"))
    if kind in ("ipex::matmul", "ipex::matmul_outtrans"):
        return ("matmul",)
    return () if kind in _SPLITS else (short(kind),)
