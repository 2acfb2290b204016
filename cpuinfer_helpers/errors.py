"""The errors of this package: each says what was wrong with which value, and what to do.

In brackets is what each is as well, so that code which catches Python's own errors catches ours:

* CpuInferError
  + InputError (ValueError)
  + DataError (ValueError)
  + TraceError (RuntimeError)
  + RecipeError (RuntimeError)
  + ArtifactError (RuntimeError)
  + BuildError (RuntimeError)
"""

from __future__ import annotations

import logging
import re

# Control characters, line separators, those that change the direction of what follows, and halves of characters.
_MOVING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, keep: str = "") -> str:
    """The text with every character escaped that moves the cursor or other characters: terminals and logs stay whole.

    Parameters
    ----------
    text
        Such as the name of a file that somebody else has made.
    keep
        Characters that stay as they are, such as line ends.
    """
    return _MOVING.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def log_as_printable(record: logging.LogRecord) -> bool:
    """A filter for loggers: names of files, and what others have written, are logged too."""
    text = record.getMessage()
    if printable(text, keep="\n\t") != text:
        record.msg, record.args = printable(text, keep="\n\t"), ()
    return True


class CpuInferError(Exception):
    """Base of every error that this package raises on purpose; its text never moves the terminal's cursor."""

    def __str__(self) -> str:
        return printable(super().__str__(), keep="\n\t")


class InputError(CpuInferError, ValueError):
    """An argument cannot be used: the message names it, its value and what would do."""


class DataError(CpuInferError, ValueError):
    """A data file is malformed: the message names the file and the record."""


class TraceError(CpuInferError, RuntimeError):
    """A model could not be traced, or its trace gave other answers than the model."""


class RecipeError(CpuInferError, RuntimeError):
    """A recipe cannot run here, could not prepare a model, or gave other answers than the model."""


class ArtifactError(CpuInferError, RuntimeError):
    """Something saved earlier is missing, damaged or of another kind than expected."""


class BuildError(CpuInferError, RuntimeError):
    """A C++ program could not be compiled or did not run."""


# How Python, PyTorch and C++ say that there was no more memory.
_MEMORY_WORDS = ("DefaultCPUAllocator: can't allocate", "bad_alloc", "MemoryError", "Cannot allocate memory")


def is_memory_error(text: str) -> bool:
    """Whether an error's text says that there was no more memory."""
    return any(word in text for word in _MEMORY_WORDS)


def not_loaded(folder: object, error: Exception) -> ArtifactError:
    """What to raise where a folder whose files are whole could not be loaded."""
    what = first_line(error)
    if is_memory_error(what):
        return ArtifactError(f"there is not enough memory to load {folder} ({what}); the folder is whole")
    return ArtifactError(f"{folder}: its manifest is not what save() writes ({what}); save again")


def first_line(error: BaseException) -> str:
    """Kind and first telling line of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # TorchScript puts the operator's own message last, behind the traceback of its interpreter.
    own = [line for line in lines if line.startswith(("RuntimeError:", "IndexError:", "ValueError:"))]
    text = own[-1] if own else (lines[0] if lines else "no message")
    # Some name the raiser first, and what was raised below.
    if len(lines) > 1 and text == lines[0] and text.endswith(":"):
        text = f"{text} {lines[1]}"
    return text if text.startswith(type(error).__name__) else f"{type(error).__name__}: {text}"
