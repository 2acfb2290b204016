"""The C++ compiler of this machine."""

from __future__ import annotations

import os
import shutil

_COMPILERS = ("c++", "g++", "clang++")


def find_compiler() -> str | None:
    """The C++ compiler: ``$CXX``, or the first of c++, g++ and clang++ that is installed; None if there is none."""
    chosen = os.environ.get("CXX")
    return shutil.which(chosen) if chosen else next(filter(None, map(shutil.which, _COMPILERS)), None)
