"""Two processes that write the same thing at the same time: both end well, and what is left is whole and of one."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cpuinfer_helpers.saving import folders
from cpuinfer_helpers.saving.folders import new_artifact, read_manifest

pytestmark = pytest.mark.apart


def in_two_processes(work: Callable[[str], None]) -> None:
    """Both begin when both are there."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2, timeout=60)

    def run(name: str) -> None:
        barrier.wait()
        work(name)

    two = [context.Process(target=run, args=(name,), daemon=True) for name in ("one", "two")]
    for process in two:
        process.start()
    for process in two:
        process.join(60)
    assert [process.exitcode for process in two] == [0, 0]


def save_often(folder: Path) -> Callable[[str], None]:
    def save(name: str) -> None:
        for number in range(100):
            with new_artifact(folder / "model", "test", {"format_version": 1, "of": name}) as part:
                for file in range(3):
                    (part / f"{file}.bin").write_text(f"{name} {number}" * 50)

    return save


def check_whole(folder: Path) -> None:
    manifest = read_manifest(folder / "model", "test", 1)
    assert manifest["of"] in ("one", "two")
    contents = {(folder / "model" / f"{file}.bin").read_text() for file in range(3)}
    assert len(contents) == 1 and contents.pop().startswith(manifest["of"])
    assert [path.name for path in folder.iterdir() if "model" in path.name] == ["model"]


def test_saving_to_the_same_folder(tmp_path):
    in_two_processes(save_often(tmp_path))
    check_whole(tmp_path)


def test_saving_where_two_folders_cannot_change_places_in_one_step(tmp_path, monkeypatch):
    """As on file systems and systems that have no such call."""
    monkeypatch.setattr(ctypes, "CDLL", lambda *arguments, **more: None)
    in_two_processes(save_often(tmp_path))
    check_whole(tmp_path)


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
    monkeypatch.setattr(folders, "_exchange", look(folders._exchange))
    monkeypatch.setattr(shutil, "rmtree", look(shutil.rmtree))
    with new_artifact(tmp_path / "model", "test", {"format_version": 1}) as part:
        (part / "1.bin").write_text("new")
    assert {"0.bin"} in seen and {"1.bin"} in seen
    assert all(names in ({"0.bin"}, {"1.bin"}) for names in seen)
