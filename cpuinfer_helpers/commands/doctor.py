"""Is this machine ready: one finding a line, and what to do about it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from cpuinfer_helpers.display import Displayed, Table, format_bytes
from cpuinfer_helpers.machine import tied
from cpuinfer_helpers.machine.compiler import find_compiler
from cpuinfer_helpers.machine.report import EMULATED_BF16, MachineReport, machine_report
from cpuinfer_helpers.machine.versions import release_of
from cpuinfer_helpers.tasks.hub import DEFAULT_ENDPOINT, hub_unavailable

OK, WARN, FAIL = "ok", "warn", "fail"
_IPEX_IMPORT_SECONDS = 120
_MEMORY_WARN, _MEMORY_FAIL = 4 * 2**30, 2 * 2**30


@dataclass(frozen=True)
class Finding:
    """One check: how it ended, what was seen, and what to do.

    Attributes
    ----------
    status
        ``ok``, ``warn`` or ``fail``.
    name
        What was looked at.
    seen
        What was found.
    advice
        What to do; empty if all is well.
    """

    status: str
    name: str
    seen: str
    advice: str = ""

    def __str__(self) -> str:
        mark = f"[{self.status}]"
        advice = f" -> {self.advice}" if self.advice else ""
        return f"{mark:<6} {self.name}: {self.seen}{advice}"


@dataclass(frozen=True, repr=False)
class Diagnosis(Displayed):
    """All findings; see :func:`diagnose`."""

    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing failed."""
        return all(finding.status != FAIL for finding in self.findings)

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings))

    def table(self) -> Table:
        """A row for each finding."""
        rows = tuple((f"[{f.status}]", f.name, f.seen, f.advice) for f in self.findings)
        return Table(columns=("", "check", "seen", "what to do"), rows=rows)


def diagnose(report: MachineReport | None = None) -> Diagnosis:
    """Look at everything that decides whether the course runs here, and how well.

    Parameters
    ----------
    report
        The machine, if it has been looked at already.

    Returns
    -------
    Diagnosis
    """
    report = report or machine_report()
    checks: tuple[Callable[[MachineReport], Finding], ...] = (
        _python,
        _cpu,
        _cores,
        _memory,
        _stack,
        _trainer_flags,
        _accelerate,
        _ipex,
        _hub,
        _kernel,
        _compiler,
    )
    return Diagnosis(tuple(check(report) for check in checks))


def _python(report: MachineReport) -> Finding:
    # A Python that is built between two releases has a plus at the end, which PEP 440 does not know.
    if (3, 10) <= release_of(report.python.rstrip("+"))[:2] <= (3, 13):
        return Finding(OK, "Python", f"{report.python} ({sys.executable})")
    advice = "use Python 3.10 to 3.13: torch.jit.trace is not supported from 3.14 on, and IPEX has no wheels for others"
    return Finding(FAIL, "Python", report.python, advice)


def _cpu(report: MachineReport) -> Finding:
    seen = f"{report.cpu}, {', '.join(report.isa) or 'no vector instructions known'}"
    if report.isa_caps:
        caps = ", ".join(f"{name}={value}" for name, value in report.isa_caps.items())
        return Finding(WARN, "CPU", f"{seen}; held back by {caps}", "unset it unless it is an experiment")
    if report.architecture in ("x86_64", "AMD64") and "AVX2" not in report.isa:
        return Finding(WARN, "CPU", seen, "without AVX2, IPEX ends the process on import; expect low rates everywhere")
    if not report.bf16_native:
        remedy = f"stay with FP32: BF16 is emulated, {EMULATED_BF16}"
        return Finding(WARN, "CPU", f"{seen}; no native BF16: {report.why_emulated}", remedy)
    return Finding(OK, "CPU", f"{seen}; BF16 native")


def _cores(report: MachineReport) -> Finding:
    quota = "" if report.cpu_quota is None else f", quota {report.cpu_quota:g} CPUs"
    seen = (
        f"{report.cores} usable of {report.cores_total} ({report.cores_allowed} allowed{quota}), "
        f"PyTorch uses {report.threads} threads"
    )
    asked = os.environ.get("OMP_NUM_THREADS", "")
    # OpenMP takes a list as well, a number for each level of nesting.
    if asked.strip() and not all(part.strip().isdigit() and int(part) > 0 for part in asked.split(",")):
        advice = f"OpenMP ignores it: set OMP_NUM_THREADS={report.cores}, or unset it"
        return Finding(WARN, "cores", f"{seen}; OMP_NUM_THREADS={asked!r} is no number of threads", advice)
    if report.threads > report.cores:
        advice = f"more threads than cores fight each other: set OMP_NUM_THREADS={report.cores} before starting"
        return Finding(WARN, "cores", seen, advice)
    if report.threads < report.cores_total // 2 and report.threads < report.cores:
        return Finding(WARN, "cores", seen, "OMP_NUM_THREADS keeps PyTorch from using the cores that are there")
    return Finding(OK, "cores", seen)


def _memory(report: MachineReport) -> Finding:
    seen = f"{format_bytes(report.memory_available)} free of {format_bytes(report.memory_total)}"
    if report.memory_available < _MEMORY_FAIL:
        return Finding(FAIL, "memory", seen, "BERT-base, eager and traced, needs about 2 GiB: close other programs")
    if report.memory_available < _MEMORY_WARN:
        return Finding(WARN, "memory", seen, "enough for one model at a time; restart kernels between notebooks")
    return Finding(OK, "memory", seen)


