"""Which function loads which kind of folder: each kind registers its own."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any, TypeVar

from cpuinfer_helpers.errors import ArtifactError, InputError
from cpuinfer_helpers.saving.folders import kind_of

Loader = TypeVar("Loader", bound=Callable[..., Any])

_LOADERS: dict[str, Callable[..., Any]] = {}


def loads(kind: str) -> Callable[[Loader], Loader]:
    """Decorator of the function that loads folders of a kind: it takes the folder, and options by name."""

    def register(loader: Loader) -> Loader:
        _LOADERS[kind] = loader
        return loader

    return register


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
    if kind not in _LOADERS:
        what = "does not say what it holds" if kind is None else f"holds {kind!r:.80}, not a model that was saved"
        raise ArtifactError(
            f"{os.fspath(directory)} {what}; give a folder that save() of a traced, prepared or optimized model wrote"
        )
    loader = _LOADERS[kind]
    for name in options.keys() - inspect.signature(loader).parameters.keys():
        raise InputError(f"{name} has no meaning for what {os.fspath(directory)} holds ({kind}); leave it out")
    return loader(directory, **options)
