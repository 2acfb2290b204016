"""Run a traced model in a C++ program that has no Python in it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from cpuinfer_helpers.display import Displayed, Table, format_seconds
from cpuinfer_helpers.errors import BuildError, InputError
from cpuinfer_helpers.graph import jit_deprecations_ignored
from cpuinfer_helpers.machine.compiler import find_compiler
from cpuinfer_helpers.machine.limits import check_threads
from cpuinfer_helpers.machine.paths import given_path
from cpuinfer_helpers.machine.scratch import temporary_folder
from cpuinfer_helpers.saving.folders import MODULE_FILE

SOURCE = Path(__file__).with_name("run_traced.cpp")
_BUILD_SECONDS = 300
_RUN_SECONDS = 600
_MOST_CALLS = 10**9


@dataclass(frozen=True, repr=False)
class CppRun(Displayed):
    """What the C++ program gave back.

    Attributes
    ----------
    outputs
        The module's outputs by name, in FP32.
    seconds
        Time of each call, the first one included.
    libraries
        Shared libraries in the process after the last call; empty on systems other than Linux.
    """

    outputs: dict[str, torch.Tensor]
    seconds: tuple[float, ...]
    libraries: tuple[str, ...]

    @property
    def has_python(self) -> bool:
        """Whether any part of Python was loaded."""
        return any("python" in name.lower() for name in self.libraries)

    def table(self) -> Table:
        """Outputs, times, and whether Python was there."""
        rows = (
            ("outputs", ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in self.outputs.items())),
            ("first call", format_seconds(self.seconds[0])),
            ("last call", format_seconds(self.seconds[-1])),
            ("libraries loaded", ", ".join(self.libraries) or "not known on this system"),
            ("Python among them", "yes" if self.has_python else "no"),
        )
        return Table(columns=("C++ program", "seen"), rows=rows)


def build(directory: str | os.PathLike[str]) -> Path:
    """Compile the program :data:`SOURCE` against the installed torch.

    Parameters
    ----------
    directory
        Folder for the executable.

    Returns
    -------
    Path
        The executable.

    Raises
    ------
    BuildError
        If there is no compiler, or it fails; the message holds its first error.
    """
    folder, compiler = given_path(directory, "directory"), find_compiler()
    if compiler is None:
        raise BuildError("no C++ compiler was found; install g++ or clang++, or name one in the variable CXX")
    package = Path(torch.__file__).parent
    include, libraries = package / "include", package / "lib"
    executable = folder / "run_traced"
    command = [
        *(compiler, "-std=c++20", "-O2", "-w", str(SOURCE), "-o", str(executable)),
        *(f"-I{include}", f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}"),
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        *(f"-L{libraries}", "-ltorch_cpu", "-lc10", "-Wl,-rpath," + str(libraries)),
    ]
    result = _run(command, _BUILD_SECONDS)
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if "error" in line]
        raise BuildError(f"{compiler} failed: {(errors or [result.stderr.strip()])[0]}")
    return executable


def run(
    executable: Path,
    module: str | os.PathLike[str] | torch.jit.ScriptModule,
    inputs: Mapping[str, torch.Tensor],
    *,
    calls: int = 5,
    threads: int | None = None,
) -> CppRun:
    """Load a module in the C++ program and call it.

    Parameters
    ----------
    executable
        What :func:`build` returned.
    module
        A folder that ``TracedModel.save`` wrote, a file that ``torch.jit.save`` wrote, or a ScriptModule. It must take
        its tensors by name and return a dictionary of tensors, as the module of a TracedModel does.
    inputs
        int64 tensors by name.
    calls
        How often to call it, at least once.
    threads
        Threads of the program; as many as PyTorch has here unless given.

    Returns
    -------
    CppRun

    Raises
    ------
    InputError
        If an input is not of int64, or ``calls`` or ``threads`` is not a whole number of at least 1, or far more
        threads than this machine could run.
    BuildError
        If the program fails; the message is its own.
    """
    for name, tensor in inputs.items():
        if tensor.dtype != torch.int64:
            raise InputError(f"inputs[{name!r}] is {tensor.dtype}; the program reads int64 only")
    if not isinstance(calls, int) or isinstance(calls, bool) or not 1 <= calls <= _MOST_CALLS:
        raise InputError(f"calls is {calls!r}; give a whole number of at least 1, and at most {_MOST_CALLS}")
    threads = check_threads(torch.get_num_threads() if threads is None else threads)
    with temporary_folder() as folder:
        path = folder / "inputs.txt"
        path.write_text("".join(_line(name, tensor) for name, tensor in inputs.items()), encoding="utf-8")
        if isinstance(module, torch.jit.ScriptModule):
            with jit_deprecations_ignored():
                (folder / "module.pt").write_bytes(module.save_to_buffer())
            module = folder / "module.pt"
        elif Path(module).is_dir():
            module = Path(module) / MODULE_FILE
        arguments = [str(executable), str(module), str(path), str(calls), str(threads)]
        result = _run(arguments, _RUN_SECONDS)
    if result.returncode:
        raise BuildError(f"{executable} failed: {result.stderr.strip() or result.returncode}")
    return _parse(result.stdout)


def _parse(text: str) -> CppRun:
    lines = {name: words for name, *words in (line.split() for line in text.splitlines() if line)}
    libraries = tuple(lines.pop("libraries", ()))
    seconds = tuple(map(float, lines.pop("seconds")))
    outputs = {}
    for name, (dimensions, *rest) in lines.items():
        count = int(dimensions)
        values = torch.tensor([float(value) for value in rest[count:]])
        outputs[name] = values.reshape([int(size) for size in rest[:count]])
    return CppRun(outputs, seconds, libraries)


def _line(name: str, tensor: torch.Tensor) -> str:
    words = [name, tensor.dim(), *tensor.shape, *tensor.flatten().tolist()]
    return " ".join(map(str, words)) + "\n"


def _run(command: list[str], seconds: int) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise BuildError(f"{command[0]} did not end within {seconds} s") from None
