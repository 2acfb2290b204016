"""How much memory processes hold."""

from __future__ import annotations

from collections.abc import Iterable


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
