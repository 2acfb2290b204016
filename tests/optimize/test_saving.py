"""An optimized model is saved and loaded: the same answers, or a clear reason why not and what to do."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.machine.versions import installed_versions
from cpuinfer_helpers.recipes import Build, get_recipe
from cpuinfer_helpers.saving.plain import write
from tests.conftest import make_bert, make_inputs, seen_in_child
from tests.optimize.saving_cases import (
    TOLERANCE,
    Tied,
    by_hand,
    change_manifest,
    largest_errors,
    list_anew,
    read_manifest,
    values,
)

EXPORTED = (
    "torchscript-fp32",
    "torchscript-bf16",
    "onednn-graph-fp32",
    "onednn-graph-bf16",
    "openvino-fp32",
    "openvino-bf16",
    "openvino-int8",
    "onnxruntime-fp32",
    "onnxruntime-int8",
)
REBUILT = tuple(
    name
    for name in ("eager-fp32", "eager-bf16", "bettertransformer-fp32", "bettertransformer-bf16")
    if name in cpu.list_recipes().names
)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The small BERT, saved by a recipe; each once, and a test must not change it."""
    parent = tmp_path_factory.mktemp("saved models")

    def get(recipe: str) -> Path:
        if get_recipe(recipe).why_not:
            pytest.skip(get_recipe(recipe).why_not)
        folder = parent / recipe
        if not folder.exists():
            by_hand(recipe, make_bert(), make_inputs()).save(folder)
        return folder

    return get


@pytest.fixture
def copied(folder_of: Callable[[str], Path], tmp_path: Path) -> Path:
    """A saved trace of the small BERT that a test may change."""
    return shutil.copytree(folder_of("torchscript-fp32"), tmp_path / "model")


@pytest.mark.cpu
@pytest.mark.parametrize("recipe", [*EXPORTED, *REBUILT])
def test_it_answers_as_the_model_did(folder_of: Callable[[str], Path], recipe: str) -> None:
    folder, model = folder_of(recipe), make_bert()
    loaded = cpu.load_optimized(folder)
    assert max(largest_errors(loaded, model)) <= TOLERANCE[recipe.rpartition("-")[2]]
    assert loaded.recipe == recipe and loaded.config.to_dict() == model.config.to_dict()
    assert loaded.config._attn_implementation == "sdpa"
    assert loaded.input_names == tuple(make_inputs())
    assert list(loaded.comparison.rows) == list(dict.fromkeys(("eager-fp32", recipe)))
    # What was written needs no eager model beside it; what is made anew has one.
    assert (loaded.model is None) == (recipe in EXPORTED)
    assert loaded.receipt.requested["recipe"] == recipe
    assert type(model).__name__ in str(loaded) and loaded.table()


def test_padded_positions_are_not_compared(tmp_path: Path) -> None:
    """BetterTransformer leaves them out, so what stands there is not what the model gives."""
    model, inputs = make_bert(), make_inputs(padding=5)
    folder = by_hand("bettertransformer-fp32", model, inputs).save(tmp_path / "model")
    with torch.no_grad():
        seen, expected = cpu.load_optimized(folder)(**inputs).start_logits, model(**inputs).start_logits
    valid = inputs["attention_mask"].bool()
    assert (seen - expected)[valid].abs().max() <= TOLERANCE["fp32"] * expected.abs().max()
    assert (seen - expected)[~valid].abs().max() > 10 * TOLERANCE["fp32"] * expected.abs().max()


@pytest.mark.cpu
@pytest.mark.parametrize("recipe", EXPORTED)
def test_the_receipt_of_what_was_written_is_the_one_of_its_making(
    folder_of: Callable[[str], Path], recipe: str
) -> None:
    loaded = cpu.load_optimized(folder_of(recipe))
    assert loaded.receipt.verified and loaded.receipt.runs
    assert write(loaded.receipt) == read_manifest(folder_of(recipe))["receipt"]


LOAD = """
import json, sys
from tests.optimize.saving_cases import load_all
print("SEEN", json.dumps(load_all(sys.argv[1:])))
"""
SAVE_IPEX = """
import json, sys
from pathlib import Path
from tests.optimize.saving_cases import by_hand, make_bert, make_inputs
for recipe in sys.argv[2:]:
    by_hand(recipe, make_bert(), make_inputs()).save(Path(sys.argv[1]) / recipe)
print("SEEN", json.dumps(sorted(path.name for path in Path(sys.argv[1]).iterdir())))
"""


