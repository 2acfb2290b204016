"""A process for each class, with limits of time and memory, forked from one that has imported everything already."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweep.classes import Case
from sweep.subject import Subject
from sweep.trial import NO_EAGER, NOT_LOADED, STOPPED, TRACE, load_and_check, prepare_and_check, text_of

# For each recipe, and for what the eager model has to answer before.
SECONDS = 180
MEGABYTES = 3000
_INTERVAL = 0.05
Job = tuple[Case, tuple[str, ...]]


@dataclass
class _Running:
    """A process under way: the leader of a class, or one recipe of it."""

    pid: int
    started: float = field(default_factory=time.monotonic)
    peak: int = 0

    @property
    def seconds(self) -> float:
        """How long it has been running."""
        return time.monotonic() - self.started

    def stopped_for(self, seconds: float) -> str | None:
        """Why it has to be stopped, or None."""
        self.peak = max(self.peak, _resident_megabytes(self.pid))
        if self.seconds > seconds:
            return f"not finished after {seconds:.0f} s"
        return f"uses more than {MEGABYTES} MB" if self.peak > MEGABYTES else None


def run_all(jobs: Sequence[Job], workers: int = 2, seconds: float = SECONDS) -> Iterator[dict[str, Any]]:
    """Run classes, so many at a time, each by its recipes; yields a result for each recipe, class by class.

    The processes are forked, so nothing may have used torch's threads in this one before.
    """
    waiting = list(reversed(jobs))
    running: list[tuple[Job, _Running, Path]] = []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(_start(waiting.pop(), seconds))
            time.sleep(_INTERVAL)
            for entry in list(running):
                results = _look_at(*entry, seconds)
                if results is not None:
                    running.remove(entry)
                    yield from results
    finally:
        for _, leader, folder in running:
            _end(leader, folder)


def _start(job: Job, seconds: float) -> tuple[Job, _Running, Path]:
    folder = Path(tempfile.mkdtemp(prefix="sweep-"))
    pid = os.fork()
    if pid == 0:
        os.setsid()
        _child(lambda: _lead(job, folder, seconds))
    return job, _Running(pid), folder


def _child(function: Callable[[], None]) -> None:
    """Run a function in this forked process and leave it, whatever happens."""
    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        function()
        code = 0
    except BaseException:  # nothing may return into the parent's own code
        traceback.print_exc()
    finally:
        os._exit(code)


def _lead(job: Job, folder: Path, seconds: float) -> None:
    """Prepare in one process and load in another: neither knows what the other has in memory."""
    _silence(folder / "log")
    pid = os.fork()
    if pid == 0:
        _child(lambda: _try_recipes(job, folder, seconds))
    why = _awaited(pid, folder / "log")
    (folder / "ready").touch()
    if why is not None:
        _write(folder / "failed", {"outcome": STOPPED, "reason": why})
    if (folder / "saved").exists():
        found = _watched(folder, "load", lambda: load_and_check(folder), seconds)
        _write(folder / TRACE, _read(folder / TRACE) | found)


def _try_recipes(job: Job, folder: Path, seconds: float) -> None:
    """Build the model once, and fork a process for each recipe."""
    case, recipes = job
    logging.getLogger("transformers").setLevel(logging.ERROR)
    _limit_memory()
    try:
        subject = Subject.of(case)
    except Exception as error:  # whatever keeps a class from running is what the report says of it
        _write(folder / "failed", {"outcome": NO_EAGER, "reason": text_of(error)})
        return
    (folder / "ready").touch()
    for recipe in recipes:
        result = _watched(folder, recipe, lambda recipe=recipe: prepare_and_check(subject, recipe, folder), seconds)
        _write(folder / recipe, result)


def _watched(folder: Path, name: str, function: Callable[[], dict[str, Any]], seconds: float) -> dict[str, Any]:
    """What a function returns in a process of its own, or how that ended; with its time and memory."""
    part = folder / f"{name}.result"
    pid = os.fork()
    if pid == 0:
        _child(lambda: (_limit_memory(), _write(part, function())))
    running = _Running(pid)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        why = _how_it_ended(status, folder / "log") if done else running.stopped_for(seconds)
        if done or why:
            break
        time.sleep(_INTERVAL)
    if not done:
        _kill(pid)
    used = {f"{'load ' if name == 'load' else ''}seconds": round(running.seconds, 1), "megabytes": running.peak}
    if why is None and part.exists():
        return _read(part) | used
    why = why or "the process ended without a result"
    return {"outcome": NOT_LOADED if name == "load" else STOPPED, "reason": why, **used}


def _kill(pid: int) -> None:
    """End a process that we started; whatever it started goes with the group of its class."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _awaited(pid: int, log: Path) -> str | None:
    _, status = os.waitpid(pid, 0)
    return _how_it_ended(status, log)


def _how_it_ended(status: int, log: Path) -> str | None:
    if not status:
        return None
    why = f"killed by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else _last_line(log)
    return f"the process ended by itself: {why}"


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "nothing in its log")[:300]


def _limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + 2 * MEGABYTES * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_AS, (min(limit, _hard_limit()), _hard_limit()))


def _hard_limit() -> int:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    return 2**63 - 1 if hard == resource.RLIM_INFINITY else hard


def _silence(log: Path) -> None:
    """What models and libraries print goes into a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)


def _write(path: Path, value: dict[str, Any]) -> None:
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.write_text(json.dumps(value))
    unfinished.rename(path)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def _look_at(job: Job, leader: _Running, folder: Path, seconds: float) -> list[dict[str, Any]] | None:
    """The results of a class that has ended or has to be stopped; None while it runs."""
    done, _ = os.waitpid(leader.pid, os.WNOHANG)
    # From then on the leader watches its recipes itself.
    why = None if (folder / "ready").exists() else leader.stopped_for(seconds)
    if not done and why is None:
        return None
    case, recipes = job
    head = {"name": case.name, "task": case.task, "family": case.family}
    failed = {"outcome": STOPPED, "reason": why or "the process ended without a result"}
    if (folder / "failed").exists():
        failed = _read(folder / "failed")
    found = [_read(folder / recipe) if (folder / recipe).exists() else failed for recipe in recipes]
    used = {"class seconds": round(leader.seconds, 1)}
    _end(leader, folder, done=bool(done))
    return [{**head, "recipe": recipe, **used, **result} for recipe, result in zip(recipes, found, strict=True)]


def _end(leader: _Running, folder: Path, done: bool = False) -> None:
    """End the whole group of a class, whose leader we started, and remove what it wrote."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)
    if not done:
        os.waitpid(leader.pid, 0)
    shutil.rmtree(folder, ignore_errors=True)


def _resident_megabytes(pid: int) -> int:
    """Resident memory of the largest of a process and its children, in MB."""
    largest = 0
    for process in (str(pid), *_children(pid)):
        try:
            largest = max(largest, int(Path(f"/proc/{process}/statm").read_text().split()[1]))
        except (OSError, IndexError):  # it has just ended
            continue
    return largest * resource.getpagesize() // 2**20


def _children(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
