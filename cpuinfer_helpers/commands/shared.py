"""What the package's commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress

from cpuinfer_helpers.errors import CpuInferError, InputError
from cpuinfer_helpers.machine.scratch import sweep


def exit_code(command: str, run: Callable[[], int], *, after_interrupt: str = "") -> int:
    """Run a command.

    Parameters
    ----------
    command
        Its name, for messages.
    run
        What it does; returns its exit code.
    after_interrupt
        What to say after Ctrl-C, beside that it was interrupted.

    Returns
    -------
    int
        That of ``run``; 2 with one line on standard error if the request cannot be carried out; 130 after Ctrl-C.
    """
    sweep()
    try:
        return run()
    except CpuInferError as error:
        say(f"{command}: {' '.join(str(error).split())}")
        return 2
    except BrokenPipeError:  # whoever read what is printed has seen enough
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  for as long as the process lasts
        return 1
    except KeyboardInterrupt:
        say("; ".join(filter(None, (f"{command}: interrupted", after_interrupt))))
        return 130


def say(text: str) -> None:
    """Write a line to standard error, if there is one that takes it; the exit code tells in any case."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)


def names_of(option: str, text: str | None) -> list[str] | None:
    """Names separated by commas; None if the option was not given.

    Raises
    ------
    InputError
        If there are none.
    """
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise InputError(f"{option} {text!r} names none; give names separated by commas")
    return names
