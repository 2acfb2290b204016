"""A process for each class, with limits of time and memory, forked from one that has imported everything already."""

from __future__ import annotations

import contextlib
import json
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
from sweep.trial import NOT_LOADED, STOPPED, load_and_check, trace_and_check

SECONDS = 180
MEGABYTES = 3000
_INTERVAL = 0.05


@dataclass
class _Running:
    """One case under way."""

    case: Case
    pid: int
    folder: Path
    started: float = field(default_factory=time.monotonic)
    peak: int = 0


def run_all(cases: Sequence[Case], workers: int = 2, seconds: float = SECONDS) -> Iterator[dict[str, Any]]:
    """Run the cases, so many at a time; yields each result as it comes.

    The processes are forked, so nothing may have used torch's threads in this one before.
    """
    waiting = list(reversed(cases))
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(_start(waiting.pop()))
            time.sleep(_INTERVAL)
            for job in list(running):
                result = _look_at(job, seconds)
                if result is not None:
                    running.remove(job)
                    yield result
    finally:
        for job in running:
            _end(job)


def _start(case: Case) -> _Running:
    folder = Path(tempfile.mkdtemp(prefix="sweep-"))
    pid = os.fork()
    if pid == 0:
        os.setsid()
        _child(lambda: _both_stages(case, folder))
    return _Running(case, pid, folder)


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


def _both_stages(case: Case, folder: Path) -> None:
    """Trace in one process and load in another: neither knows what the other has in memory."""
    result = _stage(folder, "trace", lambda: trace_and_check(case, folder))
    if (folder / "saved").exists():
        result |= _stage(folder, "load", lambda: load_and_check(folder))
    _write(folder / "result", result)


def _stage(folder: Path, name: str, function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    pid = os.fork()
    if pid == 0:
        _child(lambda: _write(folder / name, _limited(folder, function)))
    _, status = os.waitpid(pid, 0)
    if status or not (folder / name).exists():
        why = f"killed by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else _last_line(folder / "log")
        return {"outcome": STOPPED if name == "trace" else NOT_LOADED, "reason": f"the process ended by itself: {why}"}
    return json.loads((folder / name).read_text())


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line for line in reversed(lines) if line.strip()), "nothing in its log")[:300]


def _limited(folder: Path, function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + 2 * MEGABYTES * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    _silence(folder / "log")
    return function()


def _silence(log: Path) -> None:
    """What models and libraries print goes into a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)


def _write(path: Path, value: dict[str, Any]) -> None:
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(value))
    unfinished.rename(path)


def _look_at(job: _Running, seconds: float) -> dict[str, Any] | None:
    done, _ = os.waitpid(job.pid, os.WNOHANG)
    used = time.monotonic() - job.started
    result: dict[str, Any] | None = None
    if done:
        path = job.folder / "result"
        stopped = {"outcome": STOPPED, "reason": "the process ended without a result"}
        result = json.loads(path.read_text()) if path.exists() else stopped
    else:
        job.peak = max(job.peak, _resident_megabytes(job.pid))
        if used > seconds:
            result = {"outcome": STOPPED, "reason": f"not finished after {seconds:.0f} s"}
        elif job.peak > MEGABYTES:
            result = {"outcome": STOPPED, "reason": f"uses more than {MEGABYTES} MB"}
    if result is None:
        return None
    _end(job, done=bool(done))
    head = {"name": job.case.name, "task": job.case.task, "family": job.case.family}
    return {**head, **result, "seconds": round(used, 1), "megabytes": job.peak}


def _end(job: _Running, done: bool = False) -> None:
    """End the whole group of a job, whose leader we started, and remove what it wrote."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGKILL)
    if not done:
        os.waitpid(job.pid, 0)
    shutil.rmtree(job.folder, ignore_errors=True)


def _resident_megabytes(group: int) -> int:
    """Resident memory of the largest process of a group, in MB."""
    largest = 0
    for children in (str(group), *_children(group)):
        try:
            largest = max(largest, int(Path(f"/proc/{children}/statm").read_text().split()[1]))
        except (OSError, IndexError):  # it has just ended
            continue
    return largest * resource.getpagesize() // 2**20


def _children(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
