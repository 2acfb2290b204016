"""Trace, prepare and call in many threads at once while another one trains; what goes wrong is counted."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch._dynamo.config
import torch._functorch.vmap
import torch._inductor.config

import cpuinfer_helpers as cpu
from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.recipes import get_recipe
from tests.conftest import make_bert, make_inputs

RECIPES = (
    "eager-bf16",
    "torchscript-fp32",
    "onednn-graph-fp32",
    "onednn-graph-bf16",
    "openvino-fp32",
    "onnxruntime-fp32",
    "bettertransformer-fp32",
)
# Takes long.
COMPILED = ("compile-fp32",)
# These change all else that is made in their process, so they have one of their own.
IPEX = ("ipex-fp32", "ipex-bf16")
SHAPES = tuple((batch, length) for batch in (1, 2, 3) for length in (4, 7, 8, 12, 16, 19, 24, 32))
# FP32 kernels add in another order, BF16 has 8 bits; the answers are of the size of 0.1 to 1.
_LARGEST_ERRORS = {"fp32": 1e-4, "bf16": 3e-2}


class Marked(torch.autograd.Function):
    """Doubles, with a backward that can be told from autograd's own."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return 200 * gradient


@dataclass
class Soak:
    """What threads did, how often, and what went wrong."""

    done: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    turn_over: Callable[[], Any] = lambda: None

    def __post_init__(self) -> None:
        self.model, self.reference = make_bert(), make_bert()
        self.example = make_inputs(2, 12)
        with torch.no_grad():
            self.cases = [self._case(batch, length) for batch, length in SHAPES]

    def _case(self, batch: int, length: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        inputs = make_inputs(batch, length, seed=batch * 100 + length)
        return inputs, self.reference(**inputs).start_logits

    def ways(self, recipes: Sequence[str] = RECIPES) -> dict[str, Callable[[], Any]]:
        """What can be made of the model on this stack, by name."""
        ways = {
            "trace": lambda: cpu.trace_model(self.model, self.example),
            "each shape": lambda: cpu.trace_model(self.model, self.example, each_shape=True),
        }
        for name in recipes:
            if get_recipe(name).can_run:
                ways[name] = lambda name=name: cpu.prepare(name, self.model, self.example)
        return ways

    def turn(self, name: str, make: Callable[[], Any]) -> None:
        """Make a model in one way and call it with every shape."""
        started, largest = time.perf_counter(), _LARGEST_ERRORS["bf16" if name.endswith("bf16") else "fp32"]
        try:
            made = make()
            if made.reason:
                self.faults.append(f"{name} fell back: {made.reason}")
            for inputs, wanted in self.cases:
                error = (made(**inputs).start_logits - wanted).abs().max().item()
                if not error <= largest:
                    self.faults.append(f"{name} is wrong by {error:.1e} at {tuple(wanted.shape)}")
                if self.stop.is_set():
                    return
        except Exception as error:  # any is a fault that is to be shown
            self.faults.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
        self.done[name] += 1
        self.seconds[name] += time.perf_counter() - started

    def train(self, over: threading.Event) -> None:
        """Train with a custom backward and look at each gradient; use ``torch.vmap``."""
        while not over.is_set():
            x = torch.ones(4, requires_grad=True)
            value = Marked.apply(x)
            value.sum().backward()
            if x.grad.unique().tolist() != [200.0] or value.tolist() != [2.0] * 4:
                self.faults.append(f"a backward was lost: the gradient is {x.grad.tolist()}")
            if torch.vmap(torch.sin)(torch.zeros(3)).tolist() != [0.0] * 3:
                self.faults.append("torch.vmap is wrong")
            self.done["training steps"] += 1
            time.sleep(0.001)

    def run(self, ways: Mapping[str, Callable[[], Any]], threads: int, turns: Mapping[str, int]) -> None:
        """Go through the ways in an order that mixes them, each so many times, in so many threads."""
        names = [name for name in ways for _ in range(turns[name])]
        random.Random(0).shuffle(names)
        left = iter(names)
        guard = threading.Lock()

        def work() -> None:
            while not self.stop.is_set():
                with guard:
                    name = next(left, None)
                if name is None:
                    return
                self.turn(name, ways[name])
                self.turn_over()

        over = threading.Event()
        trainer = threading.Thread(target=self._guarded, args=(self.train, over))
        workers = [threading.Thread(target=work) for _ in range(threads)]
        try:
            for thread in (trainer, *workers):
                thread.start()
            for thread in workers:
                thread.join()
        except KeyboardInterrupt:
            self.stop.set()
            raise
        finally:
            for thread in workers:
                thread.join()
            over.set()
            trainer.join()

    def _guarded(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            function(*arguments)
        except Exception as error:
            self.faults.append(f"training: {type(error).__name__}: {error}")


def state() -> dict[str, Any]:
    """What the whole process shares, or this thread has, and nothing of ours may change for good."""
    gc.collect()
    masks = sys.modules.get("transformers.masking_utils")
    return {
        "stdout, stderr": (sys.stdout, sys.stderr),
        "logging": (logging.root.manager.disable, list(logging.root.handlers), logging.getLoggerClass()),
        "isEnabledFor": logging.Logger.isEnabledFor,
        "loggers": _loggers(),
        "environment": {name: v for name, v in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "working directory": os.getcwd(),
        "file descriptors": _descriptors(),
        "signal handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "hooks": (sys.excepthook, threading.excepthook, sys.displayhook, sys.getrecursionlimit()),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "intra-op threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "CPUs": os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None,
        "Python threads": sorted(thread.name for thread in threading.enumerate()),
        "memory allocator": switches._memory_kept._count,
        "random state": hash(torch.get_rng_state().numpy().tobytes()),
        "Python's random state": hash((random.getstate(), np.random.get_state()[1].tobytes())),
        "Function.apply": vars(torch.autograd.Function)["apply"],
        "vmap": torch._functorch.vmap._flat_vmap,
        "masks": getattr(masks, "_vmap_expansion_sdpa", None),
        "compiler": (torch._dynamo.config.get_config_copy(), torch._inductor.config.get_config_copy()),
        **_settings_of_torch(),
    }


def _settings_of_torch() -> dict[str, Any]:
    autocast = torch._C._jit_set_autocast_mode(True)
    torch._C._jit_set_autocast_mode(autocast)
    return {
        "JIT switches": (torch.jit.onednn_fusion_enabled(), autocast, torch._C._get_graph_executor_optimize()),
        "tracing": torch.jit.is_tracing(),
        "default dtype": torch.get_default_dtype(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": (
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
        ),
        "backends": (
            torch.backends.mkldnn.enabled,
            torch.backends.mha.get_fastpath_enabled(),
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
        ),
    }


def _loggers() -> dict[str, Any]:
    loggers = logging.root.manager.loggerDict.items()
    return {
        name: (log.level, log.propagate, log.disabled, list(log.handlers), list(log.filters))
        for name, log in list(loggers)
        if isinstance(log, logging.Logger)
    }


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two states, and no more of it than that. Loggers that are new change nothing."""
    after = {**after, "loggers": {name: after["loggers"].get(name) for name in before["loggers"]}}
    return {name: _parts(value, after[name]) for name, value in before.items() if value != after[name]}


def _parts(before: Any, after: Any) -> tuple[Any, Any]:
    if isinstance(before, tuple):
        pairs = [_parts(*pair) for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
        return tuple(one for one, _ in pairs), tuple(other for _, other in pairs)
    if not isinstance(before, dict):
        return before, after
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return {name: before.get(name) for name in names}, {name: after.get(name) for name in names}


def _descriptors() -> list[str]:
    """What the first three descriptors are, and how many there are."""
    folder = "/proc/self/fd"
    if not os.path.isdir(folder):
        return []
    return [*(os.readlink(f"{folder}/{number}") for number in range(3)), str(len(os.listdir(folder)))]
