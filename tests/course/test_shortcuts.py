"""What fewer bits cost the answers, and how drafts are counted: what notebook 11 looks into."""

from __future__ import annotations

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.course.shortcuts import Drafts, Loss, Losses, what_is_lost, write_watched
from tests.generation.models import make_language_model, make_prompts


@pytest.fixture(scope="module")
def generator():
    return cpu.prepare_generator("torchscript-fp32", make_language_model("llama"), make_prompts(), verify=False)


def test_without_drafts_every_token_takes_a_step(generator):
    tokens, drafts = write_watched(
        generator, {"input_ids": torch.tensor([[5, 6, 7]])}, max_new_tokens=6, min_new_tokens=6
    )
    assert len(tokens) == 6 and drafts == Drafts(new=6, steps=6, drafted=0) and drafts.accepted == 0


def test_drafts_that_are_accepted_save_steps(generator):
    prompt = {"input_ids": torch.tensor([[5, 6, 7]])}
    settings = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False}
    plain, _ = write_watched(generator, prompt, **settings)
    repeated = {"input_ids": torch.cat([prompt["input_ids"][0], plain, prompt["input_ids"][0]])[None]}
    expected, without = write_watched(generator, repeated, **settings)
    tokens, drafts = write_watched(generator, repeated, **settings, prompt_lookup_num_tokens=5)
    assert torch.equal(tokens, expected) and without.steps == 40
    assert drafts.drafted >= drafts.accepted == 40 - drafts.steps
    assert not hasattr(generator.build.step, "__dict__") or "feed" not in vars(generator.build.step)


def test_numbers_of_several_texts_are_added():
    both = Drafts(10, 4, 9) + Drafts(5, 5, 3)
    assert both == Drafts(15, 9, 12) and both.accepted == 6 and both.table().rows == (("15", "9", "12", "6"),)


def test_one_prompt_by_something_prepared(generator):
    with pytest.raises(cpu.InputError, match="2 prompts"):
        write_watched(generator, make_prompts())
    fallen = cpu.prepare_generator("torchscript-fp32", make_language_model("bloom"), make_prompts())
    with pytest.raises(cpu.InputError, match="NOT prepared"):
        write_watched(fallen, {"input_ids": torch.tensor([[5]])})


def test_answers_of_each_recipe_are_scored_and_refused_ones_too():
    task = cpu.load_task("text-generation")
    recipes = ("torchscript-fp16w", "torchscript-int8")
    losses = what_is_lost(task, recipes, limit=6, texts=2, new_tokens=4)
    assert list(losses.rows) == ["eager-fp32", *recipes]
    own = losses.rows["eager-fp32"]
    assert own.reason is None and own.same == own.written == 8 and own.error < 1e-5
    assert own.metrics == pytest.approx(task.evaluate(limit=6).metrics, rel=1e-4)
    assert losses.rows["torchscript-int8"].error > 100 * losses.rows["torchscript-fp16w"].error


def test_the_table_says_what_became_of_each():
    rows = {"eager-fp32": Loss(None, {"perplexity": 20.0}, 1e-6, 8, 8), "other": Loss("no library", {})}
    far = Losses({**rows, "far": Loss("too far", {"perplexity": 21.0}, 1.0, 0, 8)}).table().rows[-1]
    assert far == ("far", "21.00", "1.0e+00", "0 of 8", "refused: too far")
    table = Losses(rows).table()
    assert table.rows == (
        ("eager-fp32", "20.00", "1.0e-06", "8 of 8", "kept"),
        ("other", "", "", "", "cannot run here: no library"),
    )
