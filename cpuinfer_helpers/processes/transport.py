"""Hand models and inputs to child processes: structure by cloudpickle, tensors in one safetensors file that all map."""

from __future__ import annotations

import contextvars
import hashlib
import importlib
import json
import mmap
import os
import pickle
import struct
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.nn.utils import parametrize

from cpuinfer_helpers.errors import ArtifactError, InputError, first_line
from cpuinfer_helpers.saving.tensors import write_named_tensors

# Every tensor's bytes begin on a page of their own, so that a child can map and release them one by one.
_PAGE = mmap.ALLOCATIONGRANULARITY


@dataclass(frozen=True)
class Parcel:
    """What was written for the children.

    Attributes
    ----------
    structure, tensors
        The two files: everything but the tensors' bytes, and these.
    sha256
        Of ``structure``.
    tensor_bytes
        Bytes of all tensors; those that share storage count once.
    """

    structure: str
    tensors: str
    sha256: str
    tensor_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """The parcel in types that JSON knows."""
        return asdict(self)


def write_parcel(folder: Path, name: str, content: Any) -> Parcel:
    """Write any object that holds modules and tensors.

    Parameters
    ----------
    folder
        A folder that only this user can write to.
    name
        Beginning of the files' names.
    content
        What to send. Classes and functions of a notebook go along by value; those of modules by name.

    Returns
    -------
    Parcel

    Raises
    ------
    InputError
        If something in it cannot be pickled, or a tensor is not in the CPU's memory.
    ArtifactError
        If the files cannot be written.
    """
    structure, tensors = folder / f"{name}.pickle", folder / f"{name}.safetensors"
    try:
        with structure.open("wb") as file:
            storages = _pickle_structure(file, content)
        size = _write_storages(tensors, storages)
        digest = hashlib.sha256(structure.read_bytes()).hexdigest()
    except OSError as error:
        raise ArtifactError(
            f"{folder} cannot hold what the child processes need: {error}; make room there or set TMPDIR"
        ) from error
    return Parcel(str(structure), str(tensors), digest, size)


def read_parcel(parcel: Parcel) -> Any:
    """Read what :func:`write_parcel` wrote; its tensors are mapped, so processes share them until one writes.

    Raises
    ------
    ArtifactError
        If the file is not the one that was written.
    """
    data = Path(parcel.structure).read_bytes()
    # Unpickling runs code. These bytes are the parent's own: it wrote them into a folder that only this user can
    # write to, and told their sha256 through a pipe.
    if hashlib.sha256(data).hexdigest() != parcel.sha256:
        raise ArtifactError(f"{parcel.structure} is not what the parent process wrote: its sha256 differs")
    with Path(parcel.tensors).open("rb") as file:
        return _Unpickler(data, _map_storages(file)).load()


def _pickle_structure(file: BinaryIO, content: Any) -> list[torch.UntypedStorage]:
    import cloudpickle

    class Pickler(cloudpickle.Pickler):
        """Leaves a number in the place of every storage, as torch.save does: views and ties stay what they are."""

        def __init__(self) -> None:
            super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
            self.numbers: dict[tuple[int, int], int] = {}
            self.storages: list[torch.UntypedStorage] = []

        def persistent_id(self, value: Any) -> tuple[int, torch.dtype | None] | None:
            if isinstance(value, torch.storage.TypedStorage):
                return self._number(value._untyped_storage), value.dtype
            if isinstance(value, torch.UntypedStorage):
                return self._number(value), None
            if isinstance(value, torch.Tensor):
                _check_on_cpu(value)
            return None

        def reducer_override(self, value: Any) -> Any:
            # Transformers 5 leaves hooks that hold one on a model that was asked for its hidden states.
            own = isinstance(value, contextvars.ContextVar)
            if own or isinstance(getattr(value, "context_var", None), contextvars.ContextVar):
                place = _place_of(value)
                if place or own:
                    return (_variable_at, place) if place else (_new_variable, (value.name, *_default_of(value)))
            if isinstance(value, torch.nn.Module) and parametrize.is_parametrized(value):
                original = parametrize.type_before_parametrizations(value)
                return original.__new__, (original,), value.__dict__, None, None, _parametrize_again
            return super().reducer_override(value)

        def _number(self, storage: torch.UntypedStorage) -> int:
            key = (storage.data_ptr(), storage.nbytes())
            if key not in self.numbers:
                self.numbers[key] = len(self.storages)
                self.storages.append(storage)
            return self.numbers[key]

    pickler = Pickler()
    try:
        pickler.dump(content)
    except (InputError, OSError):
        raise
    except Exception as error:  # whatever the user's objects raise when they are pickled
        raise InputError(
            f"the model or its inputs cannot be sent to another process: {first_line(error)}; "
            "remove what cannot be pickled (locks, open files, generators) from the model"
        ) from error
    return pickler.storages


