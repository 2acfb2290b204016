"""Keep the stack on which this thread handles signals."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class SignalStack(ctypes.Structure):
    """``stack_t`` of Linux; see sigaltstack(2)."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack() -> tuple[int | None, int, int]:
    """Address, flags and size of the alternate stack of this thread; Linux only."""
    now = SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(now))
    return now.address, now.flags, now.size


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Put the alternate stack back at the end of the block.

    OpenVINO gives the thread one of its own for each plugin that it loads, and frees it with the plugin, which may be
    while another one has remembered it as the stack to go back to (seen with 2026.4). The next signal then ends the
    process: Ctrl-C in a notebook, with all that is in its memory.
    """
    if sys.platform != "linux":
        yield
        return
    before = SignalStack()
    sigaltstack = ctypes.CDLL(None).sigaltstack
    sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        sigaltstack(ctypes.byref(before), None)
