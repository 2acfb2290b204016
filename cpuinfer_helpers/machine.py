"""What CPU this is, what it can do, and how much of it this process may use."""

from __future__ import annotations

import ctypes
import logging
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers import instructions, switches, tied
from cpuinfer_helpers.display import Displayed, Table, format_bytes
from cpuinfer_helpers.errors import InputError

logger = logging.getLogger("cpuinfer_helpers")

# Measured on AMD EPYC (Zen 3, AVX2 only): 3.6 times for single rows of a large model, 34 times for long inputs.
EMULATED_BF16 = "3 to 34 times slower than FP32"
# Without VNNI pairs of products are added in 16 bits, which saturate (oneDNN's developer guide, "Nuances of int8").
EMULATED_INT8 = "recipes use 7 of 8 bits, or sums would overflow"
_PACKAGES = (
    "torch",
    "intel-extension-for-pytorch",
    "transformers",
    "accelerate",
    "tokenizers",
    "datasets",
    "openvino",
    "onnxruntime",
)


@dataclass(frozen=True, repr=False)
class MachineReport(Displayed):
    """This machine as inference sees it; see :func:`machine_report`.

    Attributes
    ----------
    cpu
        The CPU's own name.
    architecture
        ``x86_64``, ``aarch64``, ``arm64`` ...
    isa
        Instruction sets that matter here, of those that the CPU has: AVX2, AVX512, AVX512_VNNI, AVX512_BF16, AMX_* ...
    isa_caps
        Environment variables that keep kernels from using all of them.
    cores_total
        Logical cores of the machine.
    cores_allowed
        Logical cores in this process's affinity mask.
    cpu_quota
        CPUs' worth of time that the control group grants, or None where there is no quota.
    threads
        PyTorch's intra-operator threads now.
    memory_total, memory_available
        Bytes; the control group's limit counts.
    python, system
        Version of Python; name and release of the operating system.
    versions
        Installed versions of the packages that decide what runs; read without importing them.
    """

    cpu: str
    architecture: str
    isa: tuple[str, ...]
    isa_caps: Mapping[str, str]
    cores_total: int
    cores_allowed: int
    cpu_quota: float | None
    threads: int
    memory_total: int
    memory_available: int
    python: str
    system: str
    versions: Mapping[str, str]

    @property
    def cores(self) -> int:
        """Whole cores that this process can really use: affinity and quota together, at least one."""
        quota = self.cores_allowed if self.cpu_quota is None else math.floor(self.cpu_quota)
        return max(1, min(self.cores_allowed, quota))

    @property
    def usable_isa(self) -> tuple[str, ...]:
        """Of :attr:`isa`, what oneDNN may use, in which matrix products run."""
        cap = instructions.onednn_cap(self.isa_caps)
        return instructions.left_by(self.isa_caps[cap], self.isa) if cap else self.isa

    @property
    def bf16_native(self) -> bool:
        """Whether BF16 matrix products have instructions of their own here; otherwise BF16 is emulated."""
        return self.is_native("bf16")

    @property
    def int8_native(self) -> bool:
        """Whether INT8 matrix products have instructions of their own here."""
        return self.is_native("int8")

    def is_native(self, precision: str) -> bool:
        """Whether matrix products in ``fp32``, ``bf16`` or ``int8`` have instructions of their own here."""
        return instructions.is_native(precision, self.usable_isa)

    @property
    def why_emulated(self) -> str:
        """Which instructions BF16 misses here, and what holds them back; empty if it is native."""
        return self.why_not_native("bf16") or ""

    def why_not_native(self, precision: str) -> str | None:
        """Which instructions a precision misses here, and what holds them back; None if it misses none."""
        if self.is_native(precision):
            return None
        needed = instructions.native_sets(precision, self.architecture)
        held_back = [name for name in needed if name in self.isa]
        cap = instructions.onednn_cap(self.isa_caps)
        if held_back and cap:
            return f"{cap}={self.isa_caps[cap]} keeps oneDNN from {instructions.one_of(held_back)}"
        return f"this CPU has no {instructions.one_of(needed)}"

    def emulation(self, precision: str) -> str | None:
        """That a precision is emulated, why and at what cost, for a receipt; None if it is native."""
        why = self.why_not_native(precision)
        if why is None:
            return None
        cost = EMULATED_BF16 if precision == "bf16" else EMULATED_INT8 if self.int8_sums_overflow else ""
        return "; ".join(filter(None, (f"emulated: {why}", cost)))

    @property
    def int8_sums_overflow(self) -> bool:
        """Whether pairs of INT8 products are added in 16 bits, as on x86 without VNNI: 2 x 255 x 127 do not fit."""
        return self.architecture in ("x86_64", "AMD64") and not self.int8_native

    def why_no_avx512(self) -> str | None:
        """Why PyTorch's and IPEX's own loops do without AVX512 in this process; None if they use it."""
        if "AVX512" not in self.isa:
            return "this CPU has no AVX512"
        return instructions.loops_cap(self.isa_caps)

    def not_shown(self, what: str) -> str:
        """What to say where something cannot be shown here: why, and which CPUs would show it; empty if it can.

        Parameters
        ----------
        what
            ``bf16`` or ``int8``, whose products need instructions of their own; ``AVX512`` for loops that are written
            for it, such as IPEX's fused attention.
        """
        why = self.why_no_avx512() if what == "AVX512" else self.why_not_native(what)
        return f"not shown here: {why}. CPUs that would show it: {instructions.cpus_with(what)}." if why else ""

    @property
    def stack(self) -> str:
        """``guide`` (torch 2.8, transformers 4), ``current`` (torch >= 2.13, transformers >= 5) or ``other``."""
        torch_version = version_tuple(self.versions.get("torch", "0"))
        transformers_version = version_tuple(self.versions.get("transformers", "0"))
        if torch_version[:2] == (2, 8) and transformers_version[:1] == (4,):
            return "guide"
        if torch_version >= (2, 13) and transformers_version >= (5,):
            return "current"
        return "other"

    def one_line(self) -> str:
        """The machine in one line, for the top of a notebook."""
        bf16 = "native BF16" if self.bf16_native else "BF16 emulated"
        return (
            f"{self.cpu}, {self.cores} of {self.cores_total} cores, {'/'.join(self.isa) or 'no SIMD known'} ({bf16}), "
            f"{format_bytes(self.memory_available)} free, {self._stack_text()}"
        )

    def table(self) -> Table:
        """Every fact of the report in a row of its own."""
        quota = "no quota" if self.cpu_quota is None else f"quota of {self.cpu_quota:g} CPUs"
        caps = ", ".join(f"{name}={value}" for name, value in self.isa_caps.items()) or "none"
        rows = (
            ("CPU", f"{self.cpu} ({self.architecture})"),
            ("instruction sets", ", ".join(self.isa) or "none of those that matter here"),
            ("held back by", caps),
            ("BF16", self.emulation("bf16") or "native"),
            ("INT8", self.emulation("int8") or "native"),
            (
                "cores",
                f"{self.cores} usable ({self.cores_total} in the machine, {self.cores_allowed} allowed, {quota})",
            ),
            ("PyTorch threads", str(self.threads)),
            ("memory", f"{format_bytes(self.memory_available)} free of {format_bytes(self.memory_total)}"),
            ("system", f"{self.system}, Python {self.python}"),
            ("stack", self._stack_text()),
        )
        return Table(columns=("this machine", "value"), rows=rows)

    def _stack_text(self) -> str:
        packages = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"{self.stack} stack ({packages})"


