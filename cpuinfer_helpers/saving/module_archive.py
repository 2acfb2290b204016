"""What a TorchScript archive holds, looked at before TorchScript reads it: its layout, its code and its pickles."""

from __future__ import annotations

import os
import pickle
import pickletools
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from cpuinfer_helpers.errors import ArtifactError, printable
from cpuinfer_helpers.saving.module_code import KNOWN_CLASSES, why_refused

# What torch.jit.save writes below the one folder of its archive. Another reader of archives ignores the case of names.
_LAYOUT = re.compile(
    r"(?:data|constants)\.pkl|(?:data|constants)/\d+|version|byteorder|\.data/(?:version|serialization_id)"
    r"|\.(?:format_version|storage_alignment)|code/[\w/]+\.py(?:\.debug_pkl)?",
    re.ASCII,
)
# The code of a model of 1000 layers is about 5 MB, its description less: whatever is larger was made to fill memory.
_LARGEST_TEXT = 64 * 2**20
_TEXTS_TOGETHER = 256 * 2**20
# The ends of a zip file: signature and length of the directory's end, of its 64-bit form, and of what leads there.
_END, _END64, _LOCATOR = (b"PK\x05\x06", 22), (b"PK\x06\x06", 56), (b"PK\x06\x07", 20)
_FLATBUFFER = b"PTMF"
# Sizes are known from the directory, and names are UTF-8: the flags that torch.jit.save sets.
_USUAL_FLAGS = 0x808


def check_module_archive(path: str | os.PathLike[str], *, advice: str = "save the model again") -> None:
    """Refuse a file that is no TorchScript archive, or one that could do more than compute.

    Loading an archive runs the ``__setstate__`` of its classes, and a call runs all the rest: among TorchScript's
    operators are some that write and map files. So nothing is deserialised before this has seen that the archive is
    laid out as ``torch.jit.save`` lays it out, that its code names no such operator and defines no ``__setstate__``,
    and that its pickles hold tensors, numbers, texts and classes of its own only.

    Parameters
    ----------
    path
        The file.
    advice
        What to do about it, for the message.

    Raises
    ------
    ArtifactError
        If anything of it is otherwise.
    """
    try:
        why = _why_refused(Path(path))
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, struct.error, KeyError) as error:
        why = f"it cannot be read ({printable(str(error))})"
    if why:
        raise ArtifactError(f"{path} is no TorchScript module that can be trusted: {why}; {advice}")


def _why_refused(path: Path) -> str | None:
    why = _ambiguous_ends(path)
    if why:
        return why
    with zipfile.ZipFile(path) as archive:
        entries, why = _entries(archive)
        if why:
            return why
        texts = [name for name in entries if name.endswith(".py")]
        for name in texts:
            why = why_refused(archive.read(entries[name]).decode())
            if why:
                return f"{name} {why}"
        for name in ("constants", "data"):
            if f"{name}.pkl" in entries:
                sizes = {key: entry.file_size for key, entry in entries.items()}
                why = _why_pickle_refused(archive.read(entries[f"{name}.pkl"]), name, sizes)
                if why:
                    return f"{name}.pkl {why}"
    return None


