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
    """Names of the kinds that have data and a trained model, which :func:`~cpuinfer_helpers.load_task` loads."""
    return tuple(kind.name for kind in kinds() if kind.data is not None and kind.data.source is not None)


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
    """The kind of a name, which has data.

    Raises
    ------
    InputError
        If there is none, or it has no data.
    """
    kind = get_kind(name)
    if kind.data is None:
        raise InputError(f"there is no data for {name}; choose from {', '.join(task_names())}")
    return kind


def loadable_kind(name: str) -> TaskKind:
    """The kind of a name, which has data and a trained model.

    Raises
    ------
    InputError
        If there is none, or it lacks one of the two.
    """
    if not isinstance(name, str) or name not in task_names():
        known = isinstance(name, str) and name in kind_names()
        what = f"there is no data and no trained model for {name}" if known else f"unknown task {name!r}"
        raise InputError(f"{what}; choose from {', '.join(task_names())}")
    return get_kind(name)


@cache
def _registry() -> dict[str, TaskKind]:
    found = sorted(_found(), key=lambda kind: (kind.data is None, kind.name))
    return {kind.name: kind for kind in found}


def _found() -> Iterator[TaskKind]:
    for module in pkgutil.iter_modules(package.__path__):
        kind = getattr(importlib.import_module(f"{package.__name__}.{module.name}"), "KIND", None)
        if kind is not None:
            yield kind
