"""What a compiled OpenVINO model with variables does, as it was seen in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from cpuinfer_helpers.generation.matrices import DTYPES
from cpuinfer_helpers.generation.stateful_step import StatefulStep
from cpuinfer_helpers.recipes.backends.openvino import text_of


@dataclass(frozen=True)
class Running:
    """What runs.

    Attributes
    ----------
    weights
        How many products with weights there are, by the dtype of these.
    fused, layers
        In how many layers attention is one operation with its cache, and how many there are.
    evidence
        The same and more, as texts by name.
    """

    weights: dict[str, int]
    fused: int
    layers: int
    evidence: dict[str, str]

    @classmethod
    def of(cls, compiled: Any, layers: int) -> Running:
        """Look at the operations that a compiled model runs, and at its settings.

        Parameters
        ----------
        compiled
            An ``openvino.CompiledModel``.
        layers
            In how many layers it keeps keys and values.
        """
        nodes = compiled.get_runtime_model().get_ordered_ops()
        fused = sum(_kind(node) == "ScaledDotProductAttention" and "MemoryInput" in _inputs(node) for node in nodes)
        group = int(compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE"))
        evidence = {
            "attention fused with its cache": f"{fused} of {layers} layers",
            "dynamic quantisation": f"in groups of {group}" if group else "off: what is multiplied is not rounded",
            "threads": str(compiled.get_property("INFERENCE_NUM_THREADS")),
        }
        return cls(dict(Counter(dtype for node in nodes for dtype in _weights(node))), fused, layers, evidence)

    @property
    def attention(self) -> str:
        """What computes attention."""
        if self.fused == self.layers:
            return "OpenVINO's, one operation with its cache"
        if not self.fused:
            return "OpenVINO's products and softmax"
        return f"OpenVINO's, one operation with its cache in {self.fused} of {self.layers} layers"


def cache_dtype(step: StatefulStep) -> str:
    """In what keys and values are kept: numbers with all their digits are written, read again, and compared.

    The settings of a compiled model do not tell. Asked for BF16 under a hint of FP32 it keeps FP32, asked for FP32
    under a hint of BF16 it keeps BF16, and says what it was asked for.
    """
    state = step.new_state(1, 2)
    step.feed(torch.tensor([[3, 4]]), torch.ones(1, 2, dtype=torch.long), torch.tensor([[0, 1]]), state)
    generator = torch.Generator().manual_seed(0)
    written = [torch.randn(kept.shape, generator=generator) for kept in state.kept()]
    state.write(written)
    found = {_dtype(before, after) for before, after in zip(written, state.kept(), strict=True)}
    return " and ".join(sorted(found))


def _dtype(written: torch.Tensor, read: torch.Tensor) -> str:
    if torch.equal(written, read):
        return "float32"
    names = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    return next((name for name, dtype in names.items() if torch.equal(read.to(dtype).float(), read)), "8 bits or fewer")


def _weights(node: Any) -> Iterator[str]:
    """The dtypes of the matrices that a product is made with."""
    if _kind(node) not in ("FullyConnected", "MatMul"):
        return
    for port in node.inputs()[:2]:
        source = port.get_source_output()
        facts = source.get_node().get_rt_info()
        sizes = source.get_partial_shape()
        if text_of(facts, "layerType") == "Const" and sum(size.get_min_length() > 1 for size in sizes) >= 2:
            stored = DTYPES.get(text_of(facts, "outputPrecisions"), "unknown")
            # Those that are not packed are turned once into what they are multiplied in.
            runs = DTYPES.get(text_of(node.get_rt_info(), "runtimePrecision"), "unknown")
            yield stored if "int" in stored else runs


def _inputs(node: Any) -> list[str]:
    return [_kind(port.get_source_output().get_node()) for port in node.inputs()]


def _kind(node: Any) -> str:
    return text_of(node.get_rt_info(), "layerType")
