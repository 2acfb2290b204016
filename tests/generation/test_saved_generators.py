"""A generator that was saved writes the same when it is loaded, and a damaged folder is an error of ours."""

from __future__ import annotations

import json

import pytest
import torch

import cpuinfer_helpers as cpu
from tests.conftest import seen_in_child
from tests.generation.models import make_language_model, make_prompts

RECIPES = ("eager-fp32", "eager-bf16", "torchscript-fp32", "torchscript-fp16w", "torchscript-bf16", "torchscript-int8")


def save(folder, recipe="torchscript-fp16w", name="llama"):
    """A folder, and what the generator had written before it was saved."""
    model, prompts = make_language_model(name), make_prompts()
    generator = cpu.prepare_generator(recipe, model, prompts, on_failure="raise")
    tokens = generator.generate(**prompts, max_new_tokens=8, do_sample=False)
    return generator.save(folder), tokens


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_was_saved_writes_the_same_when_it_is_loaded(tmp_path, recipe, name):
    folder, tokens = save(tmp_path / "saved here", recipe, name)
    loaded = cpu.load_optimized(folder)
    assert loaded.prepared and loaded.recipe == recipe and loaded.receipt.verified
    assert torch.equal(loaded.generate(**make_prompts(), max_new_tokens=8, do_sample=False), tokens)
    assert loaded.build.weights == cpu.load_optimized(folder, verify=False).build.weights


def test_another_process_loads_it_without_the_model(tmp_path):
    folder, tokens = save(tmp_path / "saved")
    code = (
        "import json, cpuinfer_helpers as cpu; from tests.generation.models import make_prompts; "
        f"tokens = cpu.load_optimized({str(folder)!r}).generate(**make_prompts(), max_new_tokens=8, do_sample=False); "
        "print('SEEN', json.dumps(tokens.tolist()))"
    )
    assert seen_in_child("-c", code) == tokens.tolist()


@pytest.mark.parametrize(("recipe", "share"), [("torchscript-fp16w", 0.55), ("torchscript-int8", 0.4)])
def test_weights_are_saved_in_as_few_bits_as_they_are_stored_in(tmp_path, recipe, share):
    sizes = {"hidden_size": 128, "intermediate_size": 512, "vocab_size": 1000}
    model = make_language_model("llama", **sizes)
    folder = cpu.prepare_generator(recipe, model, make_prompts(), on_failure="raise").save(tmp_path / "saved")
    original = sum(p.numel() * p.element_size() for p in model.parameters())
    assert (folder / "weights.safetensors").stat().st_size < share * original


def test_tied_weights_stay_tied(tmp_path):
    model = make_language_model("llama", tie_word_embeddings=True)
    generator = cpu.prepare_generator("torchscript-fp32", model, make_prompts(), on_failure="raise")
    loaded = cpu.load_optimized(generator.save(tmp_path / "saved"))
    assert torch.equal(loaded(**make_prompts()).logits, generator(**make_prompts()).logits)
    assert loaded.build.weight_bytes == generator.build.weight_bytes


def test_a_model_that_has_changed_is_not_saved(tmp_path):
    model, prompts = make_language_model("llama"), make_prompts()
    generator = cpu.prepare_generator("torchscript-fp32", model, prompts)
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)
    with pytest.raises(cpu.ArtifactError, match="changed since"):
        generator.save(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_gone_can_be_given(tmp_path):
    model, prompts = make_language_model("llama"), make_prompts()
    generator = cpu.prepare_generator("torchscript-fp32", model, prompts)
    del model
    with pytest.raises(cpu.ArtifactError, match="not in memory any more"):
        generator.save(tmp_path / "saved")
    assert cpu.load_optimized(generator.save(tmp_path / "saved", model=make_language_model("llama"))).prepared


def test_a_fallback_is_not_saved(tmp_path):
    generator = cpu.prepare_generator("torchscript-fp32", make_language_model("bloom"), make_prompts())
    with pytest.raises(cpu.ArtifactError, match="nothing was prepared"):
        generator.save(tmp_path / "saved")


def change(folder, **entries):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_other_logits_than_those_saved_are_refused(tmp_path):
    from cpuinfer_helpers.saving.folders import sha256
    from cpuinfer_helpers.saving.tensors import read_named_tensors, write_named_tensors

    folder, _ = save(tmp_path / "saved")
    probe = read_named_tensors(folder / "probe.safetensors")
    write_named_tensors({**probe, "logits": probe["logits"].flip(-1)}, folder / "probe.safetensors")
    files = json.loads((folder / "manifest.json").read_text())["files"]
    change(folder, files={**files, "probe.safetensors": sha256(folder / "probe.safetensors")})
    with pytest.raises(cpu.ArtifactError, match="off those that were saved"):
        cpu.load_optimized(folder)


@pytest.mark.parametrize(
    "entries",
    [
        {"recipe": "torchscript-fp7"},
        {"limit": -1},
        {"limit": 10**400},
        {"tolerance": "NaN"},
        {"model": {"class": "os:system", "config_class": "os:system", "attention": None}},
        {"details": {}},
        {
            "details": {
                "layout": {"keys": [[1, 1]], "values": []},
                "weights": {"replaced": {"lm_head": "os"}, "same": {}},
            }
        },
        {"receipt": {"requested": 1}},
    ],
)
def test_a_changed_manifest_is_an_artifact_error(tmp_path, entries):
    folder, _ = save(tmp_path / "saved")
    change(folder, **entries)
    with pytest.raises(cpu.ArtifactError):
        cpu.load_optimized(folder)


def test_a_configuration_that_asks_for_more_than_its_weights_is_refused(tmp_path):
    from cpuinfer_helpers.saving.folders import sha256

    folder, _ = save(tmp_path / "saved")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 10**6, "intermediate_size": 10**7}))
    files = json.loads((folder / "manifest.json").read_text())["files"]
    change(folder, files={**files, "config.json": sha256(folder / "config.json")})
    with pytest.raises(cpu.ArtifactError):
        cpu.load_optimized(folder)
