"""A language model whose calls take at least a time that no machine hides, and recipes that are quicker, or fail."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

import torch
import transformers

from cpuinfer_helpers.generation.backends.eager import RECIPES, EagerStep
from cpuinfer_helpers.generation.step import GenerationRecipe, StepBuild, StepRequest

# Far more than a call of two small layers takes on a busy machine.
SECONDS = 0.08
_EAGER = next(recipe for recipe in RECIPES if recipe.name == "eager-fp32")


class SlowLlama(transformers.LlamaForCausalLM):
    """Sleeps in each call, as long as its ``seconds`` say."""

    seconds = SECONDS

    def forward(self, *arguments: Any, **named: Any) -> Any:
        time.sleep(self.seconds)
        return super().forward(*arguments, **named)


def make_slow_model(seed: int = 0) -> SlowLlama:
    config = transformers.LlamaConfig(
        vocab_size=200,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=200,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SlowLlama(config).eval()


class _WithoutItsMask(EagerStep):
    def _feed(self, ids: Any, mask: Any, positions: Any, state: Any, last: int) -> torch.Tensor:
        return super()._feed(ids, torch.ones_like(mask), positions, state, last)


def _sleeping(request: StepRequest, seconds: float) -> StepBuild:
    build = _EAGER.build(request)
    build.step.model.seconds = seconds
    return build


def _quick(request: StepRequest) -> StepBuild:
    return _sleeping(request, 0.0)


def _slower(request: StepRequest) -> StepBuild:
    return _sleeping(request, 3 * SECONDS)


def _wrong(request: StepRequest) -> StepBuild:
    build = _quick(request)
    return replace(build, step=_WithoutItsMask(build.step.model, build.step.limit))


def _crashing(request: StepRequest) -> StepBuild:
    os.abort()


def _here_only(request: StepRequest) -> StepBuild:
    """Prepared in a child process, and not in the one that asks for it."""
    if "cpuinfer_helpers.processes.worker" not in _main_name():
        raise RuntimeError("not in this process")
    return _quick(request)


def _main_name() -> str:
    import sys

    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else ""


WRITERS = {
    "quick-fp32": GenerationRecipe("quick-fp32", "does not sleep", _quick),
    "slower-fp32": GenerationRecipe("slower-fp32", "sleeps longer", _slower),
    "wrong-fp32": GenerationRecipe("wrong-fp32", "attends to padding", _wrong),
    "crashing-fp32": GenerationRecipe("crashing-fp32", "ends its process", _crashing),
    "lacking-fp32": GenerationRecipe("lacking-fp32", "needs what nobody has", _quick, ("no-such-distribution",)),
    "child-fp32": GenerationRecipe("child-fp32", "works in child processes only", _here_only),
}
