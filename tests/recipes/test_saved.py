"""What any recipe has prepared is saved and loaded by itself: the same answers, or a clear reason why not."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.recipes import Build
from tests.conftest import make_bert, make_inputs
from tests.optimize.saving_cases import TOLERANCE, by_hand, largest_errors
from tests.tracing.test_each_shape import LengthBakedIn

RECIPES = tuple(
    f"{backend}-fp32"
    for backend in ("eager", "bettertransformer", "torchscript", "onednn-graph", "openvino", "onnxruntime")
)


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_a_recipe_has_prepared_is_saved_and_loaded(recipe, tmp_path):
    model = make_bert()
    prepared = cpu.prepare(recipe, model, make_inputs(), on_failure="raise")
    folder = prepared.save(tmp_path / "model")
    loaded = cpu.load_optimized(folder)
    assert type(loaded) is cpu.PreparedModel and loaded.prepared and loaded.recipe == recipe
    assert max(largest_errors(loaded, model)) < TOLERANCE["fp32"]
    # Saved again in the same place: replaced, not refused.
    prepared.save(folder)


@pytest.mark.parametrize("recipe", ["torchscript-fp32", "openvino-fp32", "bettertransformer-fp32"])
def test_it_keeps_its_sizes_receipt_and_tolerance(recipe, tmp_path):
    prepared = cpu.prepare(recipe, make_bert(), make_inputs(), tolerance=0.01, on_failure="raise")
    # The model is gone with the line that made it.
    loaded = cpu.load_optimized(prepared.save(tmp_path / "model", model=make_bert()))
    assert loaded.sizes == prepared.sizes and loaded.tolerance == 0.01
    assert loaded.receipt.checks == prepared.receipt.checks and loaded.input_names == prepared.input_names
    with pytest.raises(cpu.InputError, match="the answers were compared with the model's at"):
        loaded(**{name: tensor.repeat(1, 100) for name, tensor in make_inputs().items()})


@pytest.mark.parametrize("recipe", ["torchscript-fp32", "eager-fp32"])
def test_it_is_saved_and_loaded_in_inference_mode(recipe, tmp_path):
    model = make_bert()
    prepared = cpu.prepare(recipe, model, make_inputs(), on_failure="raise")
    with torch.inference_mode():
        loaded = cpu.load_optimized(prepared.save(tmp_path / "model"))
    assert max(largest_errors(loaded, model)) < TOLERANCE["fp32"]


def test_the_eager_model_is_not_kept_in_memory_for_it(tmp_path):
    model = make_bert()
    gone = weakref.ref(model)
    prepared = cpu.prepare("torchscript-fp32", model, make_inputs(), on_failure="raise")
    del model
    gc.collect()
    assert gone() is None
    with pytest.raises(cpu.ArtifactError, match=r"not in memory any more.*save\(folder, model=model\)"):
        prepared.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_has_changed_since_is_not_saved(tmp_path):
    model = make_bert()
    prepared = cpu.prepare("eager-fp32", model, make_inputs())
    before = sorted(prepared.save(tmp_path / "model").iterdir())
    with torch.no_grad():
        model.qa_outputs.weight.mul_(2)
    with pytest.raises(cpu.ArtifactError, match=r"the model gives other answers .*prepare it anew"):
        prepared.save(tmp_path / "model")
    assert sorted((tmp_path / "model").iterdir()) == before


def test_a_fallback_is_not_saved(tmp_path):
    class Refusing(torch.nn.Module):
        def forward(self, x):
            if torch.jit.is_tracing():
                raise RuntimeError("not in a trace")
            return {"y": x + 1}

    model = Refusing().eval()
    prepared = cpu.prepare("torchscript-fp32", model, {"x": torch.ones(2, 3)})
    with pytest.raises(cpu.ArtifactError, match=r"nothing was prepared.*not in a trace"):
        prepared.save(tmp_path / "model")


def test_what_is_made_for_each_shape_is_made_anew_when_it_is_loaded(tmp_path):
    model = LengthBakedIn().eval()
    inputs = {name: make_inputs()[name] for name in ("input_ids", "attention_mask")}
    prepared = cpu.prepare("torchscript-fp32", model, inputs, each_shape=True)
    folder = prepared.save(tmp_path / "model")
    loaded = cpu.load_optimized(folder, model=LengthBakedIn().eval())
    assert type(loaded) is type(prepared)
    longer = {name: make_inputs(3, 21)[name] for name in inputs}
    torch.testing.assert_close(loaded(**longer)["logits"], model(**longer)["logits"], atol=1e-5, rtol=1e-5)


def test_a_recipe_of_your_own_is_not_saved(tmp_path):
    recipe = cpu.Recipe(
        "mine-fp32", "the model", lambda request: Build(answer=lambda given: request.model(**given), runs="it")
    )
    model = make_bert()
    prepared = cpu.prepare(recipe, model, make_inputs(), on_failure="raise")
    with pytest.raises(cpu.ArtifactError, match="a recipe of your own"):
        prepared.save(tmp_path / "model")


def test_one_function_loads_every_kind(tmp_path):
    model, inputs = make_bert(), make_inputs()
    traced = cpu.trace_model(model, inputs).save(tmp_path / "traced")
    optimized = by_hand("torchscript-fp32", model, inputs).save(tmp_path / "optimized")
    prepared = cpu.prepare("torchscript-fp32", model, inputs).save(tmp_path / "prepared")
    kinds = [type(cpu.load_optimized(folder)) for folder in (traced, optimized, prepared)]
    assert kinds == [cpu.TracedModel, cpu.OptimizedModel, cpu.PreparedModel]
    with pytest.raises(cpu.InputError, match="rebuild has no meaning"):
        cpu.load_optimized(traced, rebuild=True)
    for folder in (optimized, prepared):
        with pytest.raises(cpu.ArtifactError, match="not 'cpuinfer-traced-model'"):
            cpu.TracedModel.load(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(cpu.ArtifactError, match=r"has no manifest\.json: it is not a folder that save\(\) wrote"):
        cpu.load_optimized(tmp_path / "empty")


@pytest.mark.parametrize(
    ("manifest", "what"),
    [("{}", "does not say what it holds"), ('{"kind": "a cake"}', "holds 'a cake', not a model that was saved")],
)
def test_a_folder_of_no_kind_says_so(tmp_path, manifest, what):
    (tmp_path / "manifest.json").write_text(manifest, encoding="utf-8")
    with pytest.raises(cpu.ArtifactError, match=f"{what}; give a folder that save"):
        cpu.load_optimized(tmp_path)


def test_it_is_rebuilt_from_its_weights_and_verified(tmp_path):
    model = make_bert()
    folder = cpu.prepare("openvino-fp32", model, make_inputs(), on_failure="raise").save(tmp_path / "model")
    loaded = cpu.load_optimized(folder, rebuild=True)
    assert loaded.receipt.verified and max(largest_errors(loaded, model)) < TOLERANCE["fp32"]


def test_a_machine_without_enough_memory_is_not_told_that_the_folder_is_damaged(tmp_path, monkeypatch):
    from cpuinfer_helpers.recipes import loading

    folder = cpu.prepare("torchscript-fp32", make_bert(), make_inputs(), on_failure="raise").save(
        tmp_path / "model", model=make_bert()
    )

    def no_memory(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(loading.PreparedModel, "restored", no_memory)
    with pytest.raises(cpu.ArtifactError, match=r"not enough memory to load .* the folder is whole"):
        cpu.load_optimized(folder)