def _stack(report: MachineReport) -> Finding:
    seen = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    if report.stack == "other":
        advice = "the course is tested with requirements.txt (guide stack) and requirements-current.txt"
        return Finding(WARN, "stack", f"neither guide nor current: {seen}", advice)
    return Finding(OK, "stack", f"{report.stack}: {seen}")


def _trainer_flags(report: MachineReport) -> Finding:
    """What the stock Trainer does with the guide's flags in this version of transformers."""
    version = report.versions.get("transformers")
    if version is None:
        return Finding(FAIL, "transformers", "not installed", "pip install -r requirements.txt")
    number, name = release_of(version), "stock Trainer flags"
    if number >= (5,):
        return Finding(OK, name, f"transformers {version} has neither jit_mode_eval nor use_ipex")
    if number >= (4, 57):
        return Finding(OK, name, f"transformers {version}: jit_mode_eval works, use_ipex is gone")
    if number >= (4, 53):
        advice = "use 4.52.4 for the guide's flags"
        return Finding(WARN, name, f"transformers {version} accepts use_ipex and does nothing", advice)
    if (4, 46) <= number < (4, 49):
        advice = "use 4.52.4: these versions call accelerate with an argument that it no longer has"
        return Finding(WARN, name, f"transformers {version}: jit_mode_eval always falls back", advice)
    return Finding(OK, name, f"transformers {version}: jit_mode_eval and use_ipex both work")


def _accelerate(report: MachineReport) -> Finding:
    version = report.versions.get("accelerate")
    if version is None:
        return Finding(WARN, "accelerate", "not installed", "the Trainer needs it: pip install accelerate")
    if release_of(version) < (0, 26):
        return Finding(FAIL, "accelerate", version, "the Trainer asks for 0.26 or newer: pip install -U accelerate")
    return Finding(OK, "accelerate", version)


def _ipex(report: MachineReport) -> Finding:
    version, torch_version = report.versions.get("intel-extension-for-pytorch"), report.versions.get("torch", "")
    if version is None:
        if sys.platform == "linux" and report.architecture == "x86_64" and report.stack == "guide":
            return Finding(WARN, "IPEX", "not installed", "pip install -r requirements.txt")
        return Finding(OK, "IPEX", "not installed; its notebooks say what they cannot show")
    if release_of(version)[:2] != release_of(torch_version)[:2]:
        fit = ".".join(map(str, release_of(version)[:2]))
        advice = f"install torch {fit}.x, or remove IPEX; importing it now ends with an AttributeError"
        return Finding(FAIL, "IPEX", f"{version} does not fit torch {torch_version}", advice)
    problem = import_problem("intel_extension_for_pytorch")
    if problem:
        return Finding(FAIL, "IPEX", f"{version} cannot be imported: {problem}", "reinstall it, or remove it")
    advice = "the last release, archived in March 2026 with known security issues: trusted models and inputs only"
    return Finding(WARN, "IPEX", f"{version} fits torch {torch_version} and imports", advice)


def import_problem(module: str) -> str | None:
    """Why a module cannot be imported, tried in a process of its own; None if it can."""
    try:
        result = subprocess.run(
            tied.command("-c", f"import {module}"),
            capture_output=True,
            text=True,
            timeout=_IPEX_IMPORT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no end after {_IPEX_IMPORT_SECONDS} s"
    if result.returncode == 0:
        return None
    lines = (result.stderr or result.stdout).strip().splitlines()
    return lines[-1] if lines else f"it ended the process with code {result.returncode}"


def _hub(report: MachineReport) -> Finding:
    problem = hub_unavailable()
    if problem:
        advice = "nothing is missing: tasks use the models and data that come with the package"
        return Finding(WARN, "hub", problem, advice)
    return Finding(OK, "hub", f"{os.environ.get('HF_ENDPOINT', DEFAULT_ENDPOINT)} answers")


def _kernel(report: MachineReport) -> Finding:
    if util.find_spec("ipykernel") is None or util.find_spec("jupyter_client") is None:
        advice = "pip install ipykernel jupyterlab, or use make lab"
        return Finding(WARN, "Jupyter kernel", "ipykernel or jupyter_client is not installed", advice)
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    advice = f"{sys.executable} -m ipykernel install --sys-prefix"
    try:
        arguments = KernelSpecManager().get_kernel_spec("python3").argv
    except NoSuchKernel:
        return Finding(FAIL, "Jupyter kernel", "python3 is not installed", advice)
    if not same_python(arguments[0]):
        return Finding(FAIL, "Jupyter kernel", f"python3 starts {arguments[0]}, not {sys.executable}", advice)
    return Finding(OK, "Jupyter kernel", f"python3, ipykernel {metadata.version('ipykernel')}")


def same_python(command: str) -> bool:
    """Whether a kernel's command is this environment's Python; a bare name is replaced by it when Jupyter starts."""
    if Path(command).name == command:
        return True
    return Path(command).parent.resolve() == Path(sys.executable).parent.resolve()


def _compiler(report: MachineReport) -> Finding:
    compiler = find_compiler()
    if compiler is None:
        advice = "install g++ or clang++ (Debian: apt install g++; macOS: xcode-select --install)"
        return Finding(WARN, "C++ compiler", "none found: notebook 02 skips its C++ part", advice)
    return Finding(OK, "C++ compiler", compiler)
