"""How much of the machine this process may use: cores, threads, memory, and what control groups leave of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cpuinfer_helpers.errors import InputError

# Where the control group file system is mounted, and the file that names this process's groups.
_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def check_threads(count: object) -> int:
    """The number, if so many threads can be started.

    Raises
    ------
    InputError
        If it is not a whole number from 1 to :func:`most_threads`.
    """
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= most_threads():
        most = most_threads()
        raise InputError(f"threads is {count!r:.40}; give a whole number of at least 1, and at most {most} here")
    return count


def most_threads() -> int:
    """The most threads that are taken: four for each core, and 256 in any case, to measure what too many cost."""
    return max(256, 4 * (os.cpu_count() or 1))


def cpu_quota(root: Path = _GROUPS, membership: Path = _MEMBERSHIP) -> float | None:
    """CPUs' worth of time that the control groups of this process grant.

    Parameters
    ----------
    root
        Where the control group file system is mounted.
    membership
        The file that names this process's control groups.

    Returns
    -------
    float or None
        The smallest quota of the group and its ancestors (control groups v2 and v1), or None where there is none.
    """
    quotas = [quota for folder in _control_groups(root, membership, "cpu") if (quota := _quota_in(folder)) is not None]
    return min(quotas, default=None)


def _quota_in(folder: Path) -> float | None:
    version_2 = text_of(folder / "cpu.max").split()
    if len(version_2) == 2 and version_2[0] != "max":
        return int(version_2[0]) / int(version_2[1])
    quota, period = text_of(folder / "cpu.cfs_quota_us").strip(), text_of(folder / "cpu.cfs_period_us").strip()
    if quota and period and int(quota) > 0:
        return int(quota) / int(period)
    return None


def _control_groups(root: Path, membership: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control group and all its ancestors."""
    for line in text_of(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # Version 2 has one tree; version 1 one for each controller, named after all its controllers or linked as one.
        named = (root / name for name in (controllers, controller) if controllers)
        mount = next((folder for folder in named if folder.is_dir()), root)
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            yield mount / folder
    yield root


def free_bytes(root: Path = _GROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Bytes that new processes can have; see :func:`memory`."""
    return memory(root, membership)[1]


def memory(root: Path = _GROUPS, membership: Path = _MEMBERSHIP) -> tuple[int, int]:
    """Bytes that this process and its children may use in all, and those of them that are free.

    What the machine has, and what every control group grants. A control group charges its processes for the file cache,
    which the kernel gives up when asked for memory; so that part counts as free.
    """
    import psutil

    seen = psutil.virtual_memory()
    total, free = seen.total, seen.available
    for folder in _control_groups(root, membership, "memory"):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
        if limit is not None:
            total, free = min(total, limit), min(free, limit - (used or 0) + _file_cache(folder))
    return total, max(free, 0)


def _file_cache(folder: Path) -> int:
    for line in text_of(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    text = text_of(path).strip()
    return int(text) if text.isdigit() else None


def cores_allowed() -> int:
    """Logical cores in this process's affinity mask."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def text_of(path: Path) -> str:
    """The file's text, or nothing where this system has no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