def _ambiguous_ends(path: Path) -> str | None:
    """Why two readers of zip files could see different archives in it, or None."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        file.seek(max(0, size - _END[1] - _LOCATOR[1] - _END64[1]))
        end = file.read()
    if not start.startswith(b"PK\x03\x04") or start.endswith(_FLATBUFFER):
        return "it is no zip file"
    last = end[-_END[1] :]
    if not last.startswith(_END[0]) or last[-2:] != b"\0\0":
        return "it does not end as a zip file does"
    (*_, length, offset) = struct.unpack("<4s4H2L", last[:-2])
    before = end[: -_END[1]]
    if before[-_LOCATOR[1] :].startswith(_LOCATOR[0]):
        where = size - len(end)
        if not before.startswith(_END64[0]) or struct.unpack("<4sLQL", before[-_LOCATOR[1] :])[2] != where:
            return "it has two directories"
        length, offset = struct.unpack("<2Q", before[40:56])
        return None if offset + length == where else "something stands behind its directory"
    return None if offset + length == size - _END[1] else "something stands behind its directory"


def _entries(archive: zipfile.ZipFile) -> tuple[dict[str, zipfile.ZipInfo], str | None]:
    """The entries by name without the folder they are all in, and why they are refused, or None."""
    entries: dict[str, zipfile.ZipInfo] = {}
    folders = {entry.filename.partition("/")[0] for entry in archive.infolist()}
    for entry in archive.infolist():
        name = entry.filename.partition("/")[2]
        if len(folders) != 1 or not _LAYOUT.fullmatch(name):
            return {}, f"it has an entry {printable(entry.filename)!r}, which torch.jit.save does not write"
        if name.lower() in entries:
            return {}, f"it has two entries {name!r}"
        if entry.flag_bits & ~_USUAL_FLAGS or entry.orig_filename != entry.filename:
            return {}, f"its entry {name!r} is encrypted or misnamed"
        if entry.compress_type == zipfile.ZIP_STORED:
            if entry.compress_size != entry.file_size:
                return {}, f"its entry {name!r} has two sizes"
        elif entry.compress_type != zipfile.ZIP_DEFLATED or not name.startswith("code/"):
            return {}, f"its entry {name!r} is packed"
        entries[name.lower()] = entry
    texts = [entry.file_size for name, entry in entries.items() if not re.fullmatch(r"(?:data|constants)/\d+", name)]
    if max(texts, default=0) > _LARGEST_TEXT or sum(texts) > _TEXTS_TOGETHER:
        return {}, f"its code and descriptions are {sum(texts) / 2**20:.0f} MiB long"
    if "data.pkl" not in entries:
        return {}, "it has no data.pkl"
    return {entry.filename.partition("/")[2]: entry for entry in entries.values()}, None


# Bytes of an element, by the storage's name.
_STORAGES = {
    **dict.fromkeys(("BoolStorage", "ByteStorage", "CharStorage", "QInt8Storage", "QUInt8Storage"), 1),
    **dict.fromkeys(("UntypedStorage", "Float8_e4m3fnStorage", "Float8_e5m2Storage"), 1),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("FloatStorage", "IntStorage", "QInt32Storage"), 4),
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    "ComplexDoubleStorage": 16,
}
_TENSORS = ("_rebuild_tensor_v2", "_rebuild_qtensor")
_GLOBALS = re.compile(
    r"collections OrderedDict|torch device|torch per_(?:tensor|channel)_affine(?:_float_qparams)?|torch \w+Storage"
    r"|torch\._utils _rebuild_(?:tensor_v2|qtensor|parameter|sparse_tensor|sparse_csr_tensor)"
    r"|torch\.jit\._pickle (?:build_(?:int|tensor|double|bool)list|restore_type_tag)"
    rf"|__torch__\.torch\.classes\.(?:{'|'.join(KNOWN_CLASSES)}) \w+|__torch__(?!\.torch\.classes\b)(?:\.\w+)* \w+",
    re.ASCII,
)
_OPCODES = frozenset(
    (
        "PROTO STOP MARK GLOBAL REDUCE BUILD NEWOBJ BINPERSID BINPUT LONG_BINPUT BINGET LONG_BINGET NONE NEWTRUE "
        "NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE BINUNICODE8 BINSTRING SHORT_BINSTRING EMPTY_TUPLE "
        "TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS LIST EMPTY_DICT SETITEM SETITEMS DICT POP DUP"
    ).split()
)


def _why_pickle_refused(data: bytes, folder: str, sizes: Mapping[str, int]) -> str | None:
    """Why a description that TorchScript would unpickle is refused, or None; Python unpickles stand-ins only."""
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name not in _OPCODES:
                return f"has {opcode.name}, which TorchScript does not write"
            if opcode.name == "GLOBAL" and not _GLOBALS.fullmatch(argument):
                return f"names {printable(argument)!r}, which no tensor, number or text needs"
        _StandIns(data, folder, sizes).load()
    except Exception as error:  # what is no sound pickle can fail anywhere
        return f"is damaged ({printable(str(error))})"
    return None


class _StandIn:
    """In the place of every class and function that a pickle names: made and filled, it does nothing."""

    def __new__(cls, *_: Any) -> _StandIn:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _StandIns(pickle._Unpickler):  # the one in C makes room for as many entries as a pickle claims to have
    """Unpickles stand-ins, to see that every tensor lies within a storage, and every storage within its entry."""

    def __init__(self, data: bytes, folder: str, sizes: Mapping[str, int]) -> None:
        super().__init__(BytesIO(data))
        self._folder, self._sizes = folder, sizes

    def find_class(self, module: str, name: str) -> Any:
        if name.endswith("Storage") and module == "torch":
            return name
        if module == "torch._utils" and name in _TENSORS:
            return self._tensor
        return OrderedDict if name == "OrderedDict" else _StandIn

    def persistent_load(self, pid: Any) -> int:
        """The number of elements of a storage."""
        kind, storage, key, _, elements = pid
        if kind != "storage" or not 0 <= elements * _STORAGES[storage] <= self._sizes.get(f"{self._folder}/{key}", 0):
            raise ValueError(f"a storage of {elements} elements is not there")
        return elements

    def _tensor(self, elements: int, offset: int, size: Any, stride: Any, *_: Any) -> _StandIn:
        if len(size) != len(stride) or min((offset, *size, *stride)) < 0:
            raise ValueError(f"a tensor of shape {size} cannot be")
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if 0 not in size and last >= elements:
            raise ValueError(f"a tensor of shape {size} does not fit into {elements} elements")
        return _StandIn()
