"""Folders with a manifest: written whole or not at all, checked before anything in them is deserialised."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cpuinfer_helpers.errors import ArtifactError, printable
from cpuinfer_helpers.machine.paths import given_path
from cpuinfer_helpers.machine.scratch import sweep, unfinished_file, unfinished_folder
from cpuinfer_helpers.saving.plain_json import is_plain, open_plain, read_plain_json, without_escapes

MANIFEST = "manifest.json"
MODULE_FILE = "model.torchscript.pt"
# renameat2(2): paths are taken from the working directory; the two names change places.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
# Others that save there at the same time make each attempt fail at most once.
_ATTEMPTS = 100


@contextmanager
def new_artifact(directory: str | os.PathLike[str], kind: str, manifest: Mapping[str, Any]) -> Iterator[Path]:
    """Fill a folder under a temporary name; when the block ends, the manifest is added and the folder gets its name.

    Parameters
    ----------
    directory
        The folder to write. An older artifact of the same kind is replaced; anything else there is left alone.
    kind
        What it is, for the manifest.
    manifest
        Further entries of the manifest, in types that JSON knows.

    Yields
    ------
    Path
        The temporary folder. Whatever is in it at the end is recorded with its sha256.

    Raises
    ------
    ArtifactError
        If the folder holds something else, or cannot be written; what was there is then as it was.
    """
    # Resolved, so that a link stays a link and the folder that it leads to is replaced.
    target = given_path(directory, "directory").resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone_in(target.parent):
            _check_replaceable(target, kind)
        with unfinished_folder(target) as temporary:
            yield temporary
            files = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
            text = json.dumps(without_escapes({"kind": kind, **manifest, "files": files}), indent=2)
            (temporary / MANIFEST).write_text(text, encoding="utf-8")
            with _alone_in(target.parent):
                move_into_place(temporary, target)
    except OSError as error:
        raise ArtifactError(
            f"{target} cannot be written: {error}; make room there or give another folder. Nothing was changed"
        ) from error


def check_target(directory: str | os.PathLike[str], kind: str) -> None:
    """Refuse a folder that :func:`new_artifact` would refuse, before the work whose result is to go there.

    Raises
    ------
    ArtifactError
        If it holds something else, or is a file.
    """
    target = given_path(directory, "directory").resolve()
    try:
        _check_replaceable(target, kind)
    except OSError as error:
        raise ArtifactError(f"{target} cannot be written: {error}; give another folder") from error


def read_manifest(directory: str | os.PathLike[str], kind: str, format_version: int) -> dict[str, Any]:
    """The manifest of an artifact, after every file has been checked against it.

    Parameters
    ----------
    directory
        The folder.
    kind, format_version
        What it must be.

    Returns
    -------
    dict

    Raises
    ------
    ArtifactError
        If there is no manifest, it cannot be read, it is of another kind or version, or a file is missing, added or
        changed.
    """
    folder = given_path(directory, "directory")
    sweep(folder.parent)
    manifest = _load_manifest(folder)
    if manifest.get("kind") != kind:
        raise ArtifactError(f"{folder} holds {manifest.get('kind')!r:.80}, not {kind!r}; load it with what wrote it")
    if manifest.get("format_version") != format_version:
        raise ArtifactError(
            f"{folder} has format {manifest.get('format_version')!r:.80}, this version reads {format_version}; "
            "save again"
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not files or not all(_is_plain_name(name) for name in files):
        raise ArtifactError(f"{folder / MANIFEST} does not list its files; save the model again")
    for name in _unlisted(folder, manifest, hidden=True):
        raise ArtifactError(f"{folder / printable(name)} is not part of what was saved; move it away")
    for name, expected in files.items():
        if not (folder / name).exists() and not (folder / name).is_symlink():
            raise ArtifactError(f"{folder / name} is missing; copy the whole folder or save the model again")
        if not is_plain(folder / name):
            raise ArtifactError(f"{folder / name} is no file of its own, but a link, a pipe or the like; save it again")
        if _sum_of(folder / name) != expected:
            raise ArtifactError(f"{folder / name} is damaged or was changed: its sha256 differs; save the model again")
    return manifest


def kind_of(directory: str | os.PathLike[str]) -> str | None:
    """The kind that a folder's manifest names; nothing else of it is looked at."""
    kind = _load_manifest(given_path(directory, "directory")).get("kind")
    return kind if isinstance(kind, str) else None


def sha256(path: Path) -> str:
    """The file's sha256 as a hexadecimal text."""
    digest = hashlib.sha256()
    with open_plain(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sum_of(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error


def _load_manifest(folder: Path) -> dict[str, Any]:
    try:
        if (folder / MANIFEST).is_symlink():
            raise OSError("it is a link to another place")
        manifest = read_plain_json(folder / MANIFEST)
    except FileNotFoundError:
        raise ArtifactError(f"{folder} has no {MANIFEST}: it is not a folder that save() wrote") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder / MANIFEST} cannot be read: {error}; save the model again") from error
    if not isinstance(manifest, dict):
        raise ArtifactError(f"{folder / MANIFEST} is not a manifest; save the model again")
    return manifest


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Make others that save in the same folder wait; not while they write, only while they look and rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems have no locks for folders; what follows then still ends well, almost always.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_plain_name(name: str) -> bool:
    return name not in ("", ".", "..") and Path(name).name == name and "\0" not in name and printable(name) == name


def _unlisted(folder: Path, manifest: Mapping[str, Any], *, hidden: bool = False) -> list[str]:
    """Files that the manifest does not list; hidden ones, which file managers leave behind, count where it is read."""
    listed = {MANIFEST, *(manifest.get("files") or ())}
    return sorted(p.name for p in folder.iterdir() if p.name not in listed and (hidden or not p.name.startswith(".")))


def _check_replaceable(target: Path, kind: str) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir() or (manifest := _load_manifest(target)).get("kind") != kind:
        raise ArtifactError(f"{target} exists and is no {kind}; give a new folder")
    for name in _unlisted(target, manifest):
        raise ArtifactError(f"{target / name} is not part of what was saved there; give a new folder")


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename, so that nothing half-written is left."""
    with unfinished_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", newline="\n")
        unfinished.replace(path)


def move_into_place(temporary: Path, target: Path) -> None:
    """Give a finished folder its name; an older one of that name is removed.

    Whoever looks, and whenever this is ended, finds a whole folder under the name: the two change places in one step.
    Of two that do this at the same time, one folder stays.

    Raises
    ------
    OSError
        If it cannot be done; the older folder keeps its name.
    """
    for attempt in range(_ATTEMPTS):
        # Where there is one, it may be gone when it is to be exchanged, and the other way round: others do this too.
        move = _exchange if attempt % 2 else Path.rename
        try:
            move(temporary, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise
            continue
        if move is _exchange:
            shutil.rmtree(temporary, ignore_errors=True)
        return
    raise OSError(errno.EBUSY, "other processes keep replacing it", str(target))


def _exchange(temporary: Path, target: Path) -> None:
    """Let two folders change places: in one step where the system can, otherwise as near to that as it gets."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = os.fsencode(temporary), os.fsencode(target)
    if renameat2 and renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return
    old = temporary.with_suffix(".old")
    target.rename(old)
    try:
        temporary.rename(target)
    except BaseException:
        if not target.exists():
            old.rename(target)
        raise
    finally:
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
