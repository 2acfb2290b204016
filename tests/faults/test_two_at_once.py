"""Two processes that write the same thing at the same time: both end well, and what is left is whole and of one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cpuinfer_helpers as cpu
from cpuinfer_helpers import artifacts
from cpuinfer_helpers.artifacts import new_artifact, read_manifest
from cpuinfer_helpers.tasks.loading import DATA

ROOT = Path(cpu.__file__).parents[1]
# Both wait for the other before they begin.
TOGETHER = """
import os, sys, time
from pathlib import Path
folder, me = Path(sys.argv[1]), sys.argv[2]

def begin():
    (folder / f"ready {me}").touch()
    deadline = time.monotonic() + 60
    while len(list(folder.glob("ready *"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.001)
"""
SAVE = (
    TOGETHER
    + """
from cpuinfer_helpers.artifacts import new_artifact
begin()
for number in range(60):
    with new_artifact(folder / "model", "test", {"format_version": 1, "of": me}) as part:
        for file in range(3):
            (part / f"{file}.bin").write_text(f"{me} {number}" * 50)
"""
)
LOAD = (
    TOGETHER
    + """
import shutil
import types
from cpuinfer_helpers.tasks import loading

def train_checkpoint(name, directory, **options):
    with open(folder / "trained", "a") as log:
        log.write(me)
    time.sleep(0.5)
    shutil.copytree(loading.DATA / "checkpoints" / name, Path(directory) / name)

# In the place of the real one, which takes a minute.
name = "cpuinfer_helpers.tasks.offline.train"
sys.modules[name] = types.SimpleNamespace(train_checkpoint=train_checkpoint)
begin()
print(loading.checkpoint_directory("text-classification", folder / "none shipped"))
"""
)


def run_two(program: str, folder: Path, **environment: str) -> list[str]:
    """What each of the two printed."""
    two = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(folder), name],
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    try:
        ended = [process.communicate(timeout=120) for process in two]
    finally:
        for process in two:
            process.kill()
    assert [process.returncode for process in two] == [0, 0], [errors[-2000:] for _, errors in ended]
    return [printed.strip() for printed, _ in ended]


def check_whole(folder: Path) -> None:
    manifest = read_manifest(folder / "model", "test", 1)
    assert manifest["of"] in ("one", "two")
    contents = {(folder / "model" / f"{file}.bin").read_text() for file in range(3)}
    assert len(contents) == 1 and contents.pop().startswith(manifest["of"])
    assert [path.name for path in folder.iterdir() if "model" in path.name] == ["model"]


def test_saving_to_the_same_folder(tmp_path):
    run_two(SAVE, tmp_path)
    check_whole(tmp_path)


def test_saving_where_two_folders_cannot_change_places_in_one_step(tmp_path):
    """As on file systems and systems that have no such call."""
    run_two("import ctypes\nctypes.CDLL = lambda *arguments, **more: None\n" + SAVE, tmp_path)
    check_whole(tmp_path)


def test_building_the_same_cache(tmp_path):
    printed = run_two(LOAD, tmp_path, CPUINFER_CACHE=str(tmp_path / "cache"))
    assert printed[0] == printed[1]
    folder = Path(printed[0])
    names = {path.name for path in (DATA / "checkpoints" / "text-classification").iterdir()}
    assert {path.name for path in folder.iterdir()} == {*names, "manifest.json"}
    assert (tmp_path / "trained").read_text() in ("one", "two"), "the second one waits for the first"
    assert [path.name for path in folder.parent.iterdir()] == ["text-classification"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere replacing a folder takes two steps")
def test_the_old_or_the_new_artifact_is_there_at_any_time(tmp_path, monkeypatch):
    """Whatever is asked of the system while a folder is replaced, a process that ends there leaves a whole one."""
    with new_artifact(tmp_path / "model", "test", {"format_version": 1}) as part:
        (part / "0.bin").write_text("old")
    seen = []

    def look(function):
        def called(*arguments, **more):
            seen.append(read_manifest(tmp_path / "model", "test", 1)["files"].keys())
            result = function(*arguments, **more)
            seen.append(read_manifest(tmp_path / "model", "test", 1)["files"].keys())
            return result

        return called

    monkeypatch.setattr(Path, "rename", look(Path.rename))
    monkeypatch.setattr(os, "rename", look(os.rename))
    monkeypatch.setattr(artifacts, "_exchange", look(artifacts._exchange))
    monkeypatch.setattr(shutil, "rmtree", look(shutil.rmtree))
    with new_artifact(tmp_path / "model", "test", {"format_version": 1}) as part:
        (part / "1.bin").write_text("new")
    assert {"0.bin"} in seen and {"1.bin"} in seen
    assert json.dumps([sorted(names) for names in seen]).count(",") == len(seen) - 1
