"""Other processes that keep cores busy, to show what they do to a measurement."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.machine import tied


@contextmanager
def busy_neighbours(count: int = 1, *, limit_s: float = 600.0) -> Iterator[None]:
    """Keep cores busy from other processes while the block runs, as neighbours on a shared machine do.

    For showing what they do to a measurement.

    Parameters
    ----------
    count
        Processes, at least 1; each keeps about one core busy.
    limit_s
        Seconds after which they end by themselves, should this process be killed before it can end them.

    Raises
    ------
    InputError
        If ``count`` is not a whole number of at least 1, or far more than this machine could run.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InputError(f"busy_neighbours: {count!r} is not a number of processes; give a whole number of at least 1")
    program = f"import time\nend = time.monotonic() + {limit_s}\nwhile time.monotonic() < end: pass"
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            started.append(subprocess.Popen(tied.command("-c", program)))
        yield
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()
