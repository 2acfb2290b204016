"""The functions that a child process may be asked to run: those of this package, by name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from cpuinfer_helpers.errors import InputError

_PACKAGE = __name__.partition(".")[0]


def find_function(question: str) -> Callable[..., Any]:
    """The function that is named as ``module:function``.

    Parameters
    ----------
    question
        A module of this package, and a function that is defined in it, such as
        ``cpuinfer_helpers.compare.mixed:measure_mixed_lengths``.

    Raises
    ------
    InputError
        If the module is not of this package, or defines no such function.
    """
    module, _, name = question.partition(":")
    if not module.startswith(f"{_PACKAGE}."):
        raise InputError(f"{question!r} cannot be asked; name a function of {_PACKAGE} as 'module:function'")
    function = getattr(importlib.import_module(module), name, None)
    # What a module has imported is not its own, and may be anything.
    if not inspect.isfunction(function) or function.__module__ != module:
        raise InputError(f"{question!r} cannot be asked: {module} defines no function {name!r}")
    return function


def step_of(question: str) -> str:
    """The function's name, for people who wait for it."""
    return question.rpartition(":")[2]
