"""What the machine report says, on made-up machines and on this one."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cpuinfer_helpers import InputError, machine_report, threads
from cpuinfer_helpers.course import neighbours as course_neighbours
from cpuinfer_helpers.machine import limits, switches, versions
from cpuinfer_helpers.machine import report as machine_module
from cpuinfer_helpers.machine.report import MachineReport

GIB = 2**30


@pytest.fixture
def report() -> MachineReport:
    return MachineReport(
        cpu="Example CPU 9000",
        architecture="x86_64",
        isa=("AVX2", "AVX512", "AVX512_VNNI", "AVX512_BF16"),
        isa_caps={},
        cores_total=16,
        cores_allowed=8,
        cpu_quota=None,
        threads=8,
        memory_total=32 * GIB,
        memory_available=20 * GIB,
        python="3.11.2",
        system="Linux 6.1",
        versions={"torch": "2.8.0+cpu", "transformers": "4.52.4"},
    )


class ControlGroups:
    """A control group file system in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "cgroup"
        self.root.mkdir()
        self.membership = folder / "membership"
        self.membership.write_text("0::/\n", encoding="utf-8")

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def belongs_to(self, *lines: str) -> None:
        self.membership.write_text("\n".join(lines) + "\n", encoding="utf-8")

    @property
    def quota(self) -> float | None:
        return limits.cpu_quota(self.root, self.membership)


@pytest.fixture
def groups(tmp_path: Path) -> ControlGroups:
    return ControlGroups(tmp_path)


def test_no_quota_without_control_groups(tmp_path: Path) -> None:
    assert limits.cpu_quota(tmp_path / "absent", tmp_path / "absent too") is None


def test_v2_quota_of_the_own_group(groups: ControlGroups) -> None:
    groups.belongs_to("0::/app")
    groups.write("app/cpu.max", "150000 100000\n")
    assert groups.quota == 1.5


def test_v2_max_is_no_quota(groups: ControlGroups) -> None:
    groups.belongs_to("0::/app")
    groups.write("app/cpu.max", "max 100000\n")
    assert groups.quota is None


def test_v2_quota_at_the_root_as_containers_see_it(groups: ControlGroups) -> None:
    groups.belongs_to("0::/")
    groups.write("cpu.max", "200000 100000\n")
    assert groups.quota == 2.0


def test_v2_smallest_of_the_group_and_its_ancestors(groups: ControlGroups) -> None:
    groups.belongs_to("0::/slice/service/app")
    groups.write("slice/cpu.max", "100000 50000\n")
    groups.write("slice/service/cpu.max", "max 100000\n")
    groups.write("slice/service/app/cpu.max", "300000 100000\n")
    assert groups.quota == 2.0


def test_v2_group_of_somebody_else_does_not_count(groups: ControlGroups) -> None:
    groups.belongs_to("0::/app")
    groups.write("app/cpu.max", "400000 100000\n")
    groups.write("other/cpu.max", "10000 100000\n")
    assert groups.quota == 4.0


def test_v1_quota_and_its_ancestor(groups: ControlGroups) -> None:
    groups.belongs_to("5:memory:/else", "4:cpu,cpuacct:/docker/abc", "1:name=systemd:/docker/abc")
    groups.write("cpu,cpuacct/docker/abc/cpu.cfs_quota_us", "250000\n")
    groups.write("cpu,cpuacct/docker/abc/cpu.cfs_period_us", "100000\n")
    assert groups.quota == 2.5
    groups.write("cpu,cpuacct/docker/cpu.cfs_quota_us", "50000\n")
    groups.write("cpu,cpuacct/docker/cpu.cfs_period_us", "100000\n")
    assert groups.quota == 0.5


def test_v1_minus_one_is_no_quota(groups: ControlGroups) -> None:
    groups.belongs_to("4:cpu:/")
    groups.write("cpu/cpu.cfs_quota_us", "-1\n")
    groups.write("cpu/cpu.cfs_period_us", "100000\n")
    assert groups.quota is None


def test_v1_controllers_in_another_order_than_the_folder(groups: ControlGroups) -> None:
    """Red Hat 7 says ``cpuacct,cpu`` in the membership, mounts ``cpu,cpuacct`` and has a link ``cpu``."""
    groups.belongs_to("4:cpuacct,cpu:/app")
    groups.write("cpu/app/cpu.cfs_quota_us", "100000\n")
    groups.write("cpu/app/cpu.cfs_period_us", "100000\n")
    assert groups.quota == 1.0


@pytest.mark.parametrize(
    ("allowed", "quota", "cores"),
    [(8, None, 8), (8, 4.0, 4), (2, 4.0, 2), (8, 2.9, 2), (8, 0.5, 1), (1, None, 1)],
)
def test_cores_are_affinity_and_whole_quota_together(
    report: MachineReport, allowed: int, quota: float | None, cores: int
) -> None:
    assert replace(report, cores_allowed=allowed, cpu_quota=quota).cores == cores


