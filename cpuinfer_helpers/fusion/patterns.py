"""The fusions that a report looks for. A kernel more is an entry more in :data:`PATTERNS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cpuinfer_helpers.fusion import operators as ops
from cpuinfer_helpers.graph import PARTITIONS

MHA = "multi-head attention"
CONCAT_LINEAR = "concat linear"
LINEAR_ADD = "linear+add"
LINEAR_GELU = "linear+gelu"
ADD_LAYERNORM = "add+layernorm"
ONEDNN_GRAPH = "oneDNN Graph partition"
# Attention that PyTorch has as one operator of its own: nothing fused it, and no pattern matches it.
STOCK_ATTENTION = ("aten::scaled_dot_product_attention", "aten::_scaled_dot_product_flash_attention_for_cpu")


@dataclass(frozen=True)
class Kernel:
    """A fused operator, and how the profiler shows that its fast kernel ran.

    Attributes
    ----------
    node
        Kind of the operator's node.
    parts
        What it does in one, in the order in which an unoptimised graph has it.
    event
        Name of the profiler's event, or a function of the node; empty if it is the node's kind. A ``*`` at the end
        stands for anything.
    matches
        What must be true of the node beside its kind.
    fast
        Event that must be seen inside the kernel's own; empty if there is only one way through the kernel.
    slow
        Events that tell, inside the kernel's own, that its slow branch ran.
    """

    node: str
    parts: tuple[str, ...] | Callable[[Any], tuple[str, ...]]
    event: str | Callable[[Any], str] = ""
    matches: Callable[[Any], bool] = lambda node: True
    fast: str = ""
    slow: tuple[str, ...] = ()

    def event_of(self, node: Any) -> str:
        """Name of the event that shows this node run."""
        return self.event(node) if callable(self.event) else self.event or self.node

    def parts_of(self, node: Any) -> tuple[str, ...]:
        """What this node does in one."""
        return self.parts(node) if callable(self.parts) else self.parts


@dataclass(frozen=True)
class Pattern:
    """Something that fuses.

    Attributes
    ----------
    name
        As the guide calls it.
    kernels
        The operators that it becomes.
    places
        Finds the nodes of an unoptimised graph where it could match.
    missing
        What a model lacks in which there is no such place.
    core
        Its parts, for finding it inside a oneDNN Graph partition.
    """

    name: str
    kernels: tuple[Kernel, ...]
    places: Callable[[Sequence[Any]], list[Any]]
    missing: str
    core: frozenset[str] = frozenset()

    def kernel_of(self, node: Any) -> Kernel | None:
        """The kernel that a node of the executed graph is, or None if it is none of this pattern's."""
        for kernel in self.kernels:
            if kernel.node == node.kind() and kernel.matches(node):
                return kernel
        return None


def _attention(nodes: Sequence[Any]) -> list[Any]:
    return [*ops.kinds(nodes, *STOCK_ATTENTION), *softmax_of_scores(nodes)]


def softmax_of_scores(nodes: Sequence[Any]) -> list[Any]:
    """Every softmax whose result goes into a matrix product, as attention scores do."""
    products = ("aten::matmul", "aten::bmm", "aten::baddbmm", "aten::einsum", "ipex::matmul", "ipex::matmul_outtrans")
    found = ops.kinds(nodes, "aten::softmax", "aten::_softmax")
    return [node for node in found if any(user.kind() in products for user in _beyond_views(node.output()))]


def _beyond_views(value: Any) -> Iterator[Any]:
    for user in ops.users(value):
        if user.kind() in ops.NO_WORK and user.outputsSize() == 1:
            yield from _beyond_views(user.output())
        else:
            yield user


def _linears_on_one_input(nodes: Sequence[Any]) -> list[Any]:
    by_input: dict[str, list[Any]] = {}
    for node in filter(ops.is_linear, nodes):
        by_input.setdefault(ops.origin(node.inputsAt(0)), []).append(node)
    return [group[0] for group in by_input.values() if len(group) > 1]


def _adds_behind_linear(nodes: Sequence[Any]) -> list[Any]:
    adds = ops.kinds(nodes, "aten::add", "aten::add_")
    return [add for add in adds if any(ops.is_linear(ops.source(value)) for value in ops.tensor_inputs(add))]


def _gelus_behind_linear(nodes: Sequence[Any]) -> list[Any]:
    return [node for node in ops.kinds(nodes, "aten::gelu") if ops.is_linear(ops.source(node.inputsAt(0)))]


def _layer_norms_behind_add(nodes: Sequence[Any]) -> list[Any]:
    adds = ("aten::add", "aten::add_")
    return [node for node in ops.kinds(nodes, "aten::layer_norm") if ops.source(node.inputsAt(0)).kind() in adds]


