"""Calls in a fork of this process, and how they end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import torch

import cpuinfer_helpers as cpu

OK, REFUSED, OTHER = 0, 3, 4


def call_in_a_fork(call: Callable[[], Any], threads: int) -> int | None:
    """How a call ends in a fork: ``OK``, ``REFUSED`` in one line about the fork, ``OTHER``, or None if it hangs."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(threads)
            call()
            os._exit(OK)
        except cpu.ArtifactError as error:
            os._exit(REFUSED if "fork" in str(error) and "\n" not in str(error) else OTHER)
        finally:
            os._exit(OTHER)
    return ends_with(child)


def ends_with(child: int, limit_s: float = 60) -> int | None:
    """Exit code of a forked child; None if it hangs, and then it is ended."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
