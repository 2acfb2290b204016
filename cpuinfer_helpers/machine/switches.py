"""The one place through which everything goes that changes the state of the process, and puts it back.

Tracing, profiling, converting and optimising change things that every thread of a process shares: attributes of
libraries, the standard streams, warnings, the environment, switches of TorchScript, the random state. Each context
manager here holds one lock, so that two threads never change such things at the same time and each puts back what it
found. What can be changed for this thread alone, others do not see.

The lock is held while models are traced and converted, never while another thread or process is waited for. In a
process that was forked while another thread held it, it is free.
"""

from __future__ import annotations

import ctypes
import io
import logging
import os
import platform
import random
import sys
import tempfile
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, BinaryIO, TextIO

import numpy as np
import torch

from cpuinfer_helpers.machine.limits import check_threads

logger = logging.getLogger("cpuinfer_helpers")
_lock = threading.RLock()
_compiled = threading.RLock()
# mallopt(3): parameter numbers. 65536 and 128 KiB are the values that a process starts with.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def _free_locks() -> None:
    """In a forked child only the thread that forked lives: nobody is left who would give the locks back."""
    global _lock, _compiled
    _lock, _compiled = threading.RLock(), threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_locks)


@contextmanager
def held() -> Iterator[None]:
    """Hold the lock for a block that changes, or must find unchanged, what the whole process shares."""
    with _lock:
        yield


@contextmanager
def held_if_free() -> Iterator[bool]:
    """Hold the lock for a block if no other thread has it, without waiting; tells whether it is held."""
    lock = _lock
    taken = lock.acquire(blocking=False)
    try:
        yield taken
    finally:
        if taken:
            lock.release()


@contextmanager
def compiled_call() -> Iterator[None]:
    """Hold the lock of all that compiles with torch.compile, which any call may, and put back what that leaves behind.

    Up to torch 2.8 all threads share the settings that such a call patches. The compiler leaves variables in the
    environment for processes of its own, and raises Python's recursion limit. Whoever holds the other lock may take
    this one, never the other way round.
    """
    with _compiled:
        before, depth = _environment_of(*_OF_THE_COMPILER), sys.getrecursionlimit()
        try:
            yield
        finally:
            _put_back_environment(before, *_OF_THE_COMPILER)
            sys.setrecursionlimit(depth)


_OF_THE_COMPILER = ("TORCHINDUCTOR_", "_TORCHINDUCTOR_", "TRITON_")


def _environment_of(*beginnings: str) -> dict[str, str]:
    return {name: os.environ[name] for name in list(os.environ) if name.startswith(beginnings or "")}


def _put_back_environment(before: dict[str, str], *beginnings: str) -> None:
    after = _environment_of(*beginnings)
    for name in after.keys() - before.keys():
        os.environ.pop(name, None)
    for name, value in before.items():
        if after.get(name) != value:
            os.environ[name] = value


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Put PyTorch's random state, which all threads share, back at the end of the block."""
    with _lock, torch.random.fork_rng(devices=[]):
        yield


@contextmanager
def pythons_random_state_kept() -> Iterator[None]:
    """Put the random states of Python and NumPy back at the end of the block: some libraries draw while imported."""
    with _lock:
        of_python, of_numpy = random.getstate(), np.random.get_state()
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace a function of a library for this thread; other threads go on calling the original.

    Parameters
    ----------
    owner
        The module or class that it is an attribute of.
    name
        The attribute.
    value
        What this thread calls: a function, or a classmethod where the original is one.
    """
    with _lock:
        original, thread = vars(owner)[name], threading.get_ident()
        setattr(owner, name, _dispatching(original, value, thread))
        try:
            yield
        finally:
            setattr(owner, name, original)


def _dispatching(original: Any, value: Any, thread: int) -> Any:
    """A function that is ``value`` in one thread and the original in all others."""
    if isinstance(original, classmethod):

        def for_class(cls: type, /, *arguments: Any, **named: Any) -> Any:
            chosen = value if threading.get_ident() == thread else original
            return chosen.__get__(None, cls)(*arguments, **named)

        return classmethod(for_class)

    def function(*arguments: Any, **named: Any) -> Any:
        return (value if threading.get_ident() == thread else original)(*arguments, **named)

    return function


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Set one variable of the environment."""
    with _lock:
        before = os.environ.get(name)
        os.environ[name] = value
        try:
            yield
        finally:
            if before is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = before


@contextmanager
def environment_kept(*beginnings: str) -> Iterator[None]:
    """Put the variables of the environment whose names begin so back as they were; all of them unless any are given."""
    # Not held inside: what leaves such variables may wait for processes of its own.
    with _lock:
        before = _environment_of(*beginnings)
    try:
        yield
    finally:
        with _lock:
            _put_back_environment(before, *beginnings)


