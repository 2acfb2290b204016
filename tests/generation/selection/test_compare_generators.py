"""Recipes of text generation side by side: each in its own process, and whatever becomes of one is told in its row."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.generation.selection import GenerationComparison
from tests.generation.models import make_language_model, make_prompts
from tests.generation.selection.writers import SECONDS, WRITERS, make_slow_model

NEW = 5


@pytest.fixture(scope="module")
def comparison() -> GenerationComparison:
    recipes = [WRITERS[name] for name in ("quick-fp32", "slower-fp32", "wrong-fp32", "crashing-fp32", "lacking-fp32")]
    return cpu.compare_generators(make_slow_model(), make_prompts(2, 12), recipes, new_tokens=NEW, progress=False)


@pytest.mark.parametrize(
    ("recipe", "status"),
    [
        ("eager-fp32", "successful"),
        ("quick-fp32", "successful"),
        ("slower-fp32", "successful"),
        ("wrong-fp32", "fell back: it does not give the model's logits: padding on the left"),
        ("crashing-fp32", "crashed: SIGABRT"),
        ("lacking-fp32", "lacks: no-such-distribution is not installed"),
    ],
)
def test_each_recipe_has_its_row(comparison, recipe, status):
    row = comparison[recipe]
    assert str(row.status).startswith(status)
    assert (row.timing is not None) == (status == "successful")


def test_what_sleeps_less_is_seen_to_be_faster(comparison):
    assert comparison["quick-fp32"].verdict == "faster" and comparison["slower-fp32"].verdict == "slower"
    assert comparison.best().recipe == "quick-fp32"
    # Each token takes at least the sleep of one call.
    assert comparison.reference.timing.per_token > SECONDS


def test_a_row_holds_whole_texts_and_what_the_process_held(comparison):
    row = comparison["quick-fp32"]
    assert len(row.timing.turns) == 6 and all(len(turn.tokens) == NEW - 1 for turn in row.timing.turns)
    assert row.timing.same_tokens == 2 * NEW and row.timing.bandwidth == comparison.bandwidth > 0
    assert 0 < row.resident_bytes < row.peak_bytes and row.weight_bytes > 0
    assert row.receipt.verified and row.max_error < 1e-4


def test_tables_frame_and_costs_hold_every_recipe(comparison):
    shown = str(comparison)
    assert all(name in shown for name in comparison) and "GB/s" in shown
    assert list(comparison.to_frame().index) == list(comparison)
    costs = comparison.cost(0.5)
    assert [row[0] for row in costs.rows] == ["eager-fp32", "quick-fp32", "slower-fp32"]
    whole = comparison.reference.timing.whole.median
    assert float(costs.rows[0][1]) == pytest.approx(2 * NEW / whole, abs=0.05)
    assert comparison.plot() is not None


def test_it_is_written_and_read_again(comparison, tmp_path):
    comparison.save(tmp_path / "there" / "comparison.json")
    assert GenerationComparison.load(tmp_path / "there" / "comparison.json") == comparison


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["rows"].pop("eager-fp32"), "no row for eager-fp32"),
        (lambda data: data["rows"]["quick-fp32"]["timing"].update(turns=[]), "has written nothing"),
        (lambda data: data["rows"]["quick-fp32"]["timing"]["turns"][0].update(first_token=-1.0), "not positive"),
        (lambda data: data["rows"]["quick-fp32"]["speedup"].update(ratio=-1.0), "speed-up"),
        (lambda data: data.update(new_tokens=0), "new_tokens is 0"),
        (lambda data: data.update(kind="cpuinfer comparison"), "not a comparison"),
        (lambda data: data.update(format_version=99), "format 99"),
    ],
)
def test_a_damaged_file_is_refused(comparison, tmp_path, change, message):
    path = tmp_path / "comparison.json"
    comparison.save(path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(cpu.ArtifactError, match=message):
        GenerationComparison.load(path)


def test_where_memory_ends_recipes_write_in_groups(monkeypatch):
    from cpuinfer_helpers.processes.session import Session

    monkeypatch.setattr(Session, "has_room_for", lambda self, recipe: len(self._children) < 2)
    found = cpu.compare_generators(
        make_slow_model(),
        make_prompts(1, 6, padding=0),
        [WRITERS["quick-fp32"], WRITERS["slower-fp32"]],
        new_tokens=2,
        turns=2,
        verify=False,
        measure_memory=False,
        progress=False,
    )
    assert [row.group for row in found.rows.values()] == [1, 1, 2] and "2 groups" in str(found)
    assert found.bandwidth is None and found["slower-fp32"].verdict != "faster"


def test_perplexity_is_told_for_every_precision_where_texts_are_given():
    texts = torch.randint(3, 200, (2, 40), generator=torch.Generator().manual_seed(0))
    found = cpu.compare_generators(
        make_language_model("llama"),
        make_prompts(2, 9),
        ["torchscript-fp16w", "torchscript-int8"],
        new_tokens=2,
        turns=1,
        held_out=texts,
        measure_memory=False,
        progress=False,
    )
    for name in ("torchscript-fp16w", "torchscript-int8"):
        assert abs(found[name].more_perplexity) < 0.01
    assert found.reference.more_perplexity is None
    assert [row[0] for row in found.answers().rows] == list(found)


def test_a_fallback_is_the_reference_too_where_no_step_can_be_made():
    """Bloom keeps no cache that a step of ours could be given on every version; its own generate() still writes."""
    model = make_language_model("bloom")
    found = cpu.compare_generators(
        model, make_prompts(1, 6, padding=0), [], new_tokens=3, turns=2, measure_memory=False, progress=False
    )
    assert found.reference.successful and found.reference.timing.same_tokens == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recipes": ["no-such"]}, "no recipe 'no-such'"),
        ({"recipes": "torchscript-fp32"}, "recipes is the single"),
        ({"recipes": ["torchscript-fp32"] * 2}, "more than once"),
        ({"recipes": [3]}, "holds a int"),
        ({"recipes": [dataclasses.replace(WRITERS["quick-fp32"], name="eager-fp32")]}, "rename it"),
        ({"new_tokens": 1}, "new_tokens is 1"),
        ({"turns": 0}, "turns is 0"),
        ({"threads": 0}, "threads"),
        ({"timeout_s": -1}, "timeout_s is -1"),
    ],
)
def test_requests_that_cannot_be_met_are_named(settings, message):
    with pytest.raises(cpu.InputError, match=message):
        cpu.compare_generators(make_language_model("llama"), make_prompts(), **settings)


def test_a_model_that_writes_nothing_is_named():
    with pytest.raises(cpu.InputError, match="writes no text"):
        cpu.compare_generators(torch.nn.Linear(2, 2), make_prompts())
