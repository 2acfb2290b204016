"""Our temporary folders: gone with the block that made them, or, if its process was killed, when another one starts.

Whoever makes one holds a lock on it (flock(2)), which the system lets go of when the process ends, however it ends. So
one that nobody holds is abandoned, whatever machine or container looks, and one in use is never touched. Only names
that are made here, of this user, are looked at.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cpuinfer_helpers.errors import ArtifactError

_PREFIX = "cpuinfer-scratch-"
# Says where something unfinished lies, so that it is found from anywhere.
_NOTE_PREFIX = "cpuinfer-unfinished-"
_FOLDER = re.compile(re.escape(_PREFIX) + r"[a-z0-9_]{8}")
_NOTE = re.compile(re.escape(_NOTE_PREFIX) + r"[0-9a-f]{12}")
_UNFINISHED = re.compile(r"\..*\.cpuinfer-([0-9a-f]{12})\.part", re.DOTALL)
_ATTEMPTS = 100


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A new folder that only this user can read; removed at the end, with all that is in it.

    Raises
    ------
    ArtifactError
        If there is no place for one.
    """
    sweep()
    try:
        folder, lock = _locked_folder()
    except OSError as error:
        raise ArtifactError(f"no temporary folder can be made: {error}; make room or set TMPDIR") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextmanager
def unfinished_folder(target: Path) -> Iterator[Path]:
    """A new, hidden folder beside the one that it is to become; removed at the end, unless it was renamed.

    Raises
    ------
    OSError
        If it cannot be made.
    """
    sweep(target.parent)
    with _held_beside(target, Path.mkdir) as path:
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def unfinished_file(target: Path) -> Iterator[Path]:
    """The same for a file, which is there, and empty."""
    sweep(target.parent)
    with _held_beside(target, Path.touch) as path:
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def sweep(beside: Path | None = None) -> None:
    """Remove what processes of this user have left that were killed.

    Parameters
    ----------
    beside
        A folder in which something is to be saved; looked into as well as the place for temporary files.
    """
    with suppress(OSError):
        for path in _own(Path(tempfile.gettempdir())):
            if _FOLDER.fullmatch(path.name):
                _remove_if_abandoned(path)
            elif _NOTE.fullmatch(path.name):
                _follow(path)
    if beside is not None:
        with suppress(OSError):
            for path in _own(beside):
                if _UNFINISHED.fullmatch(path.name):
                    _remove_if_abandoned(path)


def _own(folder: Path) -> list[Path]:
    """Names in a folder that may be of this module, of this user; links are not."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith((_PREFIX, _NOTE_PREFIX, ".")) and not entry.is_symlink():
                with suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_uid == os.getuid():
                        found.append(Path(entry.path))
    return found


def _locked_folder() -> tuple[Path, int]:
    for _ in range(_ATTEMPTS):
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = _lock(folder)
        if lock is not None:
            return folder, lock
    raise OSError("other processes keep removing it")


@contextmanager
def _held_beside(target: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """Make something under a hidden name, hold it, and note where it is."""
    for _ in range(_ATTEMPTS):
        number = uuid.uuid4().hex[:12]
        path = target.with_name(f".{target.name}.cpuinfer-{number}.part")
        make(path)
        lock = _lock(path)
        if lock is not None:
            break
    else:
        raise OSError("other processes keep removing it")
    note = _write_note(number, path)
    try:
        yield path
    finally:
        os.close(lock)
        if note is not None:
            with suppress(OSError):
                note.unlink()


def _write_note(number: str, path: Path) -> Path | None:
    """A note in the place for temporary files; without one, whoever next saves beside it finds what is unfinished."""
    with suppress(OSError):
        note = Path(tempfile.gettempdir(), _NOTE_PREFIX + number)
        with note.open("xb") as file:
            file.write(os.fsencode(path))
        return note
    return None


def _follow(note: Path) -> None:
    """Remove what a note names, and the note, unless somebody is still at it."""
    path = Path(os.fsdecode(note.read_bytes()))
    named = _UNFINISHED.fullmatch(path.name)
    if named and note.name == _NOTE_PREFIX + named[1] and os.path.lexists(path):
        _remove_if_abandoned(path)
    if not os.path.lexists(path):
        with suppress(OSError):
            note.unlink()


def _lock(path: Path) -> int | None:
    """Hold a new file or folder; None if somebody has taken it for abandoned meanwhile."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        _take(descriptor)
        if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
            return descriptor
    except OSError:  # it is held, or gone: a sweep was faster
        os.close(descriptor)
        return None
    os.close(descriptor)
    return None


def _take(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # some network file systems have no locks; there nobody takes anything for abandoned
        return


def _remove_if_abandoned(path: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            # Fails while its maker is alive, and on file systems without locks, where nothing is removed.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(descriptor), os.lstat(path)):
                return
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        finally:
            os.close(descriptor)