@contextmanager
def attributes(owner: Any, **values: Any) -> Iterator[None]:
    """Set attributes of an object that all threads share, such as a logger."""
    with _lock:
        before = {name: getattr(owner, name) for name in values}
        for name, value in values.items():
            setattr(owner, name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(owner, name, value)


# Streams and warnings.


class _Stream:
    """A stream that is another one in some threads, and the original in all others, also when the block is over."""

    def __init__(self, here: Any, elsewhere: Any) -> None:
        self._cpuinfer_streams = {threading.get_ident(): here}
        self._cpuinfer_elsewhere = elsewhere

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cpuinfer_streams.get(threading.get_ident(), self._cpuinfer_elsewhere), name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.__getattr__("__iter__")())


@contextmanager
def stdout_redirected(target: TextIO) -> Iterator[None]:
    """Send what this thread prints to ``target``."""
    with _lock:
        before = sys.stdout
        stream = _Stream(target, before)
        sys.stdout = stream
        try:
            yield
        finally:
            stream._cpuinfer_streams.clear()
            if sys.stdout is stream:
                sys.stdout = before


@contextmanager
def warnings_caught(*, always: bool = True) -> Iterator[list[warnings.WarningMessage]]:
    """Collect the Python warnings that this thread gives; those of other threads are shown as ever.

    Parameters
    ----------
    always
        Have a warning that was given before given again. The filters are everybody's: another thread's warnings may
        be shown once more meanwhile.
    """
    found: list[warnings.WarningMessage] = []
    thread = threading.get_ident()
    with _lock, warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
            if threading.get_ident() == thread:
                found.append(warnings.WarningMessage(message, category, filename, lineno, file, line))
            else:
                shown(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        if always:
            warnings.simplefilter("always")
        yield found


@contextmanager
def warnings_ignored(message: str = "", category: type[Warning] = Warning) -> Iterator[None]:
    """Show no warnings whose text begins with a regular expression."""
    with _lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=message, category=category)
        yield


@contextmanager
def descriptor_collected(number: int, *, flush: Callable[[], Any] = lambda: None) -> Iterator[list[str]]:
    """Collect what is written to a file descriptor of the process; the list is filled at the end of the block.

    What other threads write through ``sys.stderr`` meanwhile goes where it always goes. Where nothing can be collected,
    because the descriptor is closed or there is no place for it, the list stays empty and the block runs all the same.

    Parameters
    ----------
    number
        1 or 2.
    flush
        Called before the descriptor is replaced and before it is put back.
    """
    lines: list[str] = []
    with _lock, ExitStack() as stack:
        flush()
        try:
            caught = stack.enter_context(_memory_file())
            kept = os.dup(number)
        except OSError as error:
            logger.debug("what is written to descriptor %s is not collected: %s", number, error)
            yield lines
            return
        with _elsewhere_to(kept, number):
            os.dup2(caught.fileno(), number)
            try:
                yield lines
            finally:
                flush()
                os.dup2(kept, number)
                os.close(kept)
                caught.seek(0)
                lines += caught.read().decode(errors="replace").splitlines()


def flush_stream(stream: Any) -> None:
    """Have a standard stream written out, if there is one and it takes anything: it may be closed, or nobody reads."""
    if stream is not None:
        with suppress(OSError, ValueError):
            stream.flush()


def _memory_file() -> BinaryIO:
    """A file in memory, which needs no folder, where the system has such; else a temporary one."""
    if hasattr(os, "memfd_create"):
        with suppress(OSError):  # some containers forbid it
            return open(os.memfd_create("cpuinfer"), "w+b")
    return tempfile.TemporaryFile()


@contextmanager
def _elsewhere_to(kept: int, number: int) -> Iterator[None]:
    """Let other threads print to a copy of the descriptor that is replaced."""
    name = {1: "stdout", 2: "stderr"}[number]
    stream = getattr(sys, name)
    if _descriptor_of(stream) != number:
        yield
        return
    replaced = _Stream(stream, _writing_to(os.dup(kept), stream.encoding))
    setattr(sys, name, replaced)
    try:
        yield
    finally:
        if getattr(sys, name) is replaced:
            setattr(sys, name, stream)
        # Whoever has taken it for the stream meanwhile keeps a stream that works.
        replaced._cpuinfer_streams.clear()
        replaced._cpuinfer_elsewhere = stream


def _writing_to(descriptor: int, encoding: str) -> TextIO:
    """A stream that closes its descriptor when nobody has it any more: another thread may be about to write."""
    raw = io.FileIO(descriptor, "w", closefd=False)
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="replace", write_through=True)
    weakref.finalize(stream, os.close, descriptor)
    return stream


def _descriptor_of(stream: Any) -> int | None:
    with suppress(AttributeError, OSError, ValueError, io.UnsupportedOperation):
        return stream.fileno()
    return None


# Switches of TorchScript.


