"""torch.compile for single tokens: two graphs, made while it is prepared, do for every text."""

from __future__ import annotations

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.generation.registry import generation_recipe
from tests.generation.models import make_language_model, make_prompts

WHY_NOT = generation_recipe("compile-fp32").why_not

pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=f"{WHY_NOT}")


def graphs() -> int:
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def test_two_graphs_write_every_text_and_are_made_anew_when_loaded(tmp_path):
    model = make_language_model("llama", num_hidden_layers=1)
    generator = cpu.prepare_generator("compile-fp32", model, make_prompts())
    assert generator.prepared and generator.receipt.verified, generator.reason
    assert generator.receipt.evidence["graphs compiled"] == generator.receipt.evidence["graphs frozen"] == "2"
    assert generator.receipt.evidence["graph breaks"] == "0"
    made = graphs()
    # One row, several, and past where the room ends: nothing is compiled in the middle of a text.
    for prompts, new in ((make_prompts(1, 1, padding=0), 70), (make_prompts(3, 9), 5)):
        settings = {"max_new_tokens": new, "do_sample": False, "eos_token_id": None}
        assert torch.equal(generator.generate(**prompts, **settings), model.generate(**prompts, **settings))
    assert graphs() == made
    loaded = cpu.load_optimized(generator.save(tmp_path / "writer", model=model))
    prompts = make_prompts(2, 5)
    settings = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(loaded.generate(**prompts, **settings), model.generate(**prompts, **settings))


def test_weights_of_fewer_bits_are_no_fp32():
    model = make_language_model("llama").to(torch.bfloat16)
    assert "call model.float() first" in cpu.prepare_generator("compile-fp32", model, make_prompts()).reason
