"""Which function loads which kind of folder: each kind registers its own."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable
from typing import Any, TypeVar

from cpuinfer_helpers.errors import ArtifactError, InputError
from cpuinfer_helpers.saving.folders import kind_of

Loader = TypeVar("Loader", bound=Callable[..., Any])

_LOADERS: dict[str, Callable[..., Any]] = {}
# Modules that register a kind when they are imported, which they are not before a folder of it is to be loaded.
_ELSEWHERE: dict[str, str] = {}


def loads(kind: str) -> Callable[[Loader], Loader]:
    """Decorator of the function that loads folders of a kind: it takes the folder, and options by name."""

    def register(loader: Loader) -> Loader:
        _LOADERS[kind] = loader
        return loader

    return register


def loaded_by(module: str, kind: str) -> None:
    """Say which module registers the loader of a kind, for one that takes seconds to import."""
    _ELSEWHERE[kind] = module


def load(directory: str | os.PathLike[str], **options: Any) -> Any:
    """Load a folder by the function that knows its kind.

    Parameters
    ----------
    directory
        The folder.
    **options
        For that function.

    Raises
    ------
    ArtifactError
        If the folder has no manifest, or no kind that is known here.
    InputError
        If an option has no meaning for its kind.
    """
    kind = kind_of(directory)
    if kind not in _LOADERS and kind in _ELSEWHERE:
        importlib.import_module(_ELSEWHERE[kind])
    if kind not in _LOADERS:
        what = "does not say what it holds" if kind is None else f"holds {kind!r:.80}, not a model that was saved"
        raise ArtifactError(
            f"{os.fspath(directory)} {what}; give a folder that save() of a traced, prepared or optimized model wrote"
        )
    loader = _LOADERS[kind]
    for name in options.keys() - inspect.signature(loader).parameters.keys():
        raise InputError(f"{name} has no meaning for what {os.fspath(directory)} holds ({kind}); leave it out")
    return loader(directory, **options)
