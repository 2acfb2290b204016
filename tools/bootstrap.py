"""Prepare the environment of one stack, then run a command with its Python.

    python3 tools/bootstrap.py guide|current [arguments for the environment's Python]

Standard library only: this runs before anything is installed. When nothing has changed since the last time it
neither starts pip nor touches the network.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
INDEX_VARIABLE = "CPUINFER_TORCH_INDEX"  # another address for the CPU wheels; "none" to do without
PROBE_SECONDS = 3.0
GIGABYTE = 10**9


class SetupError(Exception):
    """What went wrong, in words for the person at the terminal."""


@dataclass(frozen=True)
class Stack:
    """One set of pinned versions and the folder that it is installed in."""

    folder: str
    requirements: str

    @property
    def path(self) -> Path:
        return ROOT / self.folder

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"

    @property
    def stamp(self) -> Path:
        """Written last: an environment without it is unfinished."""
        return self.path / "installed.sha256"


STACKS = {
    "guide": Stack(".venv", "requirements.txt"),
    "current": Stack(".venv-current", "requirements-current.txt"),
}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---- what state the environment is in


def environment_version(folder: Path) -> str | None:
    """'3.12' for an environment made with Python 3.12.1; None where there is none that could start."""
    if not (folder / "bin" / "python").exists():  # also when it points to a Python that is gone
        return None
    try:
        text = (folder / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^version\s*=\s*(\d+\.\d+)", text, re.MULTILINE)
    return found.group(1) if found else None


def fingerprint(stack: Stack, version: str) -> str:
    """All that decides what must be installed. The place counts: the package is installed by its path."""
    digest = hashlib.sha256()
    for part in (version, platform.system(), platform.machine(), str(ROOT)):
        digest.update(part.encode("utf-8", "surrogateescape") + b"\0")
    for name in (stack.requirements, "pyproject.toml"):
        digest.update((ROOT / name).read_bytes() + b"\0")
    return digest.hexdigest()


def is_other_python(version: str) -> bool:
    """Whether someone asked by PYTHON= for another version than the environment has."""
    return bool(os.environ.get("PYTHON")) and version != f"{sys.version_info[0]}.{sys.version_info[1]}"


def is_ready(stack: Stack) -> bool:
    version = environment_version(stack.path)
    if version is None or is_other_python(version):
        return False
    return stack.stamp.is_file() and stack.stamp.read_text().strip() == fingerprint(stack, version)


def damaged_packages(folder: Path) -> list[str]:
    """Packages that an interrupted pip left half written: no RECORD, or a recorded file missing or cut."""
    damaged = []
    for info in sorted(folder.glob("lib/python*/site-packages/*.dist-info")):
        record = info / "RECORD"
        if not record.is_file() or not all(_is_whole(line, info.parent) for line in _record_lines(record)):
            damaged.append(info.name.removesuffix(".dist-info"))
    return damaged


def _record_lines(record: Path) -> list[tuple[str, str]]:
    with record.open(newline="", encoding="utf-8") as file:
        return [(row[0], row[2]) for row in csv.reader(file) if len(row) == 3]


def _is_whole(line: tuple[str, str], site_packages: Path) -> bool:
    name, size = line
    if name.endswith(".pyc"):
        return True
    path = site_packages / name
    # A wheel's own description may have been edited after its list of files was made, as IPEX's was.
    exact = size and ".dist-info/" not in name
    return path.is_file() and (not exact or path.stat().st_size == int(size))


@contextlib.contextmanager
def only_one(stack: Stack) -> Iterator[None]:
    """Two commands started together must not install into the same folder."""
    with (ROOT / f"{stack.folder}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(f"Another command is installing into {stack.folder}; waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# ---- torch


def pinned_torch(requirements: Path) -> str:
    found = re.search(r"^torch==(\S+)", requirements.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise SetupError(f"{requirements.name} has no line 'torch==...'.")
    return found.group(1)


def answers(address: str, seconds: float = PROBE_SECONDS) -> bool:
    """Whether a web address answers in time. In a thread, as looking up a name has no time-out of its own."""
    result: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(address, timeout=seconds) as reply:
                result.append(reply.status == 200)
        except (OSError, ValueError) as error:
            result.append(False)
            say(f"  {address}: {error}")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(result and result[0])


def install_cpu_torch(stack: Stack, version: str) -> bool:
    """Try PyTorch's own CPU wheel: about 200 MB in place of 3.5 GB. Only on Linux do the two differ."""
    index = os.environ.get(INDEX_VARIABLE) or CPU_INDEX
    if platform.system() != "Linux" or index == "none":
        return False
    say(f"torch {version}: asking {index} for the CPU build (about 200 MB).")
    if not answers(f"{index.rstrip('/')}/torch/"):
        say(f"  No answer within {PROBE_SECONDS:.0f} s; going on with the package index.")
        return False
    options = ["--no-deps", "--index-url", index, "--retries", "1", "--timeout", "15"]
    if pip(stack, "install", *options, f"torch=={version}") == 0:
        return True
    say("  That did not work; going on with the package index.")
    return False


