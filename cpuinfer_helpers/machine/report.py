"""What CPU this is, what it can do, and how much of it this process may use."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from cpuinfer_helpers.display import Displayed, Table, format_bytes
from cpuinfer_helpers.machine import instructions
from cpuinfer_helpers.machine.limits import cores_allowed, cpu_quota, memory, text_of
from cpuinfer_helpers.machine.versions import installed_versions, release_of

# Measured on AMD EPYC (Zen 3, AVX2 only): 3.6 times for single rows of a large model, 34 times for long inputs.
EMULATED_BF16 = "3 to 34 times slower than FP32"
# Without VNNI pairs of products are added in 16 bits, which saturate (oneDNN's developer guide, "Nuances of int8").
EMULATED_INT8 = "recipes use 7 of 8 bits, or sums would overflow"


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
        torch_version = release_of(self.versions.get("torch", "0"))
        transformers_version = release_of(self.versions.get("transformers", "0"))
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
    memory_total, memory_available = memory()
    return MachineReport(
        cpu=_cpu_name(),
        architecture=platform.machine(),
        isa=detect_isa(),
        isa_caps={name: os.environ[name] for name in instructions.CAPS if os.environ.get(name)},
        cores_total=os.cpu_count() or 1,
        cores_allowed=cores_allowed(),
        cpu_quota=cpu_quota(),
        threads=torch.get_num_threads(),
        memory_total=memory_total,
        memory_available=memory_available,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}",
        versions=installed_versions(),
    )


def detect_isa() -> tuple[str, ...]:
    """The instruction sets of this CPU that decide which kernels run."""
    flags = _linux_flags() or _macos_flags()
    if flags:
        return tuple(name for name, needed in instructions.FLAGS.items() if flags.issuperset(needed))
    capability = torch.backends.cpu.get_cpu_capability()
    return {"AVX512": ("AVX2", "AVX512"), "AVX2": ("AVX2",)}.get(capability, ())


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


def _cpu_name() -> str:
    for line in text_of(Path("/proc/cpuinfo")).splitlines():
        if line.lower().startswith("model name"):
            return line.split(":", 1)[1].strip()
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.processor()
    return platform.processor() or platform.machine()


def _linux_flags() -> frozenset[str]:
    for line in text_of(Path("/proc/cpuinfo")).splitlines():
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