def test_processes_that_have_not_made_them(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    """IPEX changes a process for as long as it lives, so it is used in these alone."""
    names = [name for name in (*EXPORTED[::2], *REBUILT[1:2]) if get_recipe(name).can_run]
    folders = [str(folder_of(name)) for name in names]
    of_ipex = [name for name in ("ipex-fp32", "ipex-bf16") if get_recipe(name).can_run]
    if of_ipex:
        folders += [str(tmp_path / name) for name in seen_in_child("-c", SAVE_IPEX, str(tmp_path), *of_ipex)]
    seen = seen_in_child("-c", LOAD, *folders)
    assert len(seen) == len(folders) >= 3
    for name, errors in seen.items():
        # Three shapes, three calls each, two outputs.
        assert len(errors) == 18 and max(errors) <= TOLERANCE[name.rpartition("-")[2]], name


def test_the_folder_holds_what_its_manifest_says(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("onnxruntime-fp32")
    manifest = read_manifest(folder)
    assert sorted(manifest["files"]) == sorted(path.name for path in folder.iterdir() if path.name != "manifest.json")
    assert {"weights.safetensors", "config.json", "probe.safetensors", "comparison.json"} < set(manifest["files"])
    assert manifest["inputs"]["input_ids"] == {"dtype": "int64", "example_shape": [2, 12]}
    assert manifest["versions"] == installed_versions() and manifest["isa"] == list(cpu.machine_report().isa)
    # Whoever may read the folder may read all of it.
    assert {(folder / name).stat().st_mode & 0o044 for name in manifest["files"]} == {0o044 & ~_umask()}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("recipe", ["torchscript-fp32", "openvino-fp32"])
def test_a_rebuild_is_made_of_the_weights_and_verified(folder_of: Callable[[str], Path], recipe: str) -> None:
    model = make_bert()
    rebuilt = cpu.load_optimized(folder_of(recipe), rebuild=True)
    assert rebuilt.receipt.verified and rebuilt.recipe == recipe
    assert max(largest_errors(rebuilt, model)) <= TOLERANCE["fp32"]
    assert rebuilt.model.state_dict().keys() == model.state_dict().keys()
    assert not rebuilt.model.training and rebuilt.model.config._attn_implementation == "sdpa"
    assert "other batch size" in [check.name for check in rebuilt.receipt.checks]


def test_the_random_numbers_of_the_user_are_left_alone(folder_of: Callable[[str], Path]) -> None:
    before = torch.get_rng_state()
    cpu.load_optimized(folder_of("torchscript-fp32"), rebuild=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_that_are_tied_are_written_once_and_tied_again(tmp_path: Path) -> None:
    model = make_bert("BertForMaskedLM")
    folder = by_hand("torchscript-fp32", model, make_inputs()).save(tmp_path / "model")
    size = sum(tensor.numel() * 4 for tensor in model.parameters())  # a shared one counts once
    assert (folder / "weights.safetensors").stat().st_size < size + 20_000
    assert max(largest_errors(cpu.load_optimized(folder), model)) <= TOLERANCE["fp32"]
    rebuilt = cpu.load_optimized(folder, rebuild=True)
    assert rebuilt.model.cls.predictions.decoder.weight is rebuilt.model.bert.embeddings.word_embeddings.weight
    assert max(largest_errors(rebuilt, model)) <= TOLERANCE["fp32"]


@pytest.mark.parametrize("rebuild", [False, True])
def test_a_model_whose_weights_are_bf16(tmp_path: Path, rebuild: bool) -> None:
    model = make_bert().to(torch.bfloat16)
    folder = by_hand("torchscript-bf16", model, make_inputs()).save(tmp_path / "model")
    loaded = cpu.load_optimized(folder, rebuild=rebuild)
    assert max(largest_errors(loaded, model)) <= TOLERANCE["bf16"]
    if rebuild:
        dtypes = {name: tensor.dtype for name, tensor in loaded.model.named_parameters()}
        assert dtypes == {name: tensor.dtype for name, tensor in model.named_parameters()}
        buffers = {name: tensor.dtype for name, tensor in loaded.model.named_buffers()}
        assert buffers == {name: tensor.dtype for name, tensor in model.named_buffers()}


@pytest.mark.parametrize("recipe", ["torchscript-fp32", "onnxruntime-fp32", "eager-fp32"])
def test_constants_among_the_inputs(tmp_path: Path, recipe: str) -> None:
    if get_recipe(recipe).why_not:
        pytest.skip(get_recipe(recipe).why_not)
    model, inputs = make_bert(), {**make_inputs(), "output_hidden_states": True}
    loaded = cpu.load_optimized(by_hand(recipe, model, inputs).save(tmp_path / "model"))
    given = make_inputs(3, 9)
    with torch.no_grad():
        wanted = model(**given, output_hidden_states=True)
    for seen in (loaded(**given), loaded(**given, output_hidden_states=True)):
        assert len(seen.hidden_states) == len(wanted.hidden_states) == 3
        for one, other in zip(seen.hidden_states, wanted.hidden_states, strict=True):
            assert (one - other).abs().max() <= TOLERANCE["fp32"] * other.abs().max()
    with pytest.raises(cpu.InputError, match="output_hidden_states"):
        loaded(**given, output_hidden_states=False)


def test_a_model_of_no_library(tmp_path: Path) -> None:
    model, inputs = Tied(), {**values(), "times": 2}
    folder = by_hand("torchscript-fp32", model, inputs).save(tmp_path / "model")
    with torch.no_grad():
        wanted = model(**values(5), times=2)["logits"]
    loaded = cpu.load_optimized(folder)
    assert loaded.config is None and torch.allclose(loaded(**values(5))["logits"], wanted, atol=1e-6)
    with pytest.raises(cpu.ArtifactError, match=r"holds a Tied, .*load_optimized\(\.\.\., model=\.\.\.\)"):
        cpu.load_optimized(folder, rebuild=True)
    other = Tied(seed=1).train()
    rebuilt = cpu.load_optimized(folder, rebuild=True, model=other)
    assert torch.allclose(rebuilt(**values(5))["logits"], wanted, atol=1e-6)
    assert rebuilt.model is other and not other.training and torch.equal(other.scale, model.scale)
    assert other.second.weight is other.first.weight


def test_a_model_of_no_library_that_stays_eager(tmp_path: Path) -> None:
    model = Tied()
    folder = by_hand("eager-fp32", model, values()).save(tmp_path / "model")
    with pytest.raises(cpu.ArtifactError, match=r"model=\.\.\."):
        cpu.load_optimized(folder)
    loaded = cpu.load_optimized(folder, model=Tied(seed=1))
    assert torch.equal(loaded(**values())["logits"], model(**values())["logits"])
    assert loaded.reason == "for a test"


def test_an_instance_of_another_class_does_not_fit(copied: Path) -> None:
    with pytest.raises(cpu.ArtifactError, match="its weights do not fit Tied"):
        cpu.load_optimized(copied, rebuild=True, model=Tied())


def test_another_version_is_named_with_ours_and_a_rebuild_helps(copied: Path) -> None:
    change_manifest(copied, versions={**read_manifest(copied)["versions"], "torch": "1.0.7"})
    with pytest.raises(cpu.ArtifactError) as caught:
        cpu.load_optimized(copied)
    for words in (str(copied), "torch 1.0.7", f"here it is {installed_versions()['torch']}", "rebuild=True"):
        assert words in str(caught.value)
    assert max(largest_errors(cpu.load_optimized(copied, rebuild=True), make_bert())) <= TOLERANCE["fp32"]


def test_a_version_that_plays_no_part_is_no_obstacle(copied: Path) -> None:
    change_manifest(copied, versions={**read_manifest(copied)["versions"], "openvino": "1.0.7"})
    assert cpu.load_optimized(copied).recipe == "torchscript-fp32"


def test_instructions_that_this_cpu_lacks_are_named(copied: Path) -> None:
    change_manifest(copied, isa=[*read_manifest(copied)["isa"], "AVX2048"])
    with pytest.raises(cpu.ArtifactError, match=r"a CPU with AVX2048, which this one lacks.*rebuild=True"):
        cpu.load_optimized(copied)
    assert cpu.load_optimized(copied, rebuild=True).receipt.verified


def test_another_cpu_with_the_same_instructions_is_a_warning(copied: Path, caplog: pytest.LogCaptureFixture) -> None:
    change_manifest(copied, cpu="Another CPU", isa=[])
    assert cpu.load_optimized(copied).recipe == "torchscript-fp32"
    assert "prepared on Another CPU" in caplog.text and "optimize()" in caplog.text


@pytest.fixture
def without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def gone(name: str) -> str:
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", gone)


@pytest.mark.parametrize("rebuild", [False, True])
def test_a_recipe_whose_package_is_gone(
    folder_of: Callable[[str], Path], request: pytest.FixtureRequest, rebuild: bool
) -> None:
    folder = folder_of("onnxruntime-fp32")
    request.getfixturevalue("without_onnxruntime")
    with pytest.raises(cpu.RecipeError if rebuild else cpu.ArtifactError) as caught:
        cpu.load_optimized(folder, rebuild=rebuild)
    words = "onnxruntime is not installed; pip install" if rebuild else "here it is missing"
    assert words in str(caught.value) and "onnxruntime" in str(caught.value)


def test_a_recipe_that_this_version_does_not_know(copied: Path) -> None:
    change_manifest(copied, recipe="quantum-fp32")
    with pytest.raises(cpu.ArtifactError, match="'quantum-fp32', which this version does not know"):
        cpu.load_optimized(copied)


def test_a_folder_of_a_trace_and_the_other_way_round(copied: Path, tmp_path: Path) -> None:
    trace = cpu.trace_model(Tied(), values()).save(tmp_path / "trace")
    assert type(cpu.load_optimized(trace)) is cpu.TracedModel
    with pytest.raises(cpu.ArtifactError, match="holds 'cpuinfer-optimized-model'"):
        cpu.TracedModel.load(copied)
    with pytest.raises(cpu.ArtifactError, match=r"is no cpuinfer-optimized-model"):
        by_hand("eager-fp32", Tied(), values()).save(trace)
    assert cpu.TracedModel.load(trace).traced


def test_an_older_one_is_replaced_as_a_whole(copied: Path) -> None:
    by_hand("eager-fp32", Tied(), values()).save(copied)
    assert cpu.load_optimized(copied, model=Tied(seed=1)).recipe == "eager-fp32"
    assert not (copied / "model.torchscript.pt").exists() and not (copied / "config.json").exists()
    assert os.listdir(copied.parent) == ["model"]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("mine")
    with pytest.raises(cpu.ArtifactError, match="thesis"):
        by_hand("eager-fp32", Tied(), values()).save(tmp_path / "thesis")
    assert os.listdir(tmp_path) == ["thesis"] and os.listdir(tmp_path / "thesis") == ["thesis.txt"]


def test_what_was_loaded_is_saved_again_if_it_has_its_weights(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(cpu.ArtifactError, match="copy that folder"):
        cpu.load_optimized(copied).save(tmp_path / "again")
    again = cpu.load_optimized(copied, rebuild=True).save(tmp_path / "again")
    assert max(largest_errors(cpu.load_optimized(again), make_bert())) <= TOLERANCE["fp32"]


def test_a_recipe_of_ones_own_cannot_be_saved(tmp_path: Path) -> None:
    recipe = cpu.Recipe("own-fp32", "for a test", lambda request: Build(lambda t: request.model(**t), runs="the model"))
    with pytest.raises(cpu.ArtifactError, match="own-fp32 is a recipe of your own"):
        by_hand(recipe, Tied(), values()).save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_model_are_caught_by_the_probe(copied: Path, tmp_path: Path) -> None:
    other = by_hand("torchscript-fp32", make_bert(seed=1), make_inputs()).save(tmp_path / "other")
    for name, rebuild in (("model.torchscript.pt", False), ("weights.safetensors", True)):
        folder = shutil.copytree(copied, tmp_path / name)
        shutil.copy(other / name, folder / name)
        list_anew(folder, name)
        with pytest.raises(cpu.ArtifactError, match="differs from the model's"):
            cpu.load_optimized(folder, rebuild=rebuild)
        # Whoever does not want the check does not get it.
        assert cpu.load_optimized(folder, rebuild=rebuild, verify=False)


def test_a_path_in_the_home_folder_and_as_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    optimized = by_hand("eager-fp32", Tied(), values())
    optimized.save("~/ein Modell")
    assert (tmp_path / "ein Modell" / "manifest.json").exists()
    assert cpu.load_optimized("~/ein Modell", model=Tied()).recipe == "eager-fp32"


def test_a_class_that_transformers_no_longer_has(copied: Path) -> None:
    manifest = read_manifest(copied)
    gone = {**manifest["model"], "class": "transformers.models.gone:GoneForQuestionAnswering"}
    change_manifest(copied, model=gone)
    assert max(largest_errors(cpu.load_optimized(copied), make_bert())) <= TOLERANCE["fp32"]
    with pytest.raises(cpu.ArtifactError, match="holds a GoneForQuestionAnswering"):
        cpu.load_optimized(copied, rebuild=True)
    rebuilt = cpu.load_optimized(copied, rebuild=True, model=make_bert(seed=1))
    assert max(largest_errors(rebuilt, make_bert())) <= TOLERANCE["fp32"]


def test_the_manifest_is_json_without_a_path_of_this_machine(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("torchscript-fp32")
    text = (folder / "manifest.json").read_text()
    assert json.loads(text)["kind"] == "cpuinfer-optimized-model" and str(folder.parent) not in text
