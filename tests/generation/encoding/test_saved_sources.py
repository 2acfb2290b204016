"""A generator with an encoder that was saved writes the same when it is loaded, and is measured like others."""

from __future__ import annotations

import json

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.generation.measuring import measure_generation
from tests.conftest import seen_in_child
from tests.generation.encoder_models import make_encoder_model, make_sources

SETTINGS = {"max_new_tokens": 8, "do_sample": False}
# Every recipe once, and each kind of encoder.
SAVED = [
    ("t5", "eager-fp32"),
    ("t5", "torchscript-fp32"),
    ("t5", "torchscript-int8"),
    ("bart", "eager-bf16"),
    ("bart", "torchscript-fp16w"),
    ("whisper", "torchscript-fp16w"),
    ("whisper", "torchscript-bf16"),
]
SMALL = {"t5": {"initializer_factor": 1.0}, "bart": {"init_std": 0.1}, "whisper": {"init_std": 0.1}}


@pytest.mark.parametrize(("name", "recipe"), SAVED)
def test_what_was_saved_writes_the_same_when_it_is_loaded(tmp_path, name, recipe):
    model, sources = make_encoder_model(name, **SMALL[name]), make_sources(name)
    generator = cpu.prepare_generator(recipe, model, sources, on_failure="raise")
    tokens = generator.generate(**sources, **SETTINGS)
    loaded = cpu.load_optimized(generator.save(tmp_path / "saved here"))
    assert loaded.prepared and loaded.recipe == recipe and loaded.receipt.verified and loaded.reads_source
    assert torch.equal(loaded.generate(**sources, **SETTINGS), tokens)
    other = make_sources(name, 3, 17, seed=1)
    assert torch.equal(
        loaded.generate(**other, num_beams=2, **SETTINGS), generator.generate(**other, num_beams=2, **SETTINGS)
    )
    seen = [(one.build.weights, one.build.weight_bytes, one.build.source_bytes) for one in (loaded, generator)]
    assert seen[0] == seen[1] and isinstance(loaded.model, type(model))


def test_another_process_loads_it_without_the_model(tmp_path):
    model, sources = make_encoder_model("whisper", **SMALL["whisper"]), make_sources("whisper")
    generator = cpu.prepare_generator("torchscript-fp32", model, sources, on_failure="raise")
    folder = generator.save(tmp_path / "saved")
    code = (
        "import json, cpuinfer_helpers as cpu; from tests.generation.encoder_models import make_sources; "
        f"tokens = cpu.load_optimized({str(folder)!r}).generate(**make_sources('whisper'), **{SETTINGS!r}); "
        "print('SEEN', json.dumps(tokens.tolist()))"
    )
    assert seen_in_child("-c", code) == generator.generate(**sources, **SETTINGS).tolist()


def test_a_model_that_has_changed_is_not_saved(tmp_path):
    model = make_encoder_model("t5")
    generator = cpu.prepare_generator("torchscript-fp32", model, make_sources("t5"), on_failure="raise")
    with torch.no_grad():
        model.encoder.block[0].layer[1].DenseReluDense.wo.weight.mul_(-1)
    with pytest.raises(cpu.ArtifactError, match="changed since"):
        generator.save(tmp_path / "saved")


def test_beginnings_that_may_not_be_padded_may_not_be_padded_after_loading(tmp_path):
    generator = cpu.prepare_generator("eager-fp32", make_encoder_model("t5"), make_sources("t5"), on_failure="raise")
    model = make_encoder_model("t5")
    generator.build.step.takes_padding = False
    folder = generator.save(tmp_path / "saved", model=model)
    assert cpu.load_optimized(folder).build.step.takes_padding is False
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("takes_padding")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert cpu.load_optimized(folder).build.step.takes_padding is True


@pytest.mark.parametrize("name", ["bart", "whisper"])
def test_they_are_measured_by_what_a_token_reads(name):
    # Settings of the model's own, such as beams and an early end, play no part.
    model, sources = make_encoder_model(name), make_sources(name)
    model.generation_config.num_beams, model.generation_config.forced_eos_token_id = 3, 2
    generators = {
        recipe: cpu.prepare_generator(recipe, model, sources) for recipe in ("eager-fp32", "torchscript-fp32")
    }
    timings = measure_generation(generators, sources, new_tokens=4, turns=2, progress=False)
    timing = timings["torchscript-fp32"]
    length, places = (11, 11) if name == "bart" else (64, 32)
    assert (timing.rows, timing.prompt_tokens, timing.same_tokens) == (2, length, 8)
    build = generators["torchscript-fp32"].build
    # Of two rows: what is kept of the source, of the first token, and of half of the new ones.
    kept = 2 * (places * build.source_bytes + (1 + 2) * build.token_bytes)
    assert timing.bytes_read == build.weight_bytes + kept and len(timing.turns[0].step) == 3
    assert generators["torchscript-fp32"].generation_config.num_beams == 3


def test_recipes_are_compared_for_them_too():
    model, sources = make_encoder_model("t5"), make_sources("t5")
    compared = cpu.compare_generators(
        model, sources, ["torchscript-fp32", "compile-fp32"], new_tokens=4, turns=2, progress=False
    )
    assert compared["torchscript-fp32"].timing.same_tokens == 8, str(compared)
    assert compared["compile-fp32"].timing is None