def is_small_torch(stack: Stack, version: str) -> bool:
    """Whether pip, left to itself, would take a CPU build: from a folder of wheels it is told of, say."""
    if platform.system() != "Linux":
        return True
    command = [
        stack.python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--dry-run",
        "--no-deps",
        "--ignore-installed",
    ]
    done = subprocess.run(
        [*command, "--report", "-", f"torch=={version}"],
        env=pip_environment(),
        capture_output=True,
        text=True,
    )
    try:
        chosen = json.loads(done.stdout)["install"][0]
    except (ValueError, LookupError):
        return False  # an old pip, or no network: pip itself will say so in the next step
    return chosen["metadata"]["version"].endswith("+cpu")


def fits_on_disk(needs: list[tuple[Path, float]]) -> str | None:
    """None if each folder's disk holds what is to be written there, in GB; otherwise what is missing."""
    wanted: dict[int, float] = {}
    for folder, size in needs:
        while not folder.exists():
            folder = folder.parent
        disk = folder.stat().st_dev
        wanted[disk] = wanted.get(disk, 0.0) + size
        free = shutil.disk_usage(folder).free / GIGABYTE
        if free < wanted[disk]:
            return f"{free:.1f} GB are free on the disk of {folder}, and {wanted[disk]:.1f} GB are needed"
    return None


def check_space(folder: Path, torch_is_small: bool) -> None:
    """Stop before a long download that cannot end well; do without pip's cache if only that does not fit."""
    installed, downloaded = (3.0, 0.5) if torch_is_small else (8.5, 3.5)
    needs = [(folder, installed), (Path(tempfile.gettempdir()), downloaded)]
    problem = fits_on_disk(needs)
    if problem:
        raise SetupError(
            f"{problem} to install this stack (part of it only while installing). Free some space, move the "
            "clone to a larger disk, or set TMPDIR to a folder on one."
        )
    cache = Path(os.environ.get("PIP_CACHE_DIR") or Path.home() / ".cache" / "pip")
    if fits_on_disk([*needs, (cache, downloaded)]):
        say("  Too little space to keep the downloads; an interrupted installation fetches them again.")
        os.environ["PIP_NO_CACHE_DIR"] = "1"
    if not torch_is_small:
        say(
            "torch comes from the package index, with GPU libraries that are not used here: up to 3.5 GB to "
            "download, 8 GB on disk. This happens once."
        )


# ---- installing


def pip_environment() -> dict[str, str]:
    """The caller's environment, without what would make pip install somewhere else."""
    dropped = {"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT"}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return kept | {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}


def pip(stack: Stack, *arguments: str) -> int:
    quiet = [] if sys.stderr.isatty() else ["-qq", "--progress-bar", "off"]
    command = [str(stack.python), "-m", "pip", arguments[0], *quiet, *arguments[1:]]
    return subprocess.run(command, cwd=ROOT, env=pip_environment()).returncode


