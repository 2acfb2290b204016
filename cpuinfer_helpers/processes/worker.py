"""The child process of one recipe: does what the parent asks for, one thing at a time, and is idle in between.

Started by :mod:`~cpuinfer_helpers.machine.tied` as ``-m cpuinfer_helpers.processes.worker COMMANDS REPLIES``: two file
descriptors. Commands and replies are lines of JSON.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.errors import first_line
from cpuinfer_helpers.interface.flops import count_flops
from cpuinfer_helpers.interface.outputs import take_apart
from cpuinfer_helpers.interface.reference import Reference, run_seeded
from cpuinfer_helpers.machine.switches import freed_memory_kept
from cpuinfer_helpers.processes.questions import find_function
from cpuinfer_helpers.processes.transport import Parcel, read_parcel, write_tensors
from cpuinfer_helpers.recipes import Build, Recipe, Request, get_recipe, prepare
from cpuinfer_helpers.recipes.preparation import prepare_like, verify_prepared
from cpuinfer_helpers.saving.plain import write
from cpuinfer_helpers.timing.measuring import measure, seconds_of
from cpuinfer_helpers.timing.roofline import roofline

# What the first calls cost is looked at for so many of them: TorchScript has made its plan by the third.
_FIRST_CALLS = 6
# Short calls are looked at for this long before another recipe is called faster; and for so many of them at most.
_LOOK_S = 0.05
_MOST_CALLS = 500


@dataclass
class _Clock:
    """Times what a recipe's function does inside of ``prepare``: building apart from the calls that follow."""

    recipe: Recipe
    build_seconds: float = 0.0
    example_calls: list[float] = field(default_factory=list)

    def timed_recipe(self) -> Recipe:
        return replace(self.recipe, build=self._build)

    def _build(self, request: Request) -> Build:
        started = time.perf_counter()
        build = self.recipe.build(request)
        self.build_seconds = time.perf_counter() - started
        shapes = {name: tensor.shape for name, tensor in request.inputs.tensors.items()}
        return replace(build, answer=self._timed(build.answer, shapes))

    def _timed(self, answer: Callable[..., Any], shapes: Mapping[str, torch.Size]) -> Callable[..., Any]:
        def timed(tensors: dict[str, torch.Tensor]) -> Any:
            if len(self.example_calls) >= _FIRST_CALLS or any(t.shape != shapes[n] for n, t in tensors.items()):
                return answer(tensors)
            started = time.perf_counter()
            outputs = answer(tensors)
            self.example_calls.append(time.perf_counter() - started)
            return outputs

        return timed