def machine_report() -> MachineReport:
    """Look at the machine that this process runs on.

    Reads processor flags, affinity, control group and package metadata; imports no optional package and changes
    nothing.

    Returns
    -------
    MachineReport

    Examples
    --------
    >>> report = machine_report()
    >>> report.cores >= 1
    True
    """
    memory_total, memory_available = _memory()
    return MachineReport(
        cpu=_cpu_name(),
        architecture=platform.machine(),
        isa=detect_isa(),
        isa_caps={name: os.environ[name] for name in instructions.CAPS if os.environ.get(name)},
        cores_total=os.cpu_count() or 1,
        cores_allowed=_cores_allowed(),
        cpu_quota=cpu_quota(),
        threads=torch.get_num_threads(),
        memory_total=memory_total,
        memory_available=memory_available,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}",
        versions=installed_versions(),
    )


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


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run the block with ``count`` intra-operator threads of PyTorch, then restore the number.

    Parameters
    ----------
    count
        Threads, at least 1. More than the usable cores is allowed, and slow: that can be measured.

    Raises
    ------
    InputError
        If ``count`` is not a whole number of at least 1, or far more than this machine could run.

    Notes
    -----
    Do not use it around a model that IPEX has packed: IPEX's own known issues say that Linear layers may then be wrong.
    """
    check_threads(count)
    with switches.threads(count):
        yield


@contextmanager
def freed_memory_kept() -> Iterator[bool]:
    """Keep freed memory in the process, so that the next call does not fetch and clear it anew.

    The C library gives blocks above 32 MiB back to the system as soon as they are freed. An activation of that size (a
    batch of 8 at 384 tokens has some in FP32) then costs a page fault for every 4 KiB, in every call. Memory in use
    stays at its highest until the block ends.

    Yields
    ------
    bool
        Whether this C library can do it: glibc's ``mallopt`` can. Elsewhere nothing changes.
    """
    if _mallopt() is None:
        yield False
        return
    with _memory_kept.needed():
        yield True


def _keep_memory() -> None:
    mallopt = _mallopt()
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)


def _give_memory_back() -> None:
    mallopt = _mallopt()
    mallopt(_M_MMAP_MAX, 65536)
    mallopt(_M_TRIM_THRESHOLD, 128 * 1024)
    ctypes.CDLL(None).malloc_trim(0)


_memory_kept = switches.Counted(_keep_memory, _give_memory_back)
# mallopt(3): parameter numbers. 65536 and 128 KiB are the values that a process starts with.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def _mallopt() -> Any:
    if platform.libc_ver()[0] != "glibc":
        return None
    return getattr(ctypes.CDLL(None), "mallopt", None)


@contextmanager
def busy_neighbours(count: int = 1, *, limit_s: float = 600.0) -> Iterator[None]:
    """Keep cores busy from other processes while the block runs, as neighbours on a shared machine do.

    For showing what they do to a measurement.

    Parameters
    ----------
    count
        Processes, at least 1; each keeps about one core busy.
    limit_s
        Seconds after which they end by themselves, should this process be killed before it can end them.

    Raises
    ------
    InputError
        If ``count`` is not a whole number of at least 1, or far more than this machine could run.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InputError(f"busy_neighbours: {count!r} is not a number of processes; give a whole number of at least 1")
    program = f"import time\nend = time.monotonic() + {limit_s}\nwhile time.monotonic() < end: pass"
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            started.append(subprocess.Popen(tied.command("-c", program)))
        yield
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()


