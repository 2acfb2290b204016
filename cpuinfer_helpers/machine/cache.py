"""The folder that this package keeps its own files in."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cpuinfer_helpers.machine.paths import given_path

# What its path is called in messages.
_CACHE = "the folder for caches (set CPUINFER_CACHE)"


def cache_directory() -> Path:
    """Where rebuilt checkpoints are kept: ``CPUINFER_CACHE``, or the platform's own folder for caches."""
    chosen = os.environ.get("CPUINFER_CACHE")
    if chosen:
        return given_path(chosen, "the variable CPUINFER_CACHE")
    if sys.platform == "darwin":
        return given_path("~/Library/Caches/cpuinfer_helpers", _CACHE)
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return given_path(base or "~/.cache", _CACHE) / "cpuinfer_helpers"
