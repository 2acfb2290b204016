"""The life of the child processes of one comparison: a private folder, memory, and an end in every case."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cpuinfer_helpers.display import format_bytes
from cpuinfer_helpers.errors import ArtifactError
from cpuinfer_helpers.machine.limits import free_bytes
from cpuinfer_helpers.machine.scratch import temporary_folder
from cpuinfer_helpers.processes.child import Child, ChildLost, import_path
from cpuinfer_helpers.processes.memory import private_bytes
from cpuinfer_helpers.processes.status import Kind, Status
from cpuinfer_helpers.processes.transport import read_tensors, write_parcel
from cpuinfer_helpers.recipes import Recipe, list_recipes

logger = logging.getLogger("cpuinfer_helpers")

_MIB = 2**20
# A process with PyTorch, transformers and a backend, before it holds any weights. Seen: 350 to 700 MiB.
_PROCESS_BYTES = 700 * _MIB
# While a backend prepares it may hold the weights this many times: as constants of a graph, serialised, and packed.
_COPIES_WHILE_PREPARING = 5
# Never take the last of the machine's memory: it is slow long before it is full.
_RESERVE_BYTES = 400 * _MIB


class Session:
    """Child processes that share one parcel, for the length of a ``with`` block.

    Parameters
    ----------
    content
        What every child gets: ``model``, ``inputs``, and what else a worker looks for.
    threads
        Threads of each child.
    timeout_s
        Longest time for one stage of one recipe.
    memory_bytes
        Bytes that this process and its children may hold together; None for what the machine has.
    """

    def __init__(self, content: Mapping[str, Any], *, threads: int, timeout_s: float, memory_bytes: int | None) -> None:
        self.threads = threads
        self.timeout_s = timeout_s
        self.memory_bytes = memory_bytes
        # When everything that is asked must have ended, by time.monotonic().
        self.deadline = math.inf
        self._content = dict(content)
        self._modules = sorted({type(part).__module__ for part in content["model"].modules()} - {"__main__"})
        self._children: list[Child] = []
        self._peaks: dict[str, int] = {}
        self._ready: dict[str, Child] = {}
        self._started = 0

    def __enter__(self) -> Session:
        # Only this user can read it: what lies in it is unpickled.
        self._scratch = temporary_folder()
        self._folder = self._scratch.__enter__()
        try:
            self._parcel = write_parcel(self._folder, "content", self._content)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # A second Ctrl-C has to wait, so that nothing stays behind.
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for child in self._children:
                child.close()
            self._scratch.__exit__(None, None, None)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)

    def start(self, recipe: Recipe) -> tuple[Child, float]:
        """A child that has loaded the model and the recipe, and the seconds that loading the model took.

        Raises
        ------
        ChildLost
            If it cannot.
        """
        sent = self._sent(recipe)
        child = self._ready.pop(recipe.name, None)
        if child is None:
            child = self._new_child(recipe)
            self._wait(child, "start")
        loaded = self.ask(child, "load", content=self._parcel.to_dict(), recipe=sent)
        return child, loaded["seconds"]

    def start_together(self, recipes: Sequence[Recipe]) -> None:
        """Start the processes of several recipes at once, and wait for all: they import for seconds, on a core each."""
        starting = [self._new_child(recipe) for recipe in recipes if recipe.name not in self._ready]
        for child in starting:
            try:
                self._wait(child, "start")
            except ChildLost as lost:  # whoever needs it starts it again, and is told
                logger.debug("%s: %s", child.recipe, lost.status)
                continue
            self._ready[child.recipe] = child

    def is_ready(self, recipe: Recipe) -> bool:
        """Whether the recipe's process has been started already, and waits."""
        return recipe.name in self._ready

    def _new_child(self, recipe: Recipe) -> Child:
        """A process that has begun to import what the model needs."""
        number, self._started = self._started, self._started + 1
        child = Child.start(recipe.name, self._folder / f"child-{number}", self.threads)
        self._children.append(child)
        self._tell(child, "start", threads=self.threads, path=import_path(), modules=self._modules)
        return child

    def _sent(self, recipe: Recipe) -> str | dict[str, Any]:
        """How a recipe is told to a child: by name, or in a parcel if it is the user's own."""
        if recipe in list_recipes():
            return recipe.name
        try:
            return write_parcel(self._folder, f"recipe-{recipe.name}", recipe).to_dict()
        except ArtifactError as error:
            raise ChildLost(Status(Kind.CRASHED, f"its process cannot be started: {error}")) from error

    def ask(self, child: Child, do: str, *, watched: bool = True, step: str | None = None, **arguments: Any) -> Any:
        """Have a child do something.

        Parameters
        ----------
        child, do
            Who does what: a method of :class:`~cpuinfer_helpers.processes.worker.Worker`.
        watched
            Whether memory is watched meanwhile; that would disturb a measurement.
        step
            What is said to take too long if it does; ``do`` unless given.
        **arguments
            Arguments of the method, in types that JSON knows.

        Raises
        ------
        ChildLost
            If it fails, ends, needs too much memory, or takes too long.
        """
        self._tell(child, do, **arguments)
        return self._wait(child, step or do, watched=watched)

    def _tell(self, child: Child, do: str, **arguments: Any) -> None:
        try:
            child.tell(do, **arguments)
        except ChildLost:
            self._children.remove(child)
            raise

    def _wait(self, child: Child, step: str, *, watched: bool = True) -> Any:
        left_s = self.deadline - time.monotonic()
        if left_s <= 0:
            self.close(child)
            raise ChildLost(Status(Kind.TIMED_OUT, f"no time was left for the step '{step.replace('_', ' ')}'"))
        try:
            watch = self._too_much if watched else None
            return child.result_of(step, timeout_s=min(self.timeout_s, left_s), watch=watch)
        except ChildLost:
            self._children.remove(child)
            raise
        finally:
            backend = child.recipe.rpartition("-")[0]
            self._peaks[backend] = max(self._peaks.get(backend, 0), child.peak_bytes)

    def close(self, child: Child) -> None:
        """End a child."""
        child.close()
        if child in self._children:
            self._children.remove(child)

    def answers(self, child: Child) -> tuple[list[dict[str, torch.Tensor]], int]:
        """The child's answers to all inputs, and the bytes that it holds in memory."""
        path = self._folder / "answers.safetensors"
        reply = self.ask(child, "answers", path=str(path))
        return read_tensors(path), reply["resident_bytes"]

    def has_room_for(self, recipe: Recipe) -> bool:
        """Whether the free memory is enough for one more child, as far as one can know before."""
        return self._free() >= self._need(recipe)

    def _need(self, recipe: Recipe) -> int:
        """Seen of this backend before, with a fifth more; otherwise a cautious guess."""
        guess = _PROCESS_BYTES + _COPIES_WHILE_PREPARING * self._parcel.tensor_bytes
        seen = self._peaks.get(recipe.backend)
        return int(1.2 * seen) + self._parcel.tensor_bytes if seen else guess

    def _free(self) -> int:
        import psutil

        free = free_bytes() - _RESERVE_BYTES
        if self.memory_bytes is None:
            return free
        # Here, where there is time, with what the children have started themselves, such as compilers that wait.
        started = [process.pid for process in psutil.Process().children(recursive=True)]
        held = private_bytes([os.getpid(), *started]) + self._parcel.tensor_bytes
        return min(free, self.memory_bytes - held)

    def _held(self) -> int:
        """Bytes of this process and its children; the mapped weights, which they share, count once."""
        processes = [os.getpid(), *(child.process_id for child in self._children)]
        return private_bytes(processes) + self._parcel.tensor_bytes

    def _too_much(self) -> str | None:
        if self.memory_bytes is not None and self._held() > self.memory_bytes:
            return f"all processes together need more than the {format_bytes(self.memory_bytes)} of memory_bytes"
        if free_bytes() < _RESERVE_BYTES // 4:
            return f"less than {format_bytes(_RESERVE_BYTES // 4)} are free on this machine"
        return None
