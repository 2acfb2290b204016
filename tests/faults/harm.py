"""Ways to do harm: children that wait to be killed, recipes that need too much, a disk that is full."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.interface.adapter import named_inputs
from cpuinfer_helpers.recipes import Build

MIB = 2**20
WAIT_S = 90.0
BYSTANDERS = ("torchscript-fp32", "eager-bf16")


class Layers(torch.nn.Module):
    """An embedding and two layers: large enough that its files can be cut at every tenth, and quick to load."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embed = torch.nn.Embedding(50, 16)
            self.inner = torch.nn.Linear(16, 64)
            self.outer = torch.nn.Linear(64, 4)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = torch.tanh(self.inner(self.embed(input_ids)))
        return {"logits": self.outer(hidden) * attention_mask[..., None]}


def example(rows: int = 2) -> dict[str, torch.Tensor]:
    ids = torch.arange(rows * 12).reshape(rows, 12) % 50
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not appear"
        time.sleep(0.01)


def sleep_after_writing(marker: Path) -> None:
    """Tell who this is, and do nothing until somebody ends this process."""
    written = marker.with_suffix(".part")
    written.write_text(str(os.getpid()))
    written.rename(marker)
    time.sleep(300)


def kill_at(marker: Path) -> None:
    """From outside, as an administrator or the system would."""
    wait_for(marker)
    os.kill(int(marker.read_text()), signal.SIGKILL)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk that is full when a file has this size: writing more is an error, for root as well."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def recipe(name: str, build: Callable[..., Build]) -> cpu.Recipe:
    return cpu.Recipe(name, "for a test", build)


def recipes_in_trouble(folder: Path) -> list[str | cpu.Recipe]:
    def killed_preparing(request: Any) -> Build:
        sleep_after_writing(folder / "preparing")

    def killed_measuring(request: Any) -> Build:
        adapter = named_inputs(request.model, request.inputs)

        def answer(tensors: dict[str, torch.Tensor]) -> Any:
            if (folder / "now").exists():
                sleep_after_writing(folder / "measuring")
            return adapter.run_model(tensors)

        return Build(answer, runs="the eager model, until it is killed")

    def too_large(request: Any) -> Build:
        limit = psutil.Process().memory_info().vms + 512 * MIB
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        return Build(lambda tensors: {"logits": torch.ones(2**30)}, runs="more than there is")

    return [
        recipe("too-large-fp32", too_large),
        recipe("killed-preparing-fp32", killed_preparing),
        BYSTANDERS[0],
        recipe("killed-measuring-fp32", killed_measuring),
        BYSTANDERS[1],
    ]
