"""Models whose graphs end the process if oneDNN Graph is given them as they are; prints what came of each, as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import torch

import cpuinfer_helpers as cpu

Tensor = torch.Tensor


class Broadcast(torch.nn.Module):
    """A tensor that is broadcast and comes more than once: (rows, 4, 2, 16, 16) with (rows, 4, 1, 16, 16)."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, scores, weights):
        return {"answer": self.function(scores, weights)}


class Attention(torch.nn.Module):
    """Attention whose values have another width than its queries and keys."""

    def forward(self, query, key, value, mask=None):
        scores = query.matmul(key.transpose(-1, -2)) / 5.6
        scores = scores if mask is None else scores + mask
        mixed = torch.softmax(scores, dim=-1).matmul(value)
        return {"answer": mixed.permute(0, 2, 1, 3).contiguous()}


BROADCAST = {
    "twice added": lambda x, m: (x + m) + m,
    "scaled, then added": lambda x, m: (x * m) + m,
    "divided twice": lambda x, m: (x / m) / m,
    "three times": lambda x, m: ((x + m) * m).relu() + m,
    "far apart": lambda x, m: torch.tanh(torch.relu(x * m)).exp() * m,
    "as the first operand": lambda x, m: m + (m * x),
}
# Width of queries and keys, of values; length of queries, of keys.
ATTENTION = ((32, 4, 160, 8), (32, 16, 16, 16), (64, 32, 8, 8), (32, 64, 16, 16), (32, 32, 24, 12))


def examples(name: str, rows: int) -> tuple[torch.nn.Module, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(rows)
    drawn = lambda *shape: torch.rand(*shape, generator=generator) + 0.5  # noqa: E731
    if name in BROADCAST:
        return Broadcast(BROADCAST[name]), {"scores": drawn(rows, 4, 2, 16, 16), "weights": drawn(rows, 4, 1, 16, 16)}
    width, of_values, queries, keys = ATTENTION[int(name)]
    inputs = {
        "query": drawn(rows, 8, queries, width),
        "key": drawn(rows, 8, keys, width),
        "value": drawn(rows, 8, keys, of_values),
    }
    return Attention(), inputs


def outcome(recipe: str, name: str) -> list:
    """Why it was not prepared, the largest error as a share of the largest answer, and what was fused."""
    model, inputs = examples(name, 2)
    prepared = cpu.prepare(recipe, model.eval(), inputs, verify=False)
    largest = 0.0
    for rows in (2, 3, 2):
        model, inputs = examples(name, rows)
        wanted = model(**inputs)["answer"]
        for _ in range(4):
            error = (prepared(**inputs)["answer"] - wanted).abs().max() / wanted.abs().max()
            largest = max(largest, error.item())
    return [prepared.reason, largest, prepared.receipt.evidence["oneDNN Graph partitions"]]


if __name__ == "__main__":
    print("SEEN", json.dumps({name: outcome(sys.argv[1], name) for name in sys.argv[2:]}))
