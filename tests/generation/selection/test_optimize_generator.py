"""The recipe that writes fastest and keeps the answers is chosen, remembered, saved and loaded."""

from __future__ import annotations

import logging

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.generation.selection import search
from tests.generation.models import make_language_model, make_prompts
from tests.generation.selection.writers import WRITERS, make_slow_model

OWN = ("quick-fp32", "slower-fp32", "wrong-fp32", "crashing-fp32", "child-fp32")


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CPUINFER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def optimized(recipes, **settings):
    model = settings.pop("model", None) or make_slow_model()
    settings = {"new_tokens": 4, "budget_s": 120, "progress": False, **settings}
    return cpu.optimize_generator(model, make_prompts(2, 9), recipes=recipes, **settings)


def test_the_fastest_is_chosen_and_writes_what_the_model_writes(caplog):
    with caplog.at_level(logging.WARNING, logger="cpuinfer_helpers"):
        generator = optimized([WRITERS[name] for name in OWN])
    assert generator.recipe == "quick-fp32" and generator.reason is None and generator.receipt.verified
    status = {name: str(row.status) for name, row in generator.comparison.rows.items()}
    assert status["slower-fp32"].startswith("slower: the fastest of its first texts took")
    assert status["wrong-fp32"].startswith("fell back: it does not give the model's logits")
    assert status["crashing-fp32"].startswith("crashed: SIGABRT")
    assert "crashing-fp32: crashed" in caplog.text
    prompts = make_prompts(3, 7)
    settings = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(generator.generate(**prompts, **settings), make_slow_model().generate(**prompts, **settings))


def test_what_fails_in_this_process_gives_way_to_the_next_best():
    generator = optimized([WRITERS["child-fp32"]])
    assert generator.recipe == "eager-fp32" and "could be measured" in generator.reason
    row = generator.comparison["child-fp32"]
    assert str(row.status).startswith("fell back: in the process that asked for it: ") and row.timing is None


def test_the_eager_model_stays_where_nothing_is_faster():
    generator = optimized([WRITERS["slower-fp32"]])
    assert generator.recipe == "eager-fp32" and generator.reason.startswith(
        "none of 1 recipes could be measured (slower"
    )
    prompts = make_prompts(1, 5, padding=0)
    assert generator.generate(**prompts, max_new_tokens=3, do_sample=False).shape == (1, 8)


def test_a_budget_that_is_used_up_is_told():
    generator = optimized([WRITERS["quick-fp32"]], budget_s=0.5)
    assert generator.recipe == "eager-fp32"
    assert str(generator.comparison["quick-fp32"].status).startswith("not tried")


@pytest.fixture(scope="module")
def chosen():
    """A choice among recipes of the package, the only ones that are remembered."""
    model = make_slow_model()
    generator = cpu.optimize_generator(
        model, make_prompts(2, 9), recipes=["torchscript-fp32"], new_tokens=4, budget_s=120, progress=False
    )
    return model, generator


def test_a_trace_of_a_model_that_sleeps_does_not_sleep(chosen):
    assert chosen[1].recipe == "torchscript-fp32" and chosen[1].comparison.best().speedup.low > 1


def test_the_choice_is_remembered_and_holds_for_other_weights(chosen, monkeypatch):
    def refused(*_):
        raise AssertionError("nothing is to be measured again")

    monkeypatch.setattr(search.GenerationSearch, "run", refused)
    again = optimized(["torchscript-fp32"], model=make_slow_model(seed=1))
    assert again.recipe == "torchscript-fp32" and again.comparison == chosen[1].comparison and again.receipt.verified
    with pytest.raises(AssertionError, match="measured again"):
        optimized(["torchscript-fp32"], new_tokens=9)
    with pytest.raises(AssertionError, match="measured again"):
        optimized(["torchscript-fp32"], refresh=True)


def test_it_is_saved_with_all_that_was_tried_and_loaded(chosen, tmp_path):
    model, generator = chosen
    loaded = cpu.load_optimized(generator.save(tmp_path / "writer", model=model))
    assert loaded.comparison == generator.comparison and loaded.recipe == "torchscript-fp32"
    damaged = tmp_path / "writer" / "comparison.json"
    damaged.write_text(damaged.read_text().replace("torchscript-fp32", "torchscript-fp33"))
    with pytest.raises(cpu.ArtifactError):
        cpu.load_optimized(tmp_path / "writer")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precisions": ["fp8"]}, "precisions holds 'fp8'"),
        ({"precisions": "fp32"}, "precisions is 'fp32'"),
        ({"budget_s": 0}, "budget_s is 0"),
        ({"new_tokens": 1}, "new_tokens is 1"),
        ({"recipes": ["no-such"]}, "no recipe 'no-such'"),
    ],
)
def test_requests_that_cannot_be_met_are_named(settings, message):
    with pytest.raises(cpu.InputError, match=message):
        cpu.optimize_generator(make_language_model("llama"), make_prompts(), **settings)


def test_fewer_bits_than_16_are_tried_only_where_they_are_asked_for(monkeypatch):
    tried = []

    def seen(self, recipes):
        tried.append([recipe.name for recipe in recipes])
        raise cpu.RecipeError("seen")

    monkeypatch.setattr(search.GenerationSearch, "run", seen)
    for settings in ({}, {"precisions": ["int4"]}, {"recipes": ["torchscript-int8"]}):
        with pytest.raises(cpu.RecipeError, match="seen"):
            cpu.optimize_generator(make_language_model("llama"), make_prompts(), refresh=True, **settings)
    assert "torchscript-fp16w" in tried[0] and not any("int" in name for name in tried[0])
    assert all(name == "eager-fp32" or "int4" in name for name in tried[1]) and len(tried[1]) > 1
    assert tried[2] == ["eager-fp32", "torchscript-int8"]
