"""A saved trace that somebody has changed: refused before anything in it is deserialised, or it answers as before."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.saving.folders import MANIFEST, sha256
from tests.faults.harm import Layers, example

MODULE, PROBE = "model.torchscript.pt", "probe.safetensors"
DEEP = "[" * 100_000


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "model")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of the same class with other weights."""
    return cpu.trace_model(Layers(seed=1).eval(), example()).save(tmp_path_factory.mktemp("trace") / "other")


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text())


def write(folder: Path, manifest: Any) -> None:
    (folder / MANIFEST).write_text(json.dumps(manifest))


def list_as_its_own(folder: Path, *names: str) -> None:
    """What somebody does who knows the format: the sums fit again."""
    manifest = read(folder)
    manifest["files"] |= {name: sha256(folder / name) for name in names}
    write(folder, manifest)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    # Of a list the first entry stands for all.
    entries = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from places(entry, (*path, key))


def changed(manifest: dict[str, Any], path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> dict[str, Any]:
    copied = copy.deepcopy(manifest)
    holder = copied
    for key in path[:-1]:
        holder = holder[key]
    change(holder, path[-1])
    return copied


def test_every_field_of_the_manifest_in_turn(folder):
    """Wrong in any place, it is refused with the folder's name, or that place decides nothing and the answers stay."""
    answers = Layers().eval()(**example())["logits"]
    whole = read(folder)
    refused = set()
    for path in places(whole):
        changes = [lambda holder, key, v=value: holder.__setitem__(key, v) for value in (None, 7, "x", {}, [1])]
        for change in [*changes, lambda holder, key: holder.pop(key)]:
            write(folder, changed(whole, path, change))
            try:
                loaded = cpu.TracedModel.load(folder)
                seen = loaded(**example())
            except cpu.ArtifactError as error:
                assert str(folder) in str(error), path
                refused.add(path[0])
                continue
            seen = seen["logits"] if isinstance(seen, dict) else seen
            torch.testing.assert_close(seen, answers, rtol=0, atol=1e-6)
            assert str(loaded) and loaded.table()
    assert {"kind", "format_version", "files", "inputs", "constants", "output", "receipt", "versions", "isa"} <= refused


@pytest.mark.parametrize("text", [DEEP, '{"kind":' + DEEP, "null", '"text"', "\ufeff{}"], ids=range(5))
def test_a_manifest_that_is_something_else(folder, text):
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    with pytest.raises(cpu.ArtifactError, match=r"manifest\.json"):
        cpu.TracedModel.load(folder)


class Payload:
    """Unpickled, it makes a file: whoever runs it gives itself away."""

    def __init__(self, evidence: Path) -> None:
        self.evidence = evidence

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.evidence),)


def plain_pickle(payload: Payload, path: Path) -> None:
    path.write_bytes(pickle.dumps(payload))


def archive(payload: Payload, path: Path) -> None:
    torch.save({"model": payload}, path)


def inside_the_module(payload: Payload, path: Path) -> None:
    """The module's own archive, whose description of the module is replaced."""
    import zipfile

    parts = {}
    with zipfile.ZipFile(path) as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(path, "w") as forged:
        for name, data in parts.items():
            forged.writestr(name, pickle.dumps(payload, protocol=2) if name.endswith("/data.pkl") else data)


def test_the_payload_would_run_if_somebody_unpickled_it(tmp_path):
    plain_pickle(Payload(tmp_path / "ran"), tmp_path / "pickle")
    pickle.loads((tmp_path / "pickle").read_bytes())
    assert (tmp_path / "ran").is_dir()


@pytest.mark.parametrize("name", [MODULE, PROBE])
@pytest.mark.parametrize("put", [plain_pickle, archive, inside_the_module])
@pytest.mark.parametrize("sums", ["old", "forged"])
def test_a_pickle_in_the_place_of_a_file_does_not_run(folder, tmp_path, name, put, sums):
    if put is inside_the_module and name == PROBE:
        shutil.copy(folder / MODULE, folder / PROBE)
    put(Payload(tmp_path / "ran"), folder / name)
    if sums == "forged":
        list_as_its_own(folder, name)
    for verify in (True, False):
        with pytest.raises(cpu.ArtifactError) as caught:
            cpu.TracedModel.load(folder, verify=verify)
        assert str(folder / name) in str(caught.value)
        assert ("its sha256 differs" in str(caught.value)) == (sums == "old")
    assert not (tmp_path / "ran").exists()


def test_nothing_is_read_before_the_sums_have_been_checked(folder, monkeypatch):
    """Of two files the first is damaged: neither reader is called."""
    (folder / MODULE).write_bytes(b"damaged")
    called = []
    monkeypatch.setattr(torch.jit, "load", lambda *arguments, **more: called.append(arguments))
    monkeypatch.setattr("safetensors.torch.load_file", lambda *arguments, **more: called.append(arguments))
    with pytest.raises(cpu.ArtifactError, match="its sha256 differs"):
        cpu.TracedModel.load(folder)
    assert called == []


@pytest.mark.parametrize("name", [MODULE, PROBE, MANIFEST])
def test_files_swapped_between_two_artifacts(folder, other, name):
    shutil.copy(other / name, folder / name)
    with pytest.raises(cpu.ArtifactError, match="its sha256 differs"):
        cpu.TracedModel.load(folder)


def test_sums_of_another_file(folder):
    manifest = read(folder)
    files = manifest["files"]
    files[MODULE], files[PROBE] = files[PROBE], files[MODULE]
    write(folder, manifest)
    with pytest.raises(cpu.ArtifactError, match="its sha256 differs"):
        cpu.TracedModel.load(folder)


def test_a_swapped_module_with_forged_sums_is_caught_by_the_probe(folder, other):
    shutil.copy(other / MODULE, folder / MODULE)
    list_as_its_own(folder, MODULE)
    with pytest.raises(cpu.ArtifactError, match="logits differs from the model's"):
        cpu.TracedModel.load(folder)


def test_files_added(folder):
    (folder / "setup.py").write_text("")
    with pytest.raises(cpu.ArtifactError, match=r"setup\.py is not part of what was saved"):
        cpu.TracedModel.load(folder)


def test_a_file_that_is_not_listed_is_not_read(folder):
    """Listed or not: the module that is read is always one whose sum was checked."""
    manifest = read(folder)
    del manifest["files"][MODULE]
    write(folder, manifest)
    with pytest.raises(cpu.ArtifactError, match=r"model\.torchscript\.pt is not part of what was saved"):
        cpu.TracedModel.load(folder)
    (folder / MODULE).unlink()
    with pytest.raises(cpu.ArtifactError, match=r"model\.torchscript\.pt"):
        cpu.TracedModel.load(folder)


@pytest.mark.parametrize("name", ["../other.pt", "/etc/passwd", "a/../../other.pt", "..", "a/b", ""])
def test_names_that_lead_elsewhere(folder, name):
    (folder.parent / "other.pt").write_bytes(b"not ours")
    manifest = read(folder)
    manifest["files"][name] = sha256(folder.parent / "other.pt")
    write(folder, manifest)
    with pytest.raises(cpu.ArtifactError, match="does not list its files"):
        cpu.TracedModel.load(folder)
