"""A model that does its work many times over, so that a recipe which does it once is faster on any machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.recipes import Build, Request

TIMES = 300


class Repeating(torch.nn.Module):
    """The mean of the same linear layer's output, computed ``TIMES`` times."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 4)

    def forward(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        total = sum(self.linear(values) for _ in range(TIMES))
        return {"logits": total / TIMES}


def make_model(seed: int = 0) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Repeating().eval()


def make_inputs(rows: int = 3) -> dict[str, torch.Tensor]:
    return {"values": torch.linspace(-1, 1, rows * 8).reshape(rows, 8)}


# A thirtieth of the work: far faster, and long enough that what else an answer takes does not count.
FEWER = TIMES // 30


def _answering(change: Callable[[torch.Tensor], torch.Tensor], repeat: int = FEWER) -> Callable[[Request], Build]:
    def build(request: Request) -> Build:
        linear = request.model.linear

        def answer(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            for _ in range(repeat):
                logits = linear(tensors["values"])
            return {"logits": change(logits)}

        return Build(answer, runs="the layer alone")

    return build


def in_two_ways(request: Request) -> Build:
    """The wrong answers, and when they were seen to be wrong, the right ones."""
    return replace(_answering(wrong)(request), otherwise=lambda: _answering(same)(request))


def same(logits: torch.Tensor) -> torch.Tensor:
    return logits


def one_percent_off(logits: torch.Tensor) -> torch.Tensor:
    return logits * 1.01


def wrong(logits: torch.Tensor) -> torch.Tensor:
    return logits + 1.0


def crash(request: Request) -> Build:
    os.abort()


def hang(request: Request) -> Build:
    time.sleep(1000)
    raise AssertionError("it was not ended")


# Fields of recipes by what they do to the answers and the time.
KINDS: dict[str, dict[str, Any]] = {
    "once-fp32": {"build": _answering(same)},
    "twice-fp32": {"build": _answering(same, 2 * TIMES)},
    "coarse-bf16": {"build": _answering(one_percent_off)},
    "wrong-fp32": {"build": _answering(wrong)},
    "ways-fp32": {"build": in_two_ways},
    "crashing-fp32": {"build": crash},
    "hanging-fp32": {"build": hang},
    "lacking-fp32": {"build": crash, "needs": ("no-such-distribution",)},
}


def make_recipes(*names: str) -> list[cpu.Recipe]:
    return [cpu.Recipe(name, "for a test", **KINDS[name]) for name in names]


def mean_of_first(model: Callable[..., Any]) -> float:
    """A metric: with the wrong answers it is another one."""
    return 10.0 + float(model(**make_inputs())["logits"][:, 0].mean())


def failing(model: Callable[..., Any]) -> float:
    raise ValueError("no data")
