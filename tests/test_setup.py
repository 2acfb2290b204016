"""Set-up: the pinned versions agree with each other, and an environment is called ready only when it is."""

from __future__ import annotations

import http.server
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import cpuinfer_helpers as cpu
from tools import bootstrap

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest itself needs it there

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
PIN_FILES = ("requirements.txt", "requirements-current.txt")
LINUX = {"sys_platform": "linux", "platform_machine": "x86_64"}
MAC = {"sys_platform": "darwin", "platform_machine": "arm64"}


def requirement_lines(name: str) -> list[str]:
    lines = (line.strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def conda_lines() -> list[str]:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (section,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    return section


def pins(lines: list[str], python: str, system: dict[str, str]) -> dict[str, str]:
    """Exact versions by name, for one Python on one system."""
    found = {}
    for requirement in map(Requirement, lines):
        if requirement.marker and not requirement.marker.evaluate({"python_version": python, **system}):
            continue
        (specifier,) = requirement.specifier
        exact = specifier.operator == "==" and not specifier.version.endswith(".*")
        assert exact, f"{requirement} is not an exact version"
        name = canonicalize_name(requirement.name)
        assert name not in found, f"{name} is pinned twice on Python {python}"
        found[name] = specifier.version
    return found


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def ranges(*extras: str) -> list[Requirement]:
    lines = list(project()["dependencies"])
    for extra in extras:
        lines += project()["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


# The pins.


def test_the_package_has_one_version():
    assert project()["version"] == cpu.__version__


@pytest.mark.parametrize("system", [LINUX, MAC], ids=["linux", "mac"])
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", PIN_FILES)
def test_pins_are_exact_and_within_the_packages_ranges(name, python, system):
    pinned = pins(requirement_lines(name), python, system)
    extras = ["notebooks", "test"] + (["ipex"] if name == "requirements.txt" and system is LINUX else [])
    for wanted in ranges(*extras):
        if wanted.marker and not wanted.marker.evaluate({"python_version": python, **system}):
            continue
        version = pinned.get(canonicalize_name(wanted.name))
        assert version is not None, f"{wanted.name} is in pyproject.toml and not in {name}"
        assert wanted.specifier.contains(version), f"{name} has {version}, pyproject.toml asks for {wanted}"


def test_conda_environment_has_the_guide_stacks_pins():
    lines = [line for line in conda_lines() if not line.startswith("--")]
    assert lines == requirement_lines("requirements.txt")
    assert "--editable ." in conda_lines()


def test_conda_python_is_supported():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (python,) = [entry for entry in environment["dependencies"] if str(entry).startswith("python=")]
    assert python.removeprefix("python=") in PYTHONS


def test_ipex_is_asked_for_only_where_it_exists_and_fits_torch():
    guide = requirement_lines("requirements.txt")
    on_linux = pins(guide, "3.12", LINUX)
    assert on_linux["intel-extension-for-pytorch"].split(".")[:2] == on_linux["torch"].split(".")[:2]
    for system in (MAC, {"sys_platform": "linux", "platform_machine": "aarch64"}):
        assert "intel-extension-for-pytorch" not in pins(guide, "3.12", system)
    current = requirement_lines("requirements-current.txt")
    assert "intel-extension-for-pytorch" not in pins(current, "3.12", LINUX)


def test_the_two_stacks_differ_where_they_must_and_share_their_tools():
    guide, current = (pins(requirement_lines(name), "3.12", LINUX) for name in PIN_FILES)
    assert guide["torch"].startswith("2.8.") and guide["transformers"].startswith("4.")
    assert tuple(map(int, current["torch"].split(".")[:2])) >= (2, 13)
    assert int(current["transformers"].split(".")[0]) >= 5
    tools = ("jupyterlab", "ipykernel", "nbval", "nbclient", "nbconvert", "nbformat", "pytest", "ruff")
    assert {name: guide[name] for name in tools} == {name: current[name] for name in tools}


@pytest.mark.parametrize("stack", bootstrap.STACKS.values(), ids=bootstrap.STACKS)
def test_what_is_installed_is_what_is_pinned(stack):
    if Path(sys.prefix).resolve() != stack.path.resolve():
        pytest.skip(f"this Python is not the one in {stack.folder}")
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    here = {"sys_platform": sys.platform, "platform_machine": os.uname().machine}
    pinned = pins(requirement_lines(stack.requirements), python, here)
    installed = {name: metadata.version(name).partition("+")[0] for name in pinned}
    assert installed == pinned


def test_package_folders_are_packages_and_data_is_declared(tmp_path):
    """Builds the wheel, as `pip install .` does, from a copy and without a network."""
    if Version(metadata.version("setuptools")) < Version("77"):
        pytest.skip("building needs setuptools 77 or later, see pyproject.toml; make test has it")
    copy = tmp_path / "a copy"
    no_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "cpuinfer_helpers", copy / "cpuinfer_helpers", ignore=no_caches)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--wheel-dir", str(tmp_path), str(copy)]
    subprocess.run(command, check=True, env=bootstrap.pip_environment())
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("cpuinfer_helpers/")}
    sources = {path.relative_to(copy).as_posix() for path in (copy / "cpuinfer_helpers").rglob("*") if path.is_file()}
    assert packed == sources


# The environment: ready, unfinished, out of date.


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone in a path with a space and an accent, with an environment that looks installed."""
    root = tmp_path / "my cloné"
    site_packages = root / ".venv/lib/python3.11/site-packages"
    (root / ".venv/bin").mkdir(parents=True)
    site_packages.mkdir(parents=True)
    (root / ".venv/bin/python").symlink_to(sys.executable)
    (root / ".venv/pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.11.7\n")
    for name in ("requirements.txt", "requirements-current.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    monkeypatch.setattr(bootstrap, "ROOT", root)
    monkeypatch.delenv("PYTHON", raising=False)
    return root


def mark_ready(stack: bootstrap.Stack) -> None:
    stack.stamp.write_text(bootstrap.fingerprint(stack, "3.11") + "\n")


def test_an_environment_without_its_stamp_is_unfinished(clone):
    stack = bootstrap.STACKS["guide"]
    assert not bootstrap.is_ready(stack)
    mark_ready(stack)
    assert bootstrap.is_ready(stack)


@pytest.mark.parametrize("name", ["requirements.txt", "pyproject.toml"])
def test_a_changed_file_makes_the_environment_out_of_date(clone, name):
    stack = bootstrap.STACKS["guide"]
    mark_ready(stack)
    with (clone / name).open("a") as file:
        file.write("# changed\n")
    assert not bootstrap.is_ready(stack)


def test_the_other_stacks_requirements_do_not_matter(clone):
    stack = bootstrap.STACKS["guide"]
    mark_ready(stack)
    with (clone / "requirements-current.txt").open("a") as file:
        file.write("# changed\n")
    assert bootstrap.is_ready(stack)


def test_a_moved_clone_is_installed_again(clone, monkeypatch):
    stack = bootstrap.STACKS["guide"]
    mark_ready(stack)
    moved = clone.rename(clone.with_name("moved"))
    monkeypatch.setattr(bootstrap, "ROOT", moved)
    assert not bootstrap.is_ready(stack)


def test_an_environment_whose_python_is_gone_is_not_ready(clone):
    stack = bootstrap.STACKS["guide"]
    mark_ready(stack)
    stack.python.unlink()
    stack.python.symlink_to(clone / "no such python")
    assert not bootstrap.is_ready(stack)
    assert bootstrap.needs_new_environment(stack)


def test_asking_for_another_python_makes_a_new_environment(clone, monkeypatch):
    stack = bootstrap.STACKS["guide"]
    (clone / ".venv/pyvenv.cfg").write_text("version = 3.9.1\n")
    stack.stamp.write_text(bootstrap.fingerprint(stack, "3.9") + "\n")
    assert bootstrap.is_ready(stack)
    monkeypatch.setenv("PYTHON", sys.executable)
    assert not bootstrap.is_ready(stack)
    assert bootstrap.needs_new_environment(stack)


def add_package(clone: Path, record: str) -> Path:
    site_packages = clone / ".venv/lib/python3.11/site-packages"
    info = site_packages / "thing-1.0.dist-info"
    info.mkdir()
    (site_packages / "thing.py").write_text("x = 1\n")
    (info / "RECORD").write_text(record)
    return info


def test_a_whole_package_is_not_damaged(clone):
    info = add_package(clone, "thing.py,sha256=abc,6\nthing-1.0.dist-info/METADATA,,99\n__pycache__/thing.pyc,,\n")
    (info / "METADATA").write_text("edited after its size was noted")
    assert bootstrap.damaged_packages(clone / ".venv") == []


@pytest.mark.parametrize("record", ["thing.py,sha256=abc,7\n", "thing.py,,6\nmissing.py,,3\n"])
def test_a_cut_or_missing_file_is_damage(clone, record):
    add_package(clone, record)
    assert bootstrap.damaged_packages(clone / ".venv") == ["thing-1.0"]
    assert bootstrap.needs_new_environment(bootstrap.STACKS["guide"])


def test_a_package_without_its_record_is_damage(clone):
    (add_package(clone, "") / "RECORD").unlink()
    assert bootstrap.damaged_packages(clone / ".venv") == ["thing-1.0"]


def test_a_failed_installation_leaves_no_stamp(clone, monkeypatch):
    stack = bootstrap.STACKS["guide"]
    mark_ready(stack)
    with (clone / "requirements.txt").open("a") as file:
        file.write("# changed\n")
    monkeypatch.setenv(bootstrap.INDEX_VARIABLE, "none")
    monkeypatch.setattr(bootstrap, "pip", lambda stack, *arguments: 1)
    monkeypatch.setattr(bootstrap, "is_small_torch", lambda stack, version: True)
    with pytest.raises(bootstrap.SetupError, match="exit code 1"):
        bootstrap.install(stack)
    assert not stack.stamp.exists()


def test_the_two_stacks_have_folders_of_their_own():
    folders = [stack.path for stack in bootstrap.STACKS.values()]
    assert len(set(folders)) == len(folders) == 2


def test_too_little_space_is_said_before_the_download(tmp_path):
    assert bootstrap.fits_on_disk([(tmp_path / "not yet there", 0.000001)]) is None
    assert "needed" in bootstrap.fits_on_disk([(tmp_path, 10.0**9)])
    free = shutil.disk_usage(tmp_path).free / bootstrap.GIGABYTE
    assert bootstrap.fits_on_disk([(tmp_path, 0.6 * free)]) is None
    assert bootstrap.fits_on_disk([(tmp_path, 0.6 * free), (tmp_path / "sub", 0.6 * free)]) is not None


# The question whether PyTorch's index answers.


@pytest.fixture
def local_index():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/torch/" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments):
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_index_that_answers_is_used(local_index, monkeypatch, clone):
    asked = []
    monkeypatch.setenv(bootstrap.INDEX_VARIABLE, local_index)
    monkeypatch.setattr(bootstrap.platform, "system", lambda: "Linux")
    monkeypatch.setattr(bootstrap, "pip", lambda stack, *arguments: asked.append(arguments) or 0)
    assert bootstrap.install_cpu_torch(bootstrap.STACKS["guide"], "2.8.0")
    (arguments,) = asked
    assert arguments[-1] == "torch==2.8.0" and local_index in arguments and "--no-deps" in arguments


def test_an_index_that_refuses_is_left_alone(local_index, monkeypatch, clone):
    monkeypatch.setenv(bootstrap.INDEX_VARIABLE, f"{local_index}/elsewhere")
    monkeypatch.setattr(bootstrap, "pip", lambda stack, *arguments: pytest.fail("pip was started"))
    assert not bootstrap.install_cpu_torch(bootstrap.STACKS["guide"], "2.8.0")


def test_a_silent_index_is_given_up_on():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert not bootstrap.answers(f"http://127.0.0.1:{silent.getsockname()[1]}/torch/", seconds=0.2)


def test_a_name_that_cannot_be_looked_up_in_time_is_given_up_on(monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: released.wait(30) and [])
    start = time.monotonic()
    assert not bootstrap.answers("http://localhost:1/torch/", seconds=0.2)
    waited = time.monotonic() - start
    released.set()
    assert waited < 15  # far above 0.2 s, and half of what the look-up would have taken


# Finding a Python.


def start(path: str, *, cwd: Path, python: str = "") -> subprocess.CompletedProcess:
    environment = {"PATH": path, "PYTHON": python}
    command = ["/bin/sh", "tools/start.sh", "guide"]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture
def starter(tmp_path):
    """A clone whose bootstrap only tells which Python runs it, and a folder to put Pythons in."""
    (tmp_path / "a clone/tools").mkdir(parents=True)
    (tmp_path / "some bin").mkdir()
    shutil.copy(ROOT / "tools/start.sh", tmp_path / "a clone/tools")
    stand_in = "import sys; print(sys.argv[1], 'with', sys.version_info[:2])"
    (tmp_path / "a clone/tools/bootstrap.py").write_text(stand_in)
    for tool in ("cat", "tail"):
        (tmp_path / "some bin" / tool).symlink_to(str(shutil.which(tool)))
    return tmp_path / "a clone", tmp_path / "some bin"


def put_python(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


GOOD = f'exec "{sys.executable}" "$@"'
OLD = 'case "$1" in --version) echo Python 3.8.18;; *) exit 1;; esac'


def test_python3_comes_first(starter):
    clone, folder = starter
    put_python(folder, "python3", GOOD)
    put_python(folder, "python3.12", "echo wrong one")
    done = start(str(folder), cwd=clone)
    assert done.returncode == 0 and done.stdout.strip() == f"guide with {sys.version_info[:2]}"


def test_an_old_python3_is_passed_over(starter):
    clone, folder = starter
    put_python(folder, "python3", OLD)
    put_python(folder, "python3.11", GOOD)
    assert start(str(folder), cwd=clone).stdout.startswith("guide with")


def test_a_named_python_wins_and_is_the_only_one_tried(starter):
    clone, folder = starter
    put_python(folder, "python3", GOOD)
    put_python(folder, "my python", OLD)
    done = start(str(folder), cwd=clone, python=str(folder / "my python"))
    assert done.returncode == 1 and "my python: Python 3.8.18" in done.stderr
    put_python(folder, "my python", GOOD)
    assert start(str(folder), cwd=clone, python=str(folder / "my python")).returncode == 0


def test_without_any_python_the_message_says_what_to_install(starter):
    clone, folder = starter
    put_python(folder, "python3", OLD)
    done = start(str(folder), cwd=clone)
    assert done.returncode == 1 and done.stdout == ""
    for needed in ("3.10 to 3.13", "python3: Python 3.8.18", "python3.12: not found", "apt", "brew", "conda"):
        assert needed in done.stderr


# The Makefile.


def test_help_names_every_target():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z0-9-]+):", makefile, re.MULTILINE)) - {"help"}
    on_both = {
        "test",
        "test-current",
        "test-avx2",
        "test-current-avx2",
        "sweep",
        "sweep-current",
        "soak",
        "soak-current",
    }
    assert targets == {"lab", "run", "bench", "bench-generate", "bench-trainer", "doctor", "clean"} | on_both
    shown = set(re.findall(r'@echo "make ([a-z0-9-]+)', makefile))
    assert shown == targets
