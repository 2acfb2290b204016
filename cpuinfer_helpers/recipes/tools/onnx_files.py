"""What an ONNX file may name outside of itself, looked at before a runtime opens it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cpuinfer_helpers.errors import ArtifactError, printable
from cpuinfer_helpers.saving.plain_json import is_plain


def check_external_data(path: Path) -> None:
    """Refuse a file whose weights lie elsewhere than in plain files beside it.

    An ONNX file may name other files that hold its weights, and a runtime maps whatever it names into memory. Those
    beside a saved model have a checksum in its manifest; no others are to be opened.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    ArtifactError
        If it cannot be read, or names a file by more than its name, one that is not there, that is no plain file, or
        that is shorter than what is to be read from it.
    """
    import onnx

    try:
        if not is_plain(path):
            raise ValueError("it is no file of its own, but a link, a pipe or the like")
        model = onnx.load(path, load_external_data=False)
        for tensor in _tensors(model, onnx.TensorProto):
            if tensor.external_data or tensor.data_location == onnx.TensorProto.EXTERNAL:
                _check(path, tensor)
    except ArtifactError:
        raise
    except Exception as error:  # protobuf has errors of its own for what is damaged
        raise ArtifactError(f"{path} cannot be read: {error}; save the model again") from error


def _tensors(message: Any, kind: type) -> Iterator[Any]:
    """All tensors of a message: initializers, constants of nodes, and those of graphs and functions inside it."""
    if isinstance(message, kind):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            # What is repeated can be gone through; a single message cannot.
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(part, kind)


def _check(path: Path, tensor: Any) -> None:
    # With an entry given twice, each reader takes another one: all of them count.
    locations = [entry.value for entry in tensor.external_data if entry.key == "location"]
    name = printable(tensor.name)
    if not locations:
        raise ArtifactError(f"{path}: the weights {name!r} lie outside of it, and it does not tell where")
    for location in locations:
        shown = f"{path}: the weights {name!r} are in {printable(location)[:200]!r}"
        if location in ("", ".", "..") or os.path.basename(location) != location or "\\" in location:
            raise ArtifactError(f"{shown}; only files beside it are read: save the model again")
        if location == path.name or not is_plain(path.with_name(location)):
            raise ArtifactError(f"{shown}, which is no file of its own beside it; save the model again")
        end = _number(tensor, "offset") + _number(tensor, "length")
        if end > path.with_name(location).stat().st_size:
            raise ArtifactError(f"{shown}, which is shorter than what is to be read; save the model again")


def _number(tensor: Any, key: str) -> int:
    """The largest of the numbers by that name; not given, it is 0."""
    values = [entry.value for entry in tensor.external_data if entry.key == key]
    if not all(value.isascii() and value.isdigit() and len(value) < 20 for value in values):
        raise ArtifactError(f"the weights {printable(tensor.name)!r} have the {key} {printable(values[0])[:40]!r}")
    return max(map(int, values), default=0)
