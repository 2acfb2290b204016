"""Start a Python program that does not outlive the process that started it, even one that is killed.

Run as a file, by its path, so that the two are tied before this package, and with it PyTorch, is imported:
``python tied.py PARENT -m MODULE ...`` or ``python tied.py PARENT -c PROGRAM ...``.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    # The folder of this file, whose modules are none of the top level.
    sys.path = [folder for folder in sys.path if folder != __file__.rpartition("/")[0]]

import ctypes
import os
import runpy
import signal
import threading
import time

_PR_SET_PDEATHSIG = 1
_POLL_S = 1.0


def command(*words: str) -> list[str]:
    """The command line of a Python program that ends with this process.

    Parameters
    ----------
    *words
        ``-m`` and a module, or ``-c`` and a program; then its arguments.
    """
    return [sys.executable, os.path.abspath(__file__), str(os.getpid()), *words]


def end_with(parent: int) -> None:
    """Have the system end this process when its parent ends; where it cannot, look once a second.

    Parameters
    ----------
    parent
        The parent's process id. If that is no longer the parent, this process ends at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os._exit(1)


def _main(parent: str, kind: str, what: str, *arguments: str) -> None:
    end_with(int(parent))
    # As Python itself has it for these two.
    if not getattr(sys.flags, "safe_path", False):
        sys.path.insert(0, "" if kind == "-c" else os.getcwd())
    sys.argv = [what if kind == "-m" else "-c", *arguments]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    _main(*sys.argv[1:])
