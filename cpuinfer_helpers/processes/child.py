"""Child processes as the parent sees them: started in a known environment, asked, watched, and ended for certain."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from cpuinfer_helpers.display import shorten
from cpuinfer_helpers.errors import is_memory_error
from cpuinfer_helpers.machine import tied
from cpuinfer_helpers.processes.memory import private_bytes
from cpuinfer_helpers.processes.status import Kind, Status, failure

logger = logging.getLogger("cpuinfer_helpers")

_POLL_S = 0.1
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]
# Variables from which OpenMP, MKL and their kin read their threads, once, when they are loaded.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

# Counts every process that the kernel has ended for want of memory, in control groups too (proc_vmstat(5)).
_KERNEL_COUNTERS = Path("/proc/vmstat")

# Called while a child works; returns why it must be ended, or None.
Watch = Callable[[], str | None]


class ChildLost(Exception):
    """A child ended, was ended, or could not do what it was asked for; ``status`` is for the recipe's row."""

    def __init__(self, status: Status) -> None:
        super().__init__(status)
        self.status = status


class Child:
    """One child process.

    Parameters
    ----------
    recipe
        Name of the recipe that it runs.
    folder
        Private folder, for its standard error and its temporary files.
    threads
        Threads of every library in it; as this process's environment has it unless given.
    """

    def __init__(self, recipe: str, folder: Path, threads: int | None = None) -> None:
        self.recipe = recipe
        folder.mkdir()
        self._stderr = folder / "stderr.txt"
        commands, commands_end = os.pipe()
        replies_end, replies = os.pipe()
        # As files, so that they are closed even if this object is dropped half made: then the child ends by itself.
        self._commands, self._replies = os.fdopen(commands_end, "wb", 0), os.fdopen(replies_end, "rb", 0)
        command = tied.command("-m", "cpuinfer_helpers.processes.worker", str(commands))
        try:
            with self._stderr.open("wb") as log:
                self._process = subprocess.Popen(
                    [*command, str(replies)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=_environment(threads, folder),
                    pass_fds=(commands, replies),
                    # Out of reach of Ctrl-C, which the parent answers; and a group that can be ended as one.
                    start_new_session=True,
                )
        finally:
            os.close(commands)
            os.close(replies)
        self._received = b""
        self._log_start = 0
        self._kills_before = _ended_for_memory()
        self.peak_bytes = 0

    @classmethod
    def start(cls, recipe: str, folder: Path, threads: int | None = None) -> Child:
        """A child; parameters as for the class.

        Raises
        ------
        ChildLost
            If there are no more room, processes or open files. Others may still run to their end.
        """
        try:
            return cls(recipe, folder, threads)
        except OSError as error:
            raise ChildLost(Status(Kind.CRASHED, f"its process cannot be started: {error}")) from error

    @property
    def process_id(self) -> int:
        """The process's id."""
        return self._process.pid

    def ask(
        self, do: str, *, timeout_s: float, watch: Watch | None = None, step: str | None = None, **arguments: Any
    ) -> Any:
        """Have the child do something, and wait for the result.

        Parameters
        ----------
        do
            Name of a method of :class:`~cpuinfer_helpers.processes.worker.Worker`.
        timeout_s
            Seconds after which the child is ended.
        watch
            Called ten times a second, to end the child for another reason.
        step
            What is said to take too long if it does; ``do`` unless given.
        **arguments
            Arguments of the method, in types that JSON knows.

        Raises
        ------
        ChildLost
            If it fails, ends, or takes too long. The child is not alive then.
        """
        self.tell(do, **arguments)
        return self.result_of(step or do, timeout_s=timeout_s, watch=watch)

    def tell(self, do: str, **arguments: Any) -> None:
        """Have the child do something, without waiting; :meth:`result_of` waits."""
        self._log_start = self._stderr.stat().st_size
        try:
            self._commands.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        except BrokenPipeError:
            self._lose(self._crash())

    def result_of(self, step: str, *, timeout_s: float, watch: Watch | None = None) -> Any:
        """Wait for the result of what the child was told last; arguments and errors as for :meth:`ask`."""
        reply = self._wait_for_reply(step, time.monotonic() + timeout_s, timeout_s, watch)
        if "error" in reply:
            self._lose(self._failure(reply))
        return reply["result"]

    def log_what_it_wrote(self) -> None:
        """Log what it has written since it was told something last, as DEBUG."""
        for line in self._stderr_lines():
            logger.debug("%s: %s", self.recipe, line)

    def wait_until_idle(self, limit_s: float = 0.5) -> None:
        """Wait until its threads have stopped spinning, which they do for a while after work."""
        import psutil

        deadline = time.monotonic() + limit_s
        try:
            process, before = psutil.Process(self.process_id), None
            while time.monotonic() < deadline:
                used = sum(process.cpu_times()[:2])
                if used == before:
                    return
                before = used
                time.sleep(0.03)
        except psutil.Error:  # it has ended; whoever asks it next will be told
            return

    def close(self) -> None:
        """End the process and all that it has started; safe to call twice."""
        if self._commands.closed:
            return
        self._commands.close()
        try:
            os.killpg(self.process_id, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # gone already; macOS says so in the second way
            self._process.kill()
        self._process.wait()
        self._replies.close()

    def _wait_for_reply(self, step: str, deadline: float, timeout_s: float, watch: Watch | None) -> dict[str, Any]:
        while b"\n" not in self._received:
            if wait([self._replies], timeout=_POLL_S):
                data = self._replies.read(1 << 16)
                if not data:
                    self._lose(self._crash())
                self._received += data
                continue
            if self._process.poll() is not None:
                self._lose(self._crash())
            if time.monotonic() > deadline:
                reason = f"{step.replace('_', ' ')} took more than {round(timeout_s, 1):g} s"
                self._lose(Status(Kind.TIMED_OUT, reason))
            if watch is not None:
                self.peak_bytes = max(self.peak_bytes, private_bytes([self.process_id]))
                reason = watch()
                if reason:
                    self._lose(Status(Kind.OUT_OF_MEMORY, reason))
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def _lose(self, status: Status) -> None:
        self.close()
        self.log_what_it_wrote()
        raise ChildLost(status)

    def _failure(self, reply: dict[str, Any]) -> Status:
        return failure(Kind.OUT_OF_MEMORY if reply["out_of_memory"] else Kind.CRASHED, reply["error"])

    def _crash(self) -> Status:
        """How the process ended: by which signal or with which exit code, and the last that it wrote."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return Status(Kind.CRASHED, "it closed its pipe")
        lines = self._stderr_lines()
        last = f"; it wrote: {shorten(lines[-1])}" if lines else ""
        if is_memory_error("\n".join(lines[-5:])):
            return Status(Kind.OUT_OF_MEMORY, f"it ended{last}")
        if code == -signal.SIGKILL:
            kills = _ended_for_memory()
            if kills is not None and kills == self._kills_before:
                reason = f"ended by SIGKILL from outside, not by the kernel for want of memory{last}"
                return Status(Kind.CRASHED, reason)
            return Status(Kind.OUT_OF_MEMORY, f"ended by SIGKILL, as the system does when memory runs out{last}")
        how = f"{signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Status(Kind.CRASHED, f"{how}{last}")

    def _stderr_lines(self) -> list[str]:
        with self._stderr.open("rb") as file:
            file.seek(self._log_start)
            return [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]


def _ended_for_memory() -> int | None:
    """How many processes the kernel has ended for want of memory; None where it does not tell."""
    try:
        lines = _KERNEL_COUNTERS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def import_path() -> list[str]:
    """Where this process finds modules, for a process that may have another folder or environment."""
    return [str(Path(folder or ".").resolve()) for folder in sys.path]


def _environment(threads: int | None, folder: Path) -> dict[str, str]:
    path = filter(None, (str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH")))
    return {
        **os.environ,
        **({} if threads is None else dict.fromkeys(_THREAD_VARIABLES, str(threads))),
        "PYTHONPATH": os.pathsep.join(path),
        # What backends leave behind goes with the folder; torch.compile finds no cache here, so it always compiles.
        "TMPDIR": str(folder),
    }