@contextmanager
def onednn_fusion(*, jit_autocast: bool) -> Iterator[None]:
    """Let TorchScript optimise with oneDNN Graph; both switches are put back afterwards.

    Both belong to the process. TorchScript reads them when it makes the plan of a graph, in its first calls, and never
    again. So run only those inside.

    Parameters
    ----------
    jit_autocast
        Whether TorchScript's own autocast pass runs. It must not for a module whose weights are in BF16.
    """
    with _lock:
        fusion = torch.jit.onednn_fusion_enabled()
        autocast = torch._C._jit_set_autocast_mode(jit_autocast)
        torch.jit.enable_onednn_fusion(True)
        try:
            yield
        finally:
            torch.jit.enable_onednn_fusion(fusion)
            torch._C._jit_set_autocast_mode(autocast)


# Settings that hold for blocks of the user's: the lock is not held inside.


class _Layers:
    """A number that blocks in several threads set at once; the last to leave puts back what the first has found."""

    def __init__(self, read: Callable[[], int], write: Callable[[int], Any]) -> None:
        self._read, self._write = read, write
        self._inside: dict[int, list[int]] = {}
        self._found = 0

    @contextmanager
    def set(self, value: int) -> Iterator[None]:
        self._enter(value)
        try:
            yield
        finally:
            self._leave()

    def _enter(self, value: int) -> None:
        with _lock:
            if not self._inside:
                self._found = self._read()
            self._write(value)
            self._inside.setdefault(threading.get_ident(), []).append(value)

    def _leave(self) -> None:
        thread = threading.get_ident()
        with _lock:
            outer = self._inside[thread]
            outer.pop()
            self._write(outer[-1] if outer else self._found)
            if not outer:
                del self._inside[thread]


_threads = _Layers(torch.get_num_threads, torch.set_num_threads)


class Counted:
    """Something that is switched on while anybody needs it: by the first who enters, off by the last who leaves."""

    def __init__(self, on: Callable[[], Any], off: Callable[[], Any]) -> None:
        self._on, self._off, self._count = on, off, 0

    @contextmanager
    def needed(self) -> Iterator[None]:
        """Have it on during the block."""
        with _lock:
            if not self._count:
                self._on()
            self._count += 1
        try:
            yield
        finally:
            with _lock:
                self._count -= 1
                if not self._count:
                    self._off()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run the block with ``count`` intra-operator threads of PyTorch, then restore the number.

    Parameters
    ----------
    count
        Threads, at least 1. More than the usable cores is allowed, and slow: that can be measured.

    Raises
    ------
    InputError
        If ``count`` is not a whole number of at least 1, or far more than this machine could run.

    Notes
    -----
    Do not use it around a model that IPEX has packed: IPEX's own known issues say that Linear layers may then be wrong.
    """
    check_threads(count)
    with _threads.set(count):
        yield


@contextmanager
def freed_memory_kept() -> Iterator[bool]:
    """Keep freed memory in the process, so that the next call does not fetch and clear it anew.

    The C library gives blocks above 32 MiB back to the system as soon as they are freed. An activation of that size (a
    batch of 8 at 384 tokens has some in FP32) then costs a page fault for every 4 KiB, in every call. Memory in use
    stays at its highest until the block ends.

    Yields
    ------
    bool
        Whether this C library can do it: glibc's ``mallopt`` can. Elsewhere nothing changes.
    """
    if _mallopt() is None:
        yield False
        return
    with _memory_kept.needed():
        yield True


def _keep_memory() -> None:
    mallopt = _mallopt()
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)


def _give_memory_back() -> None:
    mallopt = _mallopt()
    mallopt(_M_MMAP_MAX, 65536)
    mallopt(_M_TRIM_THRESHOLD, 128 * 1024)
    ctypes.CDLL(None).malloc_trim(0)


_memory_kept = Counted(_keep_memory, _give_memory_back)


def _mallopt() -> Any:
    if platform.libc_ver()[0] != "glibc":
        return None
    return getattr(ctypes.CDLL(None), "mallopt", None)


@contextmanager
def native_stderr_logged() -> Iterator[None]:
    """Send what native libraries write to file descriptor 2 to the log, at DEBUG.

    PyTorch's profiler reports its own comings and goings there, on every use; a notebook would show them as errors.
    """
    lines: list[str] = []
    try:
        with descriptor_collected(2, flush=lambda: flush_stream(sys.stderr)) as lines:
            yield
    finally:
        for line in lines:
            logger.debug("native library: %s", line)


@contextmanager
def native_stdout() -> Iterator[list[str]]:
    """Collect what native libraries write to file descriptor 1; the list is filled on exit."""
    flush = ctypes.CDLL(None).fflush
    with descriptor_collected(1, flush=lambda: (flush_stream(sys.stdout), flush(None))) as lines:
        yield lines