@contextmanager
def native_stderr_logged() -> Iterator[None]:
    """Send what native libraries write to file descriptor 2 to the log, at DEBUG.

    PyTorch's profiler reports its own comings and goings there, on every use; a notebook would show them as errors.
    """
    lines: list[str] = []
    try:
        with switches.descriptor_collected(2, flush=lambda: switches.flush_stream(sys.stderr)) as lines:
            yield
    finally:
        for line in lines:
            logger.debug("native library: %s", line)


def version_tuple(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``"2.8.0+cpu"`` becomes ``(2, 8, 0)``."""
    numbers: list[int] = []
    for part in version.split("+")[0].split("."):
        digits = part if part.isdigit() else ""
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def installed_versions() -> dict[str, str]:
    """Versions of the installed packages that decide what runs, in a fixed order, without importing them."""
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def detect_isa() -> tuple[str, ...]:
    """The instruction sets of this CPU that decide which kernels run."""
    flags = _linux_flags() or _macos_flags()
    if flags:
        return tuple(name for name, needed in instructions.FLAGS.items() if flags.issuperset(needed))
    capability = torch.backends.cpu.get_cpu_capability()
    return {"AVX512": ("AVX2", "AVX512"), "AVX2": ("AVX2",)}.get(capability, ())


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float | None:
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
    version_2 = _read(folder / "cpu.max").split()
    if len(version_2) == 2 and version_2[0] != "max":
        return int(version_2[0]) / int(version_2[1])
    quota, period = _read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()
    if quota and period and int(quota) > 0:
        return int(quota) / int(period)
    return None


def _control_groups(root: Path, membership: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control group and all its ancestors."""
    for line in _read(membership).splitlines():
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


def no_bf16_kernels(*, in_ipex: bool = False) -> str | None:
    """Why oneDNN has no BF16 kernels here, or None if it has: native ones, or such that emulate by AVX512.

    Parameters
    ----------
    in_ipex
        Ask for the oneDNN that IPEX brings along, too: it heeds the variable that holds PyTorch's own loops back.
    """
    report = machine_report()
    missing = not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    name = instructions.onednn_cap(report.isa_caps) if missing else None
    own = instructions.ipex_onednn_cap(report.isa_caps) if in_ipex else None
    if not missing and own is None:
        return None
    caps = [cap for cap in (name and f"{name}={report.isa_caps[name]}", own) if cap]
    if missing and "AVX512" not in report.isa:
        caps = []
    where = f"under {' and '.join(caps)}" if caps else "for this CPU"
    return f"oneDNN has no BF16 kernels {where}: they need AVX512 or AVX-NE-CONVERT"


def free_bytes(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
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


def _file_cache(folder: Path) -> int:
    for line in _read(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _memory() -> tuple[int, int]:
    import psutil

    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    for folder in _control_groups(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"), "memory"):
        limit = _read(folder / "memory.max").strip() or _read(folder / "memory.limit_in_bytes").strip()
        used = _read(folder / "memory.current").strip() or _read(folder / "memory.usage_in_bytes").strip()
        if limit.isdigit() and int(limit) < total:
            total = int(limit)
            available = min(available, total - int(used or 0))
    return total, max(available, 0)


def _cores_allowed() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        if line.lower().startswith("model name"):
            return line.split(":", 1)[1].strip()
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.processor()
    return platform.processor() or platform.machine()


def _linux_flags() -> frozenset[str]:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        if line.lower().startswith(("flags", "features")):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def _macos_flags() -> frozenset[str]:
    """macOS names its features otherwise; these are the ones that the table above asks for."""
    if sys.platform != "darwin":
        return frozenset()
    if platform.machine() == "arm64":
        named = {"bf16": "hw.optional.arm.FEAT_BF16", "i8mm": "hw.optional.arm.FEAT_I8MM"}
        return frozenset({"asimd"} | {flag for flag, name in named.items() if _sysctl(name) == "1"})
    words = f"{_sysctl('machdep.cpu.features')} {_sysctl('machdep.cpu.leaf7_features')}".lower()
    return frozenset(words.replace(".", "_").split())


def _sysctl(name: str) -> str:
    result = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, check=False)
    return result.stdout.strip()


def _read(path: Path) -> str:
    """The file's text, or nothing where this system has no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