CPUINFO = {
    "Intel with AMX": (
        "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) Platinum 8480+\nvmx flags\t: vnmi\n"
        "flags\t\t: fpu fma avx avx2 avx512f avx512dq avx512cd avx512bw avx512vl avx_vnni avx512_bf16 avx512_vnni "
        "amx_bf16 avx512_fp16 amx_tile amx_int8\n",
        ("AVX2", "AVX512", "AVX512_VNNI", "AVX_VNNI", "AVX512_BF16", "AMX_TILE", "AMX_INT8", "AMX_BF16"),
    ),
    "AMD Zen 5": (
        "processor\t: 0\nmodel name\t: AMD EPYC 9655\n"
        "flags\t\t: fpu fma avx avx2 avx512f avx512dq avx512cd avx512bw avx512vl avx_vnni avx512_bf16 avx512_vnni\n",
        ("AVX2", "AVX512", "AVX512_VNNI", "AVX_VNNI", "AVX512_BF16"),
    ),
    "old with AVX2": (
        "processor\t: 0\nmodel name\t: Intel(R) Core(TM) i5-4570\nflags\t\t: fpu sse4_2 fma avx avx2\n",
        ("AVX2",),
    ),
    "Xeon Phi, which has only part of AVX512": (
        "processor\t: 0\nmodel name\t: Xeon Phi\nflags\t\t: fpu fma avx avx2 avx512f avx512cd avx512er\n",
        ("AVX2",),
    ),
    "before AVX2": ("processor\t: 0\nmodel name\t: Old\nflags\t\t: fpu sse4_2 avx\n", ()),
    "ARM server": (
        "processor\t: 0\nFeatures\t: fp asimd evtstrm aes i8mm bf16\nCPU implementer\t: 0x41\n",
        ("NEON", "ARM_BF16", "ARM_I8MM"),
    ),
}


@pytest.mark.parametrize("name", CPUINFO)
def test_instruction_sets_from_the_kernels_flags(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    text, expected = CPUINFO[name]
    monkeypatch.setattr(machine_module, "text_of", lambda path: text if path == Path("/proc/cpuinfo") else "")
    assert machine_module.detect_isa() == expected
    assert machine_report().isa == expected


def test_report_takes_the_cpus_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    text, _ = CPUINFO["AMD Zen 5"]
    monkeypatch.setattr(machine_module, "text_of", lambda path: text if path == Path("/proc/cpuinfo") else "")
    assert machine_report().cpu == "AMD EPYC 9655"


def test_instruction_sets_without_cpuinfo_come_from_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "text_of", lambda path: "")
    monkeypatch.setattr(machine_module.sys, "platform", "win32")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert machine_module.detect_isa() == ("AVX2", "AVX512")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert machine_module.detect_isa() == ()


@pytest.mark.parametrize(
    ("isa", "native"),
    [
        (("AVX2", "AVX512", "AVX512_VNNI"), False),
        (("AVX2",), False),
        (("AVX512", "AVX512_BF16"), True),
        (("AMX_TILE", "AMX_BF16"), True),
        (("NEON", "ARM_BF16"), True),
    ],
)
def test_bf16_is_native_only_with_instructions_for_it(
    report: MachineReport, isa: tuple[str, ...], native: bool
) -> None:
    changed = replace(report, isa=isa)
    assert changed.bf16_native is native
    assert ("native BF16" in changed.one_line()) is native
    assert ("BF16 emulated" in changed.one_line()) is not native


@pytest.mark.parametrize(
    ("cap", "bf16", "int8"),
    [
        ("AVX2", False, False),
        ("avx2", False, False),
        ("AVX512_CORE", False, False),
        ("AVX512_CORE_VNNI", False, True),
        ("AVX512_CORE_BF16", True, True),
        ("AVX512_CORE_AMX", True, True),
        ("ALL", True, True),
        ("DEFAULT", True, True),
    ],
)
@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_a_cap_on_onednn_takes_the_instructions_away(
    monkeypatch: pytest.MonkeyPatch, variable: str, cap: str, bf16: bool, int8: bool
) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, cap)
    text, _ = CPUINFO["Intel with AMX"]
    monkeypatch.setattr(machine_module, "text_of", lambda path: text if path == Path("/proc/cpuinfo") else "")
    report = machine_report()
    assert report.isa_caps[variable] == cap
    assert (report.bf16_native, report.int8_native) == (bf16, int8)
    assert f"{variable}={cap}" in str(report)


