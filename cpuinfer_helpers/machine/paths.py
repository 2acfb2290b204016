"""Paths that a person gives: usable, or refused in one line that names the argument."""

from __future__ import annotations

import os
from pathlib import Path

from cpuinfer_helpers.errors import InputError


def given_path(path: object, argument: str = "path") -> Path:
    """The path, with ``~`` filled in.

    Parameters
    ----------
    path
        Text or a :class:`~pathlib.Path`.
    argument
        Its name, for the message.

    Raises
    ------
    InputError
        If it is of another type, empty, holds a character that no name can have, or begins at a home that is not known.
    """
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise InputError(f"{argument} is {path!r}, a {type(path).__name__}; give a path as text or as a pathlib.Path")
    if not text.strip():
        raise InputError(f"{argument} is {text!r}, which names nothing; give a path")
    try:
        if b"\0" in os.fsencode(text):
            raise InputError(f"{argument} is {text!r}: no name can hold a NUL character; give another path")
        return Path(text).expanduser()
    except UnicodeError as error:
        raise InputError(f"{argument} is {text!a}, which is no name here: {error.reason}") from error
    except RuntimeError as error:
        raise InputError(f"{argument} is {text!r}, but the home folder is not known: {error}; write it out") from error
