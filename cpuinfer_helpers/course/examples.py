"""One small module for each pattern, with nothing in it that another pattern could take."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from cpuinfer_helpers.fusion import patterns
from cpuinfer_helpers.machine import switches

BATCH, LENGTH, WIDTH, HEADS = 2, 16, 64, 2
_MASKED = -10_000.0


class Attention(torch.nn.Module):
    """Attention over heads that are there already: products, scale, additive mask, softmax."""

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Attend; all inputs but the mask are (batch, heads, length, width of a head)."""
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(query.size(-1))
        return torch.matmul(torch.softmax(scores + mask, dim=-1), value)


class ThreeLinears(torch.nn.Module):
    """Three linear layers on one input, as queries, keys and values are made."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Multiply the three outputs."""
        return self.query(hidden) * self.key(hidden) * self.value(hidden)


class LinearAdd(torch.nn.Module):
    """A linear layer and an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Add another value to the layer's output."""
        # IPEX adds in place: into the caller's tensor if the other value were an input as it came, and into the
        # linear layer's own input, with wrong results in FP32, if it were that.
        return self.dense(hidden) + torch.tanh(hidden)


class LinearGelu(torch.nn.Module):
    """A linear layer and the exact GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = torch.nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Activate the layer's output."""
        return torch.nn.functional.gelu(self.dense(hidden))


class AddLayerNorm(torch.nn.Module):
    """An addition with no linear layer before it, and a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(WIDTH)

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """Normalise the sum."""
        return self.norm(hidden + residual)


class FeedForward(torch.nn.Module):
    """Linear, GELU, linear, addition: what oneDNN Graph makes partitions of."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = LinearGelu(), torch.nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Run the feed-forward half of an encoder layer."""
        return self.second(self.first(hidden)) + hidden


@dataclass(frozen=True)
class Example:
    """A module that shows one pattern.

    Attributes
    ----------
    module
        Makes it, with random weights.
    shapes
        Shapes of its floating inputs by name.
    """

    module: Callable[[], torch.nn.Module]
    shapes: Mapping[str, tuple[int, ...]]

    def make(self, dtype: torch.dtype, seed: int = 0) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
        """The module in FP32 and in evaluation mode, and inputs of a dtype; the same for the same seed."""
        with switches.random_state_kept():
            torch.manual_seed(seed)
            module = self.module().eval()
            inputs = {name: torch.randn(shape).to(dtype) for name, shape in self.shapes.items()}
        if "mask" in inputs:
            padding = torch.arange(LENGTH) >= LENGTH - 4
            inputs["mask"] = torch.zeros_like(inputs["mask"]).masked_fill(padding, _MASKED)
        return module, inputs


_HIDDEN = (BATCH, LENGTH, WIDTH)
_HEADS = (BATCH, HEADS, LENGTH, WIDTH // HEADS)

PATTERN_EXAMPLES = {
    patterns.MHA: Example(Attention, {"query": _HEADS, "key": _HEADS, "value": _HEADS, "mask": (BATCH, 1, 1, LENGTH)}),
    patterns.CONCAT_LINEAR: Example(ThreeLinears, {"hidden": _HIDDEN}),
    patterns.LINEAR_ADD: Example(LinearAdd, {"hidden": _HIDDEN}),
    patterns.LINEAR_GELU: Example(LinearGelu, {"hidden": _HIDDEN}),
    patterns.ADD_LAYERNORM: Example(AddLayerNorm, {"hidden": _HIDDEN, "residual": _HIDDEN}),
    patterns.ONEDNN_GRAPH: Example(FeedForward, {"hidden": _HIDDEN}),
}
