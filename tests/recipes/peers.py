"""What the tests of torch.compile, OpenVINO and ONNX Runtime share: models, inputs, and what must not change."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cpuinfer_helpers.interface.outputs import take_apart


class Rectifier(torch.nn.Module):
    """No transformer: one named input of two or more dimensions, one tensor out."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.second = torch.nn.Linear(8, 64), torch.nn.Linear(64, 3)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(features)))


class LeavesOneOut(torch.nn.Module):
    """Takes an input that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Rectifier()

    def forward(self, features: torch.Tensor, ignored: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"scores": self.inner(features)}


class NoProduct(torch.nn.Module):
    """Nothing in it can be quantised."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.cumsum(1)


def features(rows: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed))


def errors(prepared: Any, model: torch.nn.Module, inputs: dict[str, Any]) -> float:
    """Largest error of any output, as a share of the largest answer."""
    with torch.no_grad():
        wanted = take_apart(model(**inputs))[0]
    seen = take_apart(prepared(**inputs))[0]
    assert seen.keys() == wanted.keys()
    largest = max(tensor.abs().max().item() for tensor in wanted.values())
    return max((seen[name] - tensor).abs().max().item() for name, tensor in wanted.items()) / largest


def process_state() -> dict[str, Any]:
    """Everything global that converting a model with these libraries is known to touch."""
    return {
        "environment": dict(os.environ),
        "logger class": logging.getLoggerClass(),
        "root handlers": list(logging.getLogger().handlers),
        "logging threshold": logging.root.manager.disable,
        "warning filters": list(warnings.filters),
        "threads": torch.get_num_threads(),
        "affinity": os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None,
        "freezing": torch._inductor.config.freezing,
        "gradients": torch.is_grad_enabled(),
        "random state": torch.get_rng_state().tolist(),
    }


@contextmanager
def nothing_changes(model: torch.nn.Module) -> Iterator[None]:
    """The block leaves the process, the model's tensors, attributes and mode as they were."""
    import torch._inductor.config

    before, weights = process_state(), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    places = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    attributes = {name: set(vars(part)) for name, part in model.named_modules()}
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
    yield
    after = process_state()
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    assert not changed, changed
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == places
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert {name: set(vars(part)) for name, part in model.named_modules()} == attributes
    assert not any(part.training for part in model.modules())
    assert getattr(getattr(model, "config", None), "_attn_implementation", None) == attention