@pytest.mark.parametrize(
    ("architecture", "isa", "bf16", "int8"),
    [
        ("x86_64", ("AVX2", "AVX512_BF16", "AVX_VNNI"), None, None),
        (
            "x86_64",
            ("AVX2",),
            "emulated: this CPU has no AVX512_BF16 or AMX_BF16; 3 to 34 times slower than FP32",
            "emulated: this CPU has no AVX512_VNNI, AVX_VNNI or AMX_INT8; "
            "recipes use 7 of 8 bits, or sums would overflow",
        ),
        (
            "aarch64",
            ("NEON",),
            "emulated: this CPU has no ARM_BF16; 3 to 34 times slower than FP32",
            "emulated: this CPU has no ARM_I8MM",
        ),
    ],
)
def test_what_is_emulated_is_said_with_what_is_missing_and_what_it_costs(
    report: MachineReport, architecture: str, isa: tuple[str, ...], bf16: str | None, int8: str | None
) -> None:
    changed = replace(report, architecture=architecture, isa=isa)
    assert (changed.emulation("bf16"), changed.emulation("int8"), changed.emulation("fp32")) == (bf16, int8, None)
    assert changed.int8_sums_overflow == (int8 is not None and "7 of 8 bits" in int8)


@pytest.mark.parametrize(
    ("what", "misses", "shown_by"),
    [
        ("bf16", "AVX512_BF16 or AMX_BF16", "Zen 4"),
        ("int8", "AVX512_VNNI", "Cascade Lake"),
        ("AVX512", "AVX512", "Skylake"),
    ],
)
def test_what_cannot_be_shown_is_named_with_the_cpus_that_would(
    report: MachineReport, what: str, misses: str, shown_by: str
) -> None:
    text = replace(report, isa=("AVX2",)).not_shown(what)
    assert text.startswith("not shown here: this CPU has no ")
    assert misses in text and shown_by in text
    assert report.not_shown(what) == ""


def test_what_a_variable_holds_back_is_not_shown_either(report: MachineReport) -> None:
    capped = replace(report, isa_caps={"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"})
    assert "ONEDNN_MAX_CPU_ISA=AVX2 keeps oneDNN from AVX512_BF16" in capped.not_shown("bf16")
    assert "ATEN_CPU_CAPABILITY=avx2 holds AVX512 back" in capped.not_shown("AVX512")


@pytest.mark.parametrize(
    ("torch_version", "transformers_version", "stack"),
    [
        ("2.8.0+cpu", "4.52.4", "guide"),
        ("2.8.0+cu128", "4.57.6", "guide"),
        ("2.13.0+cpu", "5.23.0", "current"),
        ("2.15.1", "5.0.0rc1", "current"),
        ("2.8.0", "5.0.0", "other"),
        ("2.13.0", "4.57.6", "other"),
        ("2.7.1", "4.52.4", "other"),
    ],
)
def test_stack(report: MachineReport, torch_version: str, transformers_version: str, stack: str) -> None:
    versions = {"torch": torch_version, "transformers": transformers_version}
    assert replace(report, versions=versions).stack == stack


def test_stack_without_transformers(report: MachineReport) -> None:
    assert replace(report, versions={"torch": "2.8.0"}).stack == "other"


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("2.8.0+cpu", (2, 8, 0)),
        ("5.0.0rc1", (5, 0, 0)),
        ("2.14.0a0+git1234567", (2, 14, 0)),
        ("2.15.0.dev20261001", (2, 15, 0)),
        ("2.13", (2, 13)),
        ("", ()),
        ("dev", ()),
    ],
)
def test_the_numbers_of_a_version(version: str, numbers: tuple[int, ...]) -> None:
    assert versions.release_of(version) == numbers


def test_one_line_names_cpu_and_cores(report: MachineReport) -> None:
    line = replace(report, cpu_quota=4.5).one_line()
    assert line.startswith("Example CPU 9000, 4 of 16 cores")
    assert "20.0 GiB free" in line
    assert "guide stack" in line
    assert "\n" not in line


def test_report_of_this_machine_agrees_with_the_system() -> None:
    report = machine_report()
    assert report.threads == torch.get_num_threads()
    assert 1 <= report.cores <= report.cores_allowed <= report.cores_total
    assert 0 < report.memory_available <= report.memory_total
    assert report.versions["torch"] == versions.metadata.version("torch")
    if hasattr(os, "sched_getaffinity"):
        assert report.cores_allowed == len(os.sched_getaffinity(0))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_affinity_of_the_process_counts() -> None:
    one_core = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, {{{one_core}}})\n"
        "from cpuinfer_helpers import machine_report\n"
        "report = machine_report()\nprint(report.cores_allowed, report.cores)"
    )
    root = Path(__file__).parents[2]
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root, timeout=120
    )
    assert child.stdout.split() == ["1", "1"]