def _parametrize_again(module: torch.nn.Module, state: dict[str, Any]) -> None:
    """Fill a module that computes some of its weights, such as by weight normalisation.

    PyTorch gives each of them a class of its own, which refuses to be pickled.
    """
    module.__dict__.update(state)
    parametrize._inject_new_class(module)
    for name in module.parametrizations:
        parametrize._inject_property(module, name)


def _place_of(variable: Any) -> tuple[str, str] | None:
    """The module that has this very variable, and its name there."""
    for module_name, module in list(sys.modules.items()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is variable and module_name != "__main__":
                return module_name, name
    return None


def _variable_at(module_name: str, name: str) -> Any:
    return getattr(importlib.import_module(module_name), name)


def _default_of(variable: contextvars.ContextVar[Any]) -> tuple[Any, ...]:
    """The variable's default, which only an empty context shows; nothing if it has none."""
    try:
        return (contextvars.Context().run(variable.get),)
    except LookupError:
        return ()


def _new_variable(name: str, *default: Any) -> contextvars.ContextVar[Any]:
    return contextvars.ContextVar(name, default=default[0]) if default else contextvars.ContextVar(name)


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, storages: list[torch.UntypedStorage]) -> None:
        import io

        super().__init__(io.BytesIO(data))
        self.storages = storages

    def persistent_load(self, number_and_dtype: tuple[int, torch.dtype | None]) -> Any:
        number, dtype = number_and_dtype
        storage = self.storages[number]
        if dtype is None:
            return storage
        return torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)


def _write_storages(path: Path, storages: list[torch.UntypedStorage]) -> int:
    """The safetensors format, written piece by piece: its library would first make a copy of all of them.

    Each storage is a tensor of bytes, padded to whole pages, with its true size among the metadata.
    """
    header: dict[str, Any] = {"__metadata__": {str(n): str(storage.nbytes()) for n, storage in enumerate(storages)}}
    offset = 0
    for number, storage in enumerate(storages):
        end = offset + _whole_pages(storage.nbytes())
        header[str(number)] = {"dtype": "U8", "shape": [end - offset], "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (_whole_pages(8 + len(text)) - 8 - len(text))
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for storage in storages:
            size = storage.nbytes()
            if size:
                file.write(memoryview(_as_bytes(storage).numpy()))
            file.write(bytes(_whole_pages(size) - size))
    return sum(storage.nbytes() for storage in storages)


def _map_storages(file: BinaryIO) -> list[torch.UntypedStorage]:
    (length,) = struct.unpack("<Q", file.read(8))
    header = json.loads(file.read(length))
    sizes = header.pop("__metadata__")
    storages = []
    for number in range(len(header)):
        start, end = header[str(number)]["data_offsets"]
        storages.append(_map_storage(file.fileno(), 8 + length + start, end - start, int(sizes[str(number)])))
    return storages


def _map_storage(descriptor: int, offset: int, length: int, size: int) -> torch.UntypedStorage:
    if not size:
        return torch.UntypedStorage(0)
    # Copy on write: a backend that changes weights in place changes its own process only.
    mapped = mmap.mmap(descriptor, length, access=mmap.ACCESS_COPY, offset=offset)
    return torch.frombuffer(mapped, dtype=torch.uint8, count=size).untyped_storage()


def _as_bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def _check_on_cpu(tensor: torch.Tensor) -> None:
    if tensor.device.type != "cpu":
        raise InputError(
            f"a tensor of shape {list(tensor.shape)} is on {tensor.device}, not on the CPU; call model.to('cpu') first"
        )


def _whole_pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


def write_tensors(path: Path, groups: list[dict[str, torch.Tensor]]) -> None:
    """Write several dictionaries of tensors into one safetensors file."""
    flat = {f"{number}/{name}": tensor for number, group in enumerate(groups) for name, tensor in group.items()}
    write_named_tensors(flat, path)


def read_tensors(path: Path) -> list[dict[str, torch.Tensor]]:
    """The dictionaries that :func:`write_tensors` wrote; the file is removed."""
    from safetensors.torch import load

    flat = load(path.read_bytes())
    os.unlink(path)
    groups: list[dict[str, torch.Tensor]] = [{} for _ in range(1 + max(int(key.split("/", 1)[0]) for key in flat))]
    for key, tensor in flat.items():
        number, name = key.split("/", 1)
        groups[int(number)][name] = tensor
    return groups
