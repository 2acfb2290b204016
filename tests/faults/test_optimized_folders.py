"""A saved optimized model that came to harm: refused by name before anything runs, or it answers as before."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.saving.folders import MANIFEST
from tests.conftest import make_bert, make_inputs
from tests.faults.harm import Layers, example, largest_file
from tests.faults.test_tampered import Payload, archive, changed, list_as_its_own, places, plain_pickle, read, write
from tests.faults.test_two_at_once import in_two_processes
from tests.optimize.saving_cases import by_hand

MODULE, WEIGHTS, CONFIG = "model.torchscript.pt", "weights.safetensors", "config.json"
FILES = (MODULE, WEIGHTS, CONFIG, "probe.safetensors", "comparison.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved trace of a small BERT: all kinds of files are in it. A test must not change it."""
    optimized = by_hand("torchscript-fp32", make_bert(num_hidden_layers=1), make_inputs())
    return optimized.save(tmp_path_factory.mktemp("optimized") / "model")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "model")


@pytest.fixture(scope="module")
def answers() -> torch.Tensor:
    with torch.no_grad():
        return make_bert(num_hidden_layers=1)(**make_inputs()).start_logits


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_cut_at_every_tenth_of_its_length(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    for tenths in range(10):
        (folder / name).write_bytes(data[: len(data) * tenths // 10])
        for options in ({}, {"verify": False}, {"rebuild": True}):
            with pytest.raises(cpu.ArtifactError) as caught:
                cpu.load_optimized(folder, **options)
            assert str(folder / name) in str(caught.value)
            assert ("its sha256 differs" in str(caught.value)) == (name != MANIFEST)


@pytest.mark.parametrize("name", FILES)
def test_cut_with_sums_that_fit(folder: Path, name: str) -> None:
    """Whoever changes a file and its sum meets the reader of the file."""
    data = (folder / name).read_bytes()
    for tenths in range(10):
        (folder / name).write_bytes(data[: len(data) * tenths // 10])
        list_as_its_own(folder, name)
        with pytest.raises(cpu.ArtifactError) as caught:
            cpu.load_optimized(folder, rebuild=name == WEIGHTS)
        assert str(folder) in str(caught.value)


def test_every_field_of_the_manifest_in_turn(folder: Path, answers: torch.Tensor) -> None:
    manifest = read(folder)
    refused = set()
    for path in places(manifest):
        # The receipt and the dtypes of single weights decide nothing here.
        if (path[0] == "receipt" and len(path) > 2) or (path[:2] == ("model", "dtypes") and len(path) > 2):
            continue
        changes = [lambda holder, key, v=value: holder.__setitem__(key, v) for value in (None, "x", [1])]
        for change in [*changes, lambda holder, key: holder.pop(key)]:
            write(folder, changed(manifest, path, change))
            try:
                loaded = cpu.load_optimized(folder)
                seen = loaded(**make_inputs())
            except cpu.CpuInferError as error:
                assert isinstance(error, cpu.ArtifactError) and str(folder) in str(error), path
                refused.add(path[0])
                continue
            assert "start_logits" in seen, path
            seen = seen["start_logits"]
            torch.testing.assert_close(seen, answers, rtol=0, atol=1e-5)
            assert loaded.table() and loaded.receipt
    wanted = {"kind", "format_version", "files", "recipe", "versions", "isa", "inputs", "constants", "receipt"}
    assert wanted | {"model", "output", "output_dtypes", "details", "exported"} <= refused | {"details", "exported"}


def test_every_field_that_a_rebuild_reads(folder: Path, answers: torch.Tensor) -> None:
    manifest = read(folder)
    fields = [path for path in places(manifest) if path[0] in ("model", "constants", "inputs", "tolerance", "reason")]
    for path in [path for path in fields if "layer" not in str(path) and "embeddings" not in str(path)]:
        for value in (None, "x"):
            write(folder, changed(manifest, path, lambda holder, key, v=value: holder.__setitem__(key, v)))
            try:
                loaded = cpu.load_optimized(folder, rebuild=True)
            except (cpu.ArtifactError, cpu.RecipeError) as error:
                assert isinstance(error, cpu.RecipeError) or str(folder) in str(error), path
                continue
            torch.testing.assert_close(loaded(**make_inputs()).start_logits, answers, rtol=0, atol=1e-5)


@pytest.mark.parametrize("text", ["[" * 100_000, "null", "\ufeff{}"], ids=range(3))
@pytest.mark.parametrize("name", [MANIFEST, CONFIG, "comparison.json"])
def test_json_that_is_something_else(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text, encoding="utf-8")
    if name != MANIFEST:
        list_as_its_own(folder, name)
    for rebuild in (False, True):
        with pytest.raises(cpu.ArtifactError) as caught:
            cpu.load_optimized(folder, rebuild=rebuild)
        assert str(folder) in str(caught.value)


@pytest.mark.parametrize("put", [plain_pickle, archive])
@pytest.mark.parametrize("name", FILES)
def test_a_pickle_in_the_place_of_a_file_does_not_run(
    folder: Path, tmp_path: Path, name: str, put: Callable[[Payload, Path], None]
) -> None:
    put(Payload(tmp_path / "ran"), folder / name)
    for forged in (False, True):
        if forged:
            list_as_its_own(folder, name)
        for options in ({}, {"verify": False}, {"rebuild": True}):
            if forged and (name == WEIGHTS) != bool(options.get("rebuild")):
                continue  # the other way does not read it
            try:
                cpu.load_optimized(folder, **options)
            except cpu.ArtifactError as error:
                assert str(folder) in str(error)
            else:
                raise AssertionError(f"{name} was not read")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("recipe", ["openvino-fp32", "onnxruntime-fp32"])
def test_a_file_of_another_backend_is_refused(tmp_path: Path, recipe: str) -> None:
    if find_spec(recipe.partition("-")[0]) is None:
        pytest.skip(f"{recipe} is not installed")
    optimized = by_hand(recipe, Layers().eval(), example())
    folder, answers = optimized.save(tmp_path / "model"), optimized(**example())["logits"]
    (name,) = set(read(folder)["files"]) - {WEIGHTS, "probe.safetensors", "comparison.json"}
    data = (folder / name).read_bytes()
    for content in (b"", b"no such file", data[: len(data) // 2], data[:-1], bytes(len(data))):
        (folder / name).write_bytes(content)
        list_as_its_own(folder, name)
        try:
            loaded = cpu.load_optimized(folder)
        except cpu.ArtifactError as error:
            assert str(folder) in str(error)
            continue
        # What a backend can do without may be missing.
        assert content == data[:-1] and torch.equal(loaded(**example())["logits"], answers)
    plain_pickle(Payload(tmp_path / "ran"), folder / name)
    list_as_its_own(folder, name)
    with pytest.raises(cpu.ArtifactError):
        cpu.load_optimized(folder, verify=False)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("recipe", ["torchscript-fp32", "onednn-graph-fp32", "openvino-fp32", "onnxruntime-fp32"])
def test_a_full_disk_while_it_is_saved(tmp_path: Path, recipe: str) -> None:
    """At any point: what was there stays whole, and the message says what to do."""
    if find_spec(recipe.partition("-")[0]) is None and recipe.startswith("o") and "graph" not in recipe:
        pytest.skip(f"{recipe} is not installed")
    target = tmp_path / "disk" / "model"
    old = by_hand("torchscript-fp32", Layers().eval(), example())
    old.save(target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    new = by_hand(recipe, Layers(seed=1).eval(), example())
    sizes = {path.stat().st_size for path in new.save(tmp_path / "roomy").iterdir()}
    for limit in sorted({0, 100, *(size - 1 for size in sizes)}):
        with largest_file(limit), pytest.raises(cpu.ArtifactError) as caught:
            new.save(target)
        assert str(target) in str(caught.value) and "make room there" in str(caught.value), limit
        assert {path.name: path.read_bytes() for path in target.iterdir()} == before
        assert list(target.parent.iterdir()) == [target]
    new.save(target)
    assert cpu.load_optimized(target).recipe == recipe


@pytest.mark.apart
def test_two_processes_save_to_one_folder(tmp_path: Path) -> None:
    target = tmp_path / "saved" / "model"
    models = {
        name: by_hand("torchscript-fp32", Layers(seed).eval(), example()) for seed, name in enumerate(("one", "two"))
    }

    def save(name: str) -> None:
        torch.set_num_threads(1)
        for _ in range(5):
            models[name].save(target)

    in_two_processes(save)
    assert list(target.parent.iterdir()) == [target]
    seen = cpu.load_optimized(target)(**example())["logits"]
    # Of one of the two, in all its files: the probe is checked against the module.
    assert any(torch.equal(seen, model(**example())["logits"]) for model in models.values())


@pytest.mark.parametrize("moment", ["exporting", "weights", "comparison", "manifest"])
def test_an_interrupt_while_it_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    from dataclasses import replace

    from cpuinfer_helpers.optimize import model
    from cpuinfer_helpers.recipes import prepared
    from cpuinfer_helpers.saving import folders

    target = tmp_path / "saved" / "model"
    old, new = (by_hand("torchscript-fp32", Layers(seed).eval(), example()) for seed in (0, 1))
    old.save(target)

    def after(function: Callable[..., Any]) -> Callable[..., Any]:
        def interrupted(*arguments: Any, **options: Any) -> Any:
            function(*arguments, **options)
            raise KeyboardInterrupt

        return interrupted

    with monkeypatch.context() as patch:
        if moment == "exporting":
            known = cpu.get_recipe("torchscript-fp32")
            patch.setattr(prepared, "recipe_to_save", lambda name: replace(known, export=after(known.export)))
        elif moment == "weights":
            patch.setattr(prepared, "write_model", after(prepared.write_model))
        elif moment == "comparison":
            patch.setattr(model, "as_text", after(model.as_text))
        else:
            patch.setattr(folders, "move_into_place", lambda *paths: after(lambda: None)())
        with pytest.raises(KeyboardInterrupt):
            new.save(target)
    assert list(target.parent.iterdir()) == [target]
    assert torch.equal(cpu.load_optimized(target)(**example())["logits"], old(**example())["logits"])


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    optimized = by_hand("eager-fp32", Layers().eval(), example())
    for target in (tmp_path / "file" / "model", tmp_path / ("x" * 300)):
        with pytest.raises(cpu.ArtifactError, match="cannot be written"):
            optimized.save(target)
    with pytest.raises(cpu.ArtifactError):
        cpu.load_optimized(tmp_path / "file")
    with pytest.raises(cpu.ArtifactError):
        cpu.load_optimized(tmp_path / ("x" * 300))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