class Worker:
    """What a child process can be asked to do."""

    def __init__(self) -> None:
        # In force for as long as this process lives, whatever the recipe.
        self.conditions = ExitStack()
        self.content: dict[str, Any] = {}
        self.recipe: Recipe | None = None
        self.prepared: Any = None

    def start(self, threads: int, path: list[str], modules: list[str]) -> dict[str, Any]:
        """Set the threads and import what the model needs, so that loading it is not charged with that."""
        torch.set_num_threads(threads)
        self.conditions.enter_context(freed_memory_kept())
        _extend_path(path)
        for name in modules:
            _import_if_there(name)
        return {"threads": torch.get_num_threads()}

    def load(self, content: dict[str, Any], recipe: str | dict[str, Any]) -> dict[str, Any]:
        """Load the model, its inputs and the recipe; a recipe that is not in the registry comes in a parcel."""
        started = time.perf_counter()
        self.content = read_parcel(Parcel(**content))
        seconds = time.perf_counter() - started
        self.recipe = get_recipe(recipe) if isinstance(recipe, str) else read_parcel(Parcel(**recipe))
        # For questions that prepare in another way than this class does.
        self.content["recipe"] = self.recipe
        return {"seconds": seconds}

    def roofline(self, precisions: list[str], budget_s: float) -> dict[str, Any]:
        """Measure the rates of matrix products."""
        measured = roofline(precisions, budget_s=budget_s)
        return {
            "rates": dict(measured.rates),
            "kernels": dict(measured.kernels),
            "native": dict(measured.native),
            "tried": [list(row) for row in measured.tried],
            "threads": measured.threads,
        }

    def flops(self) -> dict[str, Any]:
        """Count the floating-point operations of one call of the prepared model, which must be an eager one."""
        return {"flops": count_flops(self.prepared, self.content["inputs"])}

    def prepare(self, verify: bool, keep_model: bool = False) -> dict[str, Any]:
        """Prepare the model by the recipe, and let go of the original, unless it is wanted for :meth:`verify`."""
        clock = _Clock(self.recipe)
        self.prepared = prepare(
            clock.timed_recipe(),
            self.content["model"],
            self.content["inputs"],
            calibration=self.content.get("calibration", ()),
            verify=verify,
        )
        if not keep_model:
            self.content.pop("model")
            gc.collect()
        return {
            "prepared": self.prepared.prepared,
            "seconds": clock.build_seconds,
            "example_calls": clock.example_calls,
            "receipt": write(self.prepared.receipt),
        }

    def warm_up(self, budget_s: float) -> dict[str, Any]:
        """Call until steady, then measure alone, for a first idea of how long a call takes."""
        timing = measure(self._call, budget_s=budget_s, max_calls=6)
        # One disturbance of the machine can last longer than all of such calls, and their fastest says nothing then.
        more = [seconds_of(self._call) for _ in range(min(_MOST_CALLS, int(_LOOK_S / timing.median)))]
        return {
            "median": timing.median,
            "fastest": min((*timing.samples, *more)),
            "calls": timing.warmup_calls + timing.calls + len(more),
            "steady": timing.steady,
        }

    def verify(self, tolerance: float | None) -> dict[str, Any]:
        """Compare with the original on other batch sizes, lengths and paddings, then let go of it."""
        reference = Reference.of(self.content.pop("model"), self.content["inputs"])
        found = verify_prepared(self.prepared, reference, precision=self.recipe.precision, tolerance=tolerance)
        checks, difference = found.checks, found.difference
        if difference and self.prepared.other_ways:
            other = prepare_like(
                reference, self.recipe, calibration=self.content.get("calibration", ()), tolerance=tolerance
            )
            if other.prepared:
                self.prepared, checks, difference = other, other.receipt.checks, None
        del reference
        gc.collect()
        receipt = write(replace(self.prepared.receipt, checks=checks))
        return {"receipt": receipt, "difference": difference}

    def metric(self) -> dict[str, Any]:
        """What the user's own metric says of the prepared model."""
        return {"value": float(self.content["metric"](self.prepared))}

    def run(self, calls: int) -> dict[str, Any]:
        """One call that is not counted, because another process has used the caches, then the counted ones."""
        gc.disable()
        try:
            self._call()
            return {"seconds": [seconds_of(self._call) for _ in range(calls)]}
        finally:
            gc.enable()

    def answers(self, path: str) -> dict[str, Any]:
        """Write the answers to all inputs into a file; return what this process holds in memory."""
        import psutil

        groups = [self.content["inputs"], *self.content.get("agreement", ())]
        resident = psutil.Process().memory_info().rss
        write_tensors(Path(path), [run_seeded(lambda tensors: self._run(tensors), group) for group in groups])
        return {"resident_bytes": resident}

    def answer_question(self, question: str, arguments: dict[str, Any]) -> Any:
        """Call a function of this package with the prepared model, what came with it, and further arguments."""
        return find_function(question)(self.prepared, self.content, **arguments)

    def run_once(self, question: str, arguments: dict[str, Any], path: list[str]) -> Any:
        """Call a function of this package with these arguments only; nothing need be loaded or prepared."""
        _extend_path(path)
        return find_function(question)(**arguments)

    def _call(self) -> object:
        return self.prepared(**self.content["inputs"])

    def _run(self, tensors: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        return take_apart(self.prepared(**tensors))[0]


def main(arguments: list[str]) -> int:
    """Serve the parent until it closes the pipe."""
    commands, replies = map(int, arguments)
    _spare_others()
    worker = Worker()
    with os.fdopen(commands, "r", encoding="utf-8") as lines, os.fdopen(replies, "w", encoding="utf-8") as answers:
        for line in lines:
            answers.write(_carry_out(worker, json.loads(line)) + "\n")
            answers.flush()
    # What backends do when Python takes them apart has crashed before; everything that counts has been said.
    os._exit(0)


def _carry_out(worker: Worker, command: dict[str, Any]) -> str:
    """The reply, in one line."""
    try:
        return json.dumps({"result": getattr(worker, command.pop("do"))(**command)})
    except MemoryError as error:
        return json.dumps({"error": first_line(error), "out_of_memory": True})
    except Exception as error:  # models and backends raise anything; the parent puts it into the recipe's row
        return json.dumps({"error": first_line(error), "out_of_memory": False})


def _spare_others() -> None:
    """If memory runs out, the kernel is to end this process rather than the notebook's; and no core is dumped."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text("1000", encoding="ascii")


def _extend_path(path: list[str]) -> None:
    sys.path += [folder for folder in path if folder not in sys.path]


def _import_if_there(name: str) -> None:
    try:
        importlib.import_module(name)
    except ImportError:  # unpickling will name what is missing, if it is needed at all
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