def _linears(nodes: Sequence[Any]) -> list[Any]:
    return [node for node in nodes if ops.is_linear(node) or node.kind() in ("aten::matmul", "aten::bmm")]


def _joined(node: Any) -> bool:
    return ops.joined_layers(node) > 1


def _joined_parts(node: Any) -> tuple[str, ...]:
    return ("linear",) * ops.joined_layers(node)


def _with(name: str, *values: str) -> Callable[[Any], bool]:
    return lambda node: ops.argument(node, name) in values


def _names_of_contents(partition: Any) -> str:
    return "+".join(ops.contents(partition))


_SCORES_EVENTS = {"fast": "dil_addsoftmax", "slow": ("dil_softmax", "aten::softmax")}
# Without AVX512 these kernels of IPEX call PyTorch's operators one by one.
_PLAIN_SOFTMAX = ("aten::softmax",)

PATTERNS = (
    Pattern(
        MHA,
        kernels=(
            Kernel(
                "ipex::mha_scores_calc", ("matmul", "div", "add", "softmax"), "dil_mha_scores_calc", **_SCORES_EVENTS
            ),
            Kernel(
                "ipex::mha_scores_calc_v2", ("matmul", "mul", "add", "softmax"), "dil_mha_scores_calc", **_SCORES_EVENTS
            ),
            Kernel(
                "ipex::bert_flash_mha",
                ("matmul", "div", "add", "softmax", "matmul"),
                "dil_bert_flash_mha",
                slow=_PLAIN_SOFTMAX,
            ),
            Kernel(
                "ipex::distil_mha_scores_calc",
                ("div", "matmul", "masked_fill", "softmax"),
                "dil_distil_mha_scores_calc",
                slow=_PLAIN_SOFTMAX,
            ),
            Kernel(
                "ipex::vit_mha_scores_calc",
                ("matmul", "mul", "masked_fill", "softmax"),
                "dil_vit_mha_scores_calc",
                slow=_PLAIN_SOFTMAX,
            ),
            Kernel("ipex::transfree_vit_mha", ("matmul", "mul", "softmax", "matmul"), "dil_transfree_vit_mha"),
            Kernel("ipex::sd_flash_mha", ("scaled_dot_product_attention",), "dil_sd_flash_mha*", slow=_PLAIN_SOFTMAX),
        ),
        places=_attention,
        missing="neither a softmax before a matrix product nor scaled_dot_product_attention",
        core=frozenset({"matmul", "softmax"}),
    ),
    Pattern(
        CONCAT_LINEAR,
        kernels=tuple(Kernel(kind, _joined_parts, matches=_joined) for kind in ops.LINEAR),
        places=_linears_on_one_input,
        missing="no two linear layers share an input",
    ),
    Pattern(
        LINEAR_ADD,
        kernels=(
            Kernel("ipex_prepack::linear_add_run", ("linear", "add")),
            Kernel("ipex_prepack::linear_add_relu_run", ("linear", "add", "relu")),
            Kernel("mkldnn::_linear_pointwise", ("linear", "add"), matches=_with("attr", "add")),
            Kernel("onednn::qlinear_pointwise", ("linear", "add"), matches=_with("binary_post_op", "add", "sum")),
        ),
        places=_adds_behind_linear,
        missing="no add takes the output of a linear layer",
        core=frozenset({"linear", "add"}),
    ),
    Pattern(
        LINEAR_GELU,
        kernels=(
            Kernel("ipex_prepack::linear_gelu_run", ("linear", "gelu")),
            Kernel("mkldnn::_linear_pointwise", ("linear", "gelu"), matches=_with("attr", "gelu")),
            Kernel("onednn::qlinear_pointwise", ("linear", "gelu"), matches=_with("post_op_name", "gelu")),
        ),
        places=_gelus_behind_linear,
        missing="no gelu takes the output of a linear layer",
        core=frozenset({"linear", "gelu"}),
    ),
    Pattern(
        ADD_LAYERNORM,
        kernels=(
            Kernel("ipex::add_layernorm", ("add", "layer_norm"), "dil_add_layernorm", slow=("aten::layer_norm",)),
        ),
        places=_layer_norms_behind_add,
        missing="no layer_norm takes the output of an add",
        core=frozenset({"add", "layer_norm"}),
    ),
    Pattern(
        ONEDNN_GRAPH,
        kernels=(
            Kernel(PARTITIONS[0], ops.contents, "LlgaPartition_*"),
            Kernel(PARTITIONS[1], ops.contents, _names_of_contents),
        ),
        places=_linears,
        missing="neither a linear layer nor a matrix product",
    ),
)
