"""Saved models of other backends whose files lead out of their folder: refused before the backend opens them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.saving.folders import sha256
from tests.faults.harm import Layers, example
from tests.faults.test_tampered import list_as_its_own, read, write
from tests.optimize.saving_cases import by_hand

needs_onnx = pytest.mark.skipif(
    find_spec("onnx") is None or find_spec("onnxruntime") is None, reason="onnx or ONNX Runtime is not installed"
)
needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
WEIGHTS_BESIDE = "beside.bin"


def saved(recipe: str, folder: Path) -> Path:
    return by_hand(recipe, Layers().eval(), example()).save(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("onnxruntime-fp32", tmp_path_factory.mktemp("onnx") / "model")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A saved model beside a secret: numbers in a file that is none of its own."""
    folder = shutil.copytree(whole, tmp_path / "model")
    (tmp_path / "secret.bin").write_bytes(bytes(100_000))
    return folder


@pytest.fixture
def never_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime must not see the file."""
    import onnxruntime

    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("the runtime has opened it")

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)


def moved_out(folder: Path, *entries: tuple[str, str], where: str = "initializer") -> None:
    """Have the largest weights of the model lie in another file, as its external data says, with sums that fit."""
    import onnx

    model = onnx.load(folder / "model.onnx", load_external_data=False)
    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    data, _ = tensor.raw_data, tensor.ClearField("raw_data")
    (folder / WEIGHTS_BESIDE).write_bytes(data)
    if where != "initializer":
        outside = onnx.TensorProto()
        outside.CopyFrom(tensor)
        tensor.raw_data = data
        tensor = _hidden_in(model, outside, where)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries:
        tensor.external_data.add(key=key, value=value)
    onnx.save(model, folder / "model.onnx")
    list_as_its_own(folder, "model.onnx", WEIGHTS_BESIDE)


def _hidden_in(model: Any, tensor: Any, where: str) -> Any:
    """Put weights where they are looked for less often; returns the copy that the model has."""
    if where == "constant":
        node = model.graph.node.add(op_type="Constant", output=["hidden"])
        node.attribute.add(name="value", type=4).t.CopyFrom(tensor)
        return node.attribute[0].t
    if where == "function":
        node = model.functions.add(name="f", domain="d").node.add(op_type="Constant", output=["hidden"])
        node.attribute.add(name="value", type=4).t.CopyFrom(tensor)
        return node.attribute[0].t
    if where == "sparse":
        model.graph.sparse_initializer.add().values.CopyFrom(tensor)
        return model.graph.sparse_initializer[0].values
    node = model.graph.node.add(op_type="If", output=["hidden"])
    node.attribute.add(name="then_branch", type=5).g.initializer.add().CopyFrom(tensor)
    return node.attribute[0].g.initializer[0]


@needs_onnx
def test_weights_in_a_file_beside_it_are_read(folder: Path) -> None:
    moved_out(folder, ("location", WEIGHTS_BESIDE))
    with torch.no_grad():
        expected = Layers().eval()(**example())["logits"]
    torch.testing.assert_close(cpu.load_optimized(folder)(**example())["logits"], expected, rtol=1e-4, atol=1e-5)


@needs_onnx
@pytest.mark.usefixtures("never_opened")
@pytest.mark.parametrize(
    "location",
    ["../secret.bin", "{}/secret.bin", "./../secret.bin", "model/../../secret.bin", "..", "", ".", "sub/x.bin",
     "..\\secret.bin", "missing.bin", "model.onnx", "beside.bin\0", "*/_ORT_MEM_ADDR_/*", "/dev/zero", "/proc/self/mem",
     "\x1b[2J"],
)  # fmt: skip
def test_weights_elsewhere_are_refused_before_the_runtime_sees_them(
    folder: Path, tmp_path: Path, location: str
) -> None:
    moved_out(folder, ("location", location.format(tmp_path)))
    with pytest.raises(cpu.ArtifactError) as caught:
        cpu.load_optimized(folder)
    assert str(folder) in str(caught.value) and "\x1b" not in str(caught.value)


@needs_onnx
@pytest.mark.usefixtures("never_opened")
@pytest.mark.parametrize("where", ["constant", "function", "sparse", "branch"])
def test_in_whatever_part_of_the_model_they_are_named(folder: Path, where: str) -> None:
    moved_out(folder, ("location", "../secret.bin"), where=where)
    with pytest.raises(cpu.ArtifactError, match="only files beside it are read"):
        cpu.load_optimized(folder)


@needs_onnx
@pytest.mark.usefixtures("never_opened")
@pytest.mark.parametrize(
    "entries",
    [
        [("location", WEIGHTS_BESIDE), ("location", "../secret.bin")],
        [("location", "../secret.bin"), ("location", WEIGHTS_BESIDE)],
        [("location", WEIGHTS_BESIDE), ("offset", "1000000000")],
        [("location", WEIGHTS_BESIDE), ("offset", "-1")],
        [("location", WEIGHTS_BESIDE), ("length", "9" * 400)],
        [("location", WEIGHTS_BESIDE), ("length", "nan")],
        [("offset", "0")],
        [],
    ],
)
def test_entries_that_make_no_sense_are_refused(folder: Path, entries: list[tuple[str, str]]) -> None:
    moved_out(folder, *entries)
    with pytest.raises(cpu.ArtifactError):
        cpu.load_optimized(folder)


def linked(outside: Path, name: Path) -> None:
    name.symlink_to(outside)


def piped(outside: Path, name: Path) -> None:
    os.mkfifo(name)


def in_a_folder(outside: Path, name: Path) -> None:
    name.mkdir()


@needs_onnx
@pytest.mark.usefixtures("never_opened")
@pytest.mark.parametrize("name", ["model.onnx", WEIGHTS_BESIDE])
@pytest.mark.parametrize("put", [linked, piped, in_a_folder])
@pytest.mark.parametrize("summed", [True, False])
def test_what_only_looks_like_a_file_of_the_folder(
    folder: Path, tmp_path: Path, put: Callable[[Path, Path], None], name: str, summed: bool
) -> None:
    moved_out(folder, ("location", WEIGHTS_BESIDE))
    (folder / name).replace(tmp_path / "outside")
    put(tmp_path / "outside", folder / name)
    manifest = read(folder)
    if summed:
        manifest["files"][name] = sha256(tmp_path / "outside")
    else:
        manifest["files"].pop(name)
    write(folder, manifest)
    with pytest.raises(cpu.ArtifactError, match=name):
        cpu.load_optimized(folder)


@needs_onnx
@pytest.mark.usefixtures("never_opened")
@pytest.mark.parametrize("file", ["../model.onnx", "", ".", "..", "weights.safetensors", "model.ort", 7, None, ["a"]])
def test_a_manifest_that_names_another_model_file(folder: Path, file: Any) -> None:
    manifest = read(folder)
    manifest["details"]["file"] = file
    if isinstance(file, str) and file.endswith(".ort"):
        shutil.copy(folder / "model.onnx", folder / file)
        manifest["files"][file] = sha256(folder / file)
    write(folder, manifest)
    with pytest.raises(cpu.ArtifactError, match=r"manifest|names"):
        cpu.load_optimized(folder)


@needs_onnx
@pytest.mark.usefixtures("never_opened")
def test_weights_that_are_in_no_sum_are_refused(folder: Path) -> None:
    moved_out(folder, ("location", WEIGHTS_BESIDE))
    manifest = read(folder)
    manifest["files"].pop(WEIGHTS_BESIDE)
    write(folder, manifest)
    with pytest.raises(cpu.ArtifactError, match="is not part of what was saved"):
        cpu.load_optimized(folder)


@needs_openvino
@pytest.mark.parametrize("put", [linked, piped])
def test_a_compiled_model_of_openvino_that_lies_elsewhere(
    tmp_path: Path, put: Callable[[Path, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved("openvino-fp32", tmp_path / "model")
    blob = folder / "model.openvino"
    blob.replace(tmp_path / "outside")
    put(tmp_path / "outside", blob)
    monkeypatch.setattr("cpuinfer_helpers.recipes.backends.openvino._Answer", None)
    with pytest.raises(cpu.ArtifactError, match="no file of its own"):
        cpu.load_optimized(folder)
    blob.unlink()
    with pytest.raises(cpu.ArtifactError, match="is missing"):
        cpu.load_optimized(folder)
