"""JSON that somebody else may have written: read without waiting, with nothing in it that could do harm later."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from cpuinfer_helpers.errors import printable

# The manifest of a model of 1000 layers takes about 1 MB.
_LARGEST_FILE = 64 * 2**20
# Outputs of transformers nest five deep.
_DEEPEST = 64
# What 64 bits hold, as sizes, counts and ids do.
_LARGEST_NUMBER = 2**63


@contextmanager
def open_plain(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file for reading; what is no file, such as a pipe or a device, is an error and not a wait.

    Raises
    ------
    OSError
        If it is no file, or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is no file")
        yield file


def is_plain(path: Path) -> bool:
    """Whether there is a file, and not a link to one somewhere else, a pipe or a device."""
    return stat.S_ISREG(path.lstat().st_mode) if path.exists() or path.is_symlink() else False


def read_plain_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file.

    Raises
    ------
    OSError
        If it is no file, or cannot be read.
    ValueError
        If it is no JSON, larger or deeper than anything this package writes, holds a number of more than 64 bits, or a
        text that would move a terminal's cursor.
    """
    with open_plain(path) as file:
        data = file.read(_LARGEST_FILE + 1)
    if len(data) > _LARGEST_FILE:
        raise ValueError(f"it is larger than {_LARGEST_FILE / 2**20:.0f} MiB")
    try:
        value = json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check(value, 0)
    return value


def without_escapes(value: Any) -> Any:
    """The same with every text as :func:`read_plain_json` takes it."""
    if isinstance(value, str):
        return printable(value, keep="\n\t")
    if isinstance(value, dict):
        return {key: without_escapes(entry) for key, entry in value.items()}
    return [without_escapes(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _check(value: Any, depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError(f"it is nested more than {_DEEPEST} deep")
    if isinstance(value, str) and printable(value, keep="\n\t") != value:
        raise ValueError(f"it holds control characters: {value!a:.80}")
    if isinstance(value, int) and abs(value) >= _LARGEST_NUMBER:
        raise ValueError("it holds a number of more than 64 bits")
    for entry in (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check(entry, depth + 1)