def must_pip(stack: Stack, *arguments: str) -> None:
    code = pip(stack, *arguments)
    if code:
        raise SetupError(
            f"pip stopped with exit code {code} on '{' '.join(arguments)}'; its message is above. "
            "If the network was away, run the same command again: what was downloaded is kept."
        )


def make_environment(stack: Stack) -> None:
    say(f"Making {stack.folder} with Python {platform.python_version()}.")
    done = subprocess.run([sys.executable, "-m", "venv", "--clear", str(stack.path)], env=pip_environment())
    if done.returncode:
        raise SetupError(f"'{sys.executable} -m venv' failed; its message is above. Another Python: PYTHON=...")


def needs_new_environment(stack: Stack) -> bool:
    version = environment_version(stack.path)
    if version is None or is_other_python(version):
        return True
    if stack.stamp.is_file():
        return False  # it was complete; only the requirements or the place have changed
    damaged = damaged_packages(stack.path)
    if damaged:
        say(f"An earlier installation was interrupted while writing {', '.join(damaged)}; starting over.")
        return True
    works = [str(stack.python), "-m", "pip", "--version"]
    return subprocess.run(works, env=pip_environment(), capture_output=True).returncode != 0


def check_platform() -> None:
    if platform.system() == "Darwin" and platform.machine() == "x86_64":
        raise SetupError("PyTorch has no builds for Intel Macs after version 2.2; the course needs 2.8 or later.")


def install(stack: Stack) -> None:
    check_platform()
    if needs_new_environment(stack):
        make_environment(stack)
    stack.stamp.unlink(missing_ok=True)
    version = pinned_torch(ROOT / stack.requirements)
    if not list(stack.path.glob(f"lib/python*/site-packages/torch-{version}*.dist-info")):
        small = install_cpu_torch(stack, version) or is_small_torch(stack, version)
        check_space(stack.path, small)
    say(f"Installing {stack.requirements} into {stack.folder}.")
    must_pip(stack, "install", "--requirement", stack.requirements)
    # No build isolation: setuptools is among the pins, so this also works without a network.
    must_pip(stack, "install", "--no-deps", "--no-build-isolation", "--editable", ".")
    unfinished = stack.stamp.with_suffix(".part")
    unfinished.write_text(fingerprint(stack, str(environment_version(stack.path))) + "\n")
    unfinished.replace(stack.stamp)
    say(f"{stack.folder} is ready.")


def ensure(stack: Stack) -> None:
    """Make the stack ready; return at once if it is."""
    if is_ready(stack):
        return
    with only_one(stack):
        if not is_ready(stack):
            install(stack)


# ---- running


def run_environment(stack: Stack) -> dict[str, str]:
    """The variables that commands see: as if activated, with Jupyter's own files kept inside the clone."""
    dropped = {"PYTHONPATH", "PYTHONHOME", "JUPYTER_PATH"}
    variables = {name: value for name, value in os.environ.items() if name not in dropped}
    state = ROOT / ".state"
    for name, folder in {
        "IPYTHONDIR": "ipython",
        "JUPYTER_CONFIG_DIR": "jupyter",
        "JUPYTER_DATA_DIR": "jupyter/data",
        "JUPYTER_RUNTIME_DIR": "jupyter/runtime",
        "MPLCONFIGDIR": "matplotlib",
    }.items():
        variables[name] = str(state / folder)
        (state / folder).mkdir(parents=True, exist_ok=True)
    variables["VIRTUAL_ENV"] = str(stack.path)
    variables["PYTHONNOUSERSITE"] = "1"
    variables["PATH"] = os.pathsep.join([str(stack.path / "bin"), os.environ.get("PATH", os.defpath)])
    return variables


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in STACKS:
        say(__doc__ or "")
        return 2
    stack = STACKS[arguments[0]]
    os.chdir(ROOT)
    try:
        ensure(stack)
    except SetupError as error:
        say(f"Set-up stopped: {error}")
        return 1
    except KeyboardInterrupt:
        say("\nInterrupted. The next run goes on from here.")
        return 130
    if len(arguments) > 1:
        os.execve(stack.python, [str(stack.python), *arguments[1:]], run_environment(stack))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
