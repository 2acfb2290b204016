"""The kinds of tasks by name. A module of ``tasks.kinds`` that has a ``KIND`` is found by itself."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache

from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.tasks import kinds as package
from cpuinfer_helpers.tasks.kinds.base import TaskKind


def kinds() -> tuple[TaskKind, ...]:
    """All kinds of tasks: those with data first, then by name."""
    return tuple(_registry().values())


def kind_names() -> tuple[str, ...]:
    """Names of all kinds, which :func:`~cpuinfer_helpers.load_model` knows."""
    return tuple(_registry())


def task_names() -> tuple[str, ...]:
    """Names of the kinds that have data, which :func:`~cpuinfer_helpers.load_task` loads."""
    return tuple(kind.name for kind in kinds() if kind.data is not None)


def get_kind(name: str) -> TaskKind:
    """The kind of a name.

    Raises
    ------
    InputError
        If there is none.
    """
    if not isinstance(name, str) or name not in _registry():
        raise InputError(f"unknown task {name!r}; choose from {', '.join(kind_names())}")
    return _registry()[name]


def kind_with_data(name: str) -> TaskKind:
    """The kind of a name, if it has data.

    Raises
    ------
    InputError
        If there is none, or it has no data.
    """
    if isinstance(name, str) and name in _registry() and name not in task_names():
        raise InputError(f"there is no data for {name}; choose from {', '.join(task_names())}")
    if name not in task_names():
        raise InputError(f"unknown task {name!r}; choose from {', '.join(task_names())}")
    return _registry()[name]


@cache
def _registry() -> dict[str, TaskKind]:
    found = sorted(_found(), key=lambda kind: (kind.data is None, kind.name))
    return {kind.name: kind for kind in found}


def _found() -> Iterator[TaskKind]:
    for module in pkgutil.iter_modules(package.__path__):
        kind = getattr(importlib.import_module(f"{package.__name__}.{module.name}"), "KIND", None)
        if kind is not None:
            yield kind
