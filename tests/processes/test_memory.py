from __future__ import annotations

import mmap
import os

import psutil
import pytest

from cpuinfer_helpers.machine.limits import free_bytes
from cpuinfer_helpers.processes.memory import private_bytes

MIB = 2**20


@pytest.fixture
def groups(tmp_path):
    """A control group of version 2 with a limit of 600 MiB, of which 500 are in use, 300 of these as file cache."""
    inner = tmp_path / "cgroup" / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.current").write_text("1\n")
    outer = inner.parent
    (outer / "memory.max").write_text(f"{600 * MIB}\n")
    (outer / "memory.current").write_text(f"{500 * MIB}\n")
    (outer / "memory.stat").write_text(f"anon 5\nactive_file 7\ninactive_file {300 * MIB}\n")
    membership = tmp_path / "membership"
    membership.write_text("0::/outer/inner\n")
    return tmp_path / "cgroup", membership


def test_a_control_groups_limit_counts_and_its_file_cache_is_free(groups):
    assert free_bytes(*groups) == 400 * MIB


def test_version_one_counts_too(tmp_path):
    folder = tmp_path / "memory" / "job"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(str(90 * MIB))
    (folder / "memory.usage_in_bytes").write_text(str(50 * MIB))
    (folder / "memory.stat").write_text(f"total_inactive_file {20 * MIB}\n")
    membership = tmp_path / "membership"
    membership.write_text("9:memory:/job\n")
    assert free_bytes(tmp_path, membership) == 60 * MIB


def test_without_a_limit_it_is_what_the_machine_has(tmp_path):
    (tmp_path / "membership").write_text("0::/\n")
    assert 0 < free_bytes(tmp_path, tmp_path / "membership") <= psutil.virtual_memory().total


def test_memory_of_a_processes_own_grows_with_what_it_writes():
    before = private_bytes([os.getpid()])
    # From the system and not from the allocator, which may have as much left over from other tests.
    held = mmap.mmap(-1, 40 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    held.write(b"1" * (40 * MIB))
    # Half of it is a bound with room for what the allocator gives back meanwhile.
    assert private_bytes([os.getpid()]) - before > 20 * MIB
    held.close()
    assert private_bytes([2**22 + 1]) == 0  # no such process
