"""A path that is none is refused in one line of ours, by everything that takes one."""

from __future__ import annotations

import pytest

import cpuinfer_helpers as cpu
from cpuinfer_helpers import run_qa
from cpuinfer_helpers.compare import saved
from cpuinfer_helpers.course import guesses
from cpuinfer_helpers.machine import paths
from cpuinfer_helpers.saving.folders import new_artifact
from cpuinfer_helpers.tasks.squad.data import read_squad

TAKERS = {
    "new artifact": lambda path: new_artifact(path, "some kind", {}).__enter__(),
    "TracedModel.load": cpu.TracedModel.load,
    "load_optimized": cpu.load_optimized,
    "Comparison.load": cpu.Comparison.load,
    "Comparison.save": lambda path: saved.save(None, path),
    "load_model": cpu.load_model,
    "read_squad": read_squad,
}
NO_PATHS = [None, 3, b"folder", "", " ", "a\0b", "\ud800/x\udc00\udfff", ["folder"]]


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("path", NO_PATHS, ids=ascii)
def test_what_is_no_path_is_named(taker, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(cpu.InputError) as caught:
        TAKERS[taker](path)
    assert "\n" not in str(caught.value) and type(caught.value) is cpu.InputError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("taker", ["new artifact", "TracedModel.load", "load_optimized"])
def test_a_file_in_the_place_of_a_folder_is_an_error_of_ours(taker, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(cpu.CpuInferError, match="file"):
        TAKERS[taker](tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_an_unknown_home_is_told_apart(monkeypatch):
    def unknown(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(paths.Path, "expanduser", unknown)
    with pytest.raises(cpu.InputError, match="home folder is not known"):
        paths.given_path("~/models")


def test_a_home_that_cannot_be_written_is_told_with_what_to_do(monkeypatch, tmp_path):
    (tmp_path / "home").touch()
    for name in ("CPUINFER_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(cpu.ArtifactError, match="set CPUINFER_CACHE"):
        guesses.keep_guesses({"tokens": 3.0})


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_an_output_folder_that_is_none(path):
    with pytest.raises(cpu.InputError, match="output_dir"):
        run_qa._writable(path)
