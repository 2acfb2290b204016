"""How much memory is really free, and how much processes hold."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cpuinfer_helpers.machine import _control_groups

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def free_bytes(root: Path = _CGROUP_ROOT, membership: Path = _MEMBERSHIP) -> int:
    """Bytes that new processes can have: what the machine has free, and what every control group still grants.

    A control group charges its processes for the file cache, which the kernel gives up when asked for memory; so that
    part counts as free.
    """
    import psutil

    free = psutil.virtual_memory().available
    for folder in _control_groups(root, membership, "memory"):
        limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            free = min(free, limit - used + _file_cache(folder))
    return max(free, 0)


def private_bytes(process_ids: Iterable[int]) -> int:
    """Bytes that the processes hold for themselves; pages of mapped files, which they share, do not count."""
    import psutil

    total = 0
    for process_id in process_ids:
        try:
            memory = psutil.Process(process_id).memory_info()
        except psutil.Error:  # it has just ended
            continue
        total += memory.rss - getattr(memory, "shared", 0)
    return total


def _file_cache(folder: Path) -> int:
    for line in _text(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