def _memory_with(monkeypatch: pytest.MonkeyPatch, files: dict[str, str], membership: str) -> tuple[int, int]:
    """Memory of a machine with 32 GiB, 20 of them free, inside the given control groups."""
    import psutil

    texts = {Path("/sys/fs/cgroup") / name: text for name, text in files.items()}
    texts[Path("/proc/self/cgroup")] = membership
    monkeypatch.setattr(limits, "text_of", lambda path: texts.get(path, ""))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=32 * GIB, available=20 * GIB))
    report = machine_report()
    return report.memory_total, report.memory_available


def test_memory_without_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _memory_with(monkeypatch, {"app/memory.max": "max\n"}, "0::/app\n") == (32 * GIB, 20 * GIB)


def test_memory_limit_of_an_ancestor_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"app/memory.max": "max\n", "memory.max": f"{8 * GIB}\n", "memory.current": f"{3 * GIB}\n"}
    assert _memory_with(monkeypatch, files, "0::/app\n") == (8 * GIB, 5 * GIB)


def test_memory_limit_is_no_promise_of_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"memory.max": f"{30 * GIB}\n", "memory.current": "0\n"}
    assert _memory_with(monkeypatch, files, "0::/\n") == (30 * GIB, 20 * GIB)


def test_table_states_what_matters(report: MachineReport) -> None:
    rows = dict(replace(report, cpu_quota=2.5, isa=("AVX2",)).table().rows)
    assert rows["BF16"].startswith("emulated")
    assert rows["cores"] == "2 usable (16 in the machine, 8 allowed, quota of 2.5 CPUs)"
    assert rows["memory"] == "20.0 GiB free of 32.0 GiB"
    assert dict(report.table().rows)["BF16"] == "native"


def test_threads_are_set_and_restored() -> None:
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_threads_are_restored_when_the_block_raises() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), threads(before + 1):
        raise KeyError("inside")
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("count", [0, -1, True, 1.5, "2", None])
def test_threads_refuses_what_is_no_number_of_threads(count: object) -> None:
    before = torch.get_num_threads()
    with pytest.raises(InputError, match="threads"), threads(count):  # type: ignore[arg-type]
        pass
    assert torch.get_num_threads() == before


def _children() -> set[int]:
    import psutil

    return {child.pid for child in psutil.Process().children()}


def test_busy_neighbours_run_and_are_gone_afterwards() -> None:
    before = _children()
    with pytest.raises(RuntimeError, match="stop"), course_neighbours.busy_neighbours(2):
        neighbours = _children() - before
        assert len(neighbours) == 2
        raise RuntimeError("stop")
    assert not _children() & neighbours


def test_busy_neighbours_end_by_themselves() -> None:
    import psutil

    before = _children()
    with course_neighbours.busy_neighbours(limit_s=0.01):
        (neighbour,) = (psutil.Process(pid) for pid in _children() - before)
        psutil.wait_procs([neighbour], timeout=30)
        assert not neighbour.is_running() or neighbour.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("count", [0, -1, True, 1.5])
def test_busy_neighbours_refuses_what_is_no_number_of_processes(count: object) -> None:
    with pytest.raises(InputError, match="whole number"), course_neighbours.busy_neighbours(count):
        pass


def test_native_stderr_goes_to_the_log(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level(logging.DEBUG, logger="cpuinfer_helpers"):
        with pytest.raises(RuntimeError, match="inside"), switches.native_stderr_logged():
            os.write(2, b"from a library\n")
            raise RuntimeError("inside")
        os.write(2, b"afterwards\n")
    assert "from a library" in caplog.text
    assert capfd.readouterr().err == "afterwards\n"


def _page_faults_of_a_large_tensor() -> int:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(64 * 2**20, dtype=torch.uint8).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept_only_inside_the_block():
    with switches.freed_memory_kept() as kept:
        # The fewest of some: a small block put into the freed one moves the next large one elsewhere.
        inside = min(_page_faults_of_a_large_tensor() for _ in range(8))
        _above_it_on_the_heap = torch.zeros(2**20, dtype=torch.uint8)
    # The first one: the C library may well serve a second one from the hole that the first left in the heap.
    outside = _page_faults_of_a_large_tensor()

    assert kept
    # 64 MiB are 16384 pages; huge pages would make it fewer, but never as few as none.
    assert inside < 20 < outside


def test_freed_memory_is_left_alone_where_the_c_library_cannot_keep_it(monkeypatch):
    monkeypatch.setattr(machine_module.platform, "libc_ver", lambda: ("", ""))
    with switches.freed_memory_kept() as kept:
        assert not kept


@pytest.mark.parametrize("count", [10**9, 0, -1, True, 2.0, "2", None])
def test_a_number_of_threads_that_cannot_be_is_refused(count):
    before = torch.get_num_threads()
    with pytest.raises(InputError, match="at most"), threads(count):
        pass
    assert torch.get_num_threads() == before
