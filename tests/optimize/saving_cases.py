"""Optimized models made by one recipe, without a search, and what is asked of them after they have been loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.compare import RecipeResult
from cpuinfer_helpers.processes.status import SUCCESSFUL
from cpuinfer_helpers.saving.folders import MANIFEST, sha256
from tests.conftest import make_bert, make_inputs

# Batch size, length and padded positions; the example has 2 rows of 12.
SHAPES = ((1, 5, 0), (3, 23, 7), (5, 12, 4))
# Largest error as a share of the largest answer, those of the package itself. INT8 of a model this small, with random
# weights, is coarse: 256 steps for each of few numbers.
TOLERANCE = {"fp32": 1e-4, "bf16": 0.05, "int8": 0.5}


class Tied(torch.nn.Module):
    """Of no library: two names for one weight, and a number that is no parameter."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = torch.nn.Linear(8, 8)
            self.second = torch.nn.Linear(8, 8)
            self.second.weight = self.first.weight
            self.register_buffer("scale", torch.rand(8))
        self.eval()

    def forward(self, values: torch.Tensor, times: int = 1) -> dict[str, torch.Tensor]:
        return {"logits": self.second(torch.tanh(self.first(values))) * self.scale * times}


def values(rows: int = 3) -> dict[str, torch.Tensor]:
    return {"values": torch.linspace(-1, 1, rows * 8).reshape(rows, 8)}


def by_hand(recipe: str | cpu.Recipe, model: torch.nn.Module, inputs: Mapping[str, Any]) -> cpu.OptimizedModel:
    """What optimize() returns when it has chosen this recipe; the figures of the comparison do not matter here."""
    prepared = cpu.prepare(recipe, model, inputs, on_failure="raise")
    names = dict.fromkeys(("eager-fp32", prepared.recipe))
    comparison = cpu.Comparison(
        rows={name: RecipeResult(name, name.rpartition("-")[2], SUCCESSFUL) for name in names},
        model=type(model).__name__,
        inputs={},
        batch_size=1,
        threads=1,
        environment={"measured_at": "2026-01-01"},
    )
    reason = "for a test" if prepared.recipe == "eager-fp32" else None
    return cpu.OptimizedModel(prepared=prepared, comparison=comparison, model=model, reason=reason)


def largest_errors(loaded: Callable[..., Any], model: torch.nn.Module) -> list[float]:
    """As a share of the largest answer, on valid positions: three calls each on other batch sizes, lengths, paddings.

    The answers must be of the model's own class, with the same fields.
    """
    found = []
    for seed, (batch, length, padding) in enumerate(SHAPES):
        inputs = make_inputs(batch, length, padding=padding, seed=seed)
        valid = inputs["attention_mask"].bool()
        with torch.no_grad():
            wanted = model(**inputs)
        for _ in range(3):
            seen = loaded(**inputs)
            assert type(seen) is type(wanted) and seen.keys() == wanted.keys()
            for name, tensor in wanted.items():
                assert seen[name].dtype == tensor.dtype and not seen[name].requires_grad
                error = (seen[name][valid] - tensor[valid]).abs().max() / tensor[valid].abs().max()
                found.append(error.item())
    return found


def read_manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text())


def change_manifest(folder: Path, **entries: Any) -> None:
    (folder / MANIFEST).write_text(json.dumps({**read_manifest(folder), **entries}))


def list_anew(folder: Path, *names: str) -> None:
    """What somebody does who knows the format: the sums fit again."""
    files = read_manifest(folder)["files"] | {name: sha256(folder / name) for name in names}
    change_manifest(folder, files=files)


def load_all(folders: list[str]) -> dict[str, list[float]]:
    """For a process that has not seen them being made."""
    model = make_bert()
    return {Path(folder).name: largest_errors(cpu.load_optimized(folder), model) for folder in folders}
