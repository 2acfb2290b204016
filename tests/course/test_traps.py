"""What the package says of recipes that go wrong without a word."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.course import traps
from cpuinfer_helpers.generation.closeness import closeness
from cpuinfer_helpers.generation.stateful_seen import cache_dtype
from cpuinfer_helpers.generation.verification import eager_logits
from tests.generation.models import make_language_model, make_prompts

openvino_only = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")


def test_a_recipe_that_finds_layers_by_their_class_is_refused():
    model = make_language_model("gpt2")
    with pytest.raises(cpu.RecipeError, match="only 1 of 9 linear layers were converted"):
        cpu.prepare_generator(traps.LINEARS_ONLY, model, make_prompts(), on_failure="raise")
    assert isinstance(model.lm_head, torch.nn.Linear)


def test_the_same_recipe_converts_all_layers_of_a_model_without_conv1d():
    writer = cpu.prepare_generator(traps.LINEARS_ONLY, make_language_model("llama"), make_prompts(), verify=False)
    assert writer.prepared and writer.build.converted == writer.build.layers == 15


@openvino_only
def test_openvino_keeps_8_bits_unless_it_is_told():
    model, ids = make_language_model("llama"), make_prompts(1, 24)["input_ids"]
    steps = traps.openvino_steps(model)
    assert {name: cache_dtype(step) for name, step in steps.items()} == {
        traps.AS_IT_COMES: "8 bits or fewer",
        traps.TOLD: "float32",
    }
    own = eager_logits(model, ids, torch.ones_like(ids))[0]
    errors = {name: closeness(own, traps.logits_in_pieces(step, ids)[0], 1.0).worst for name, step in steps.items()}
    assert errors[traps.TOLD] < 1e-4 < errors[traps.AS_IT_COMES]


@openvino_only
def test_openvino_as_it_comes_is_refused_under_a_label_of_fp32():
    with pytest.raises(cpu.RecipeError, match="does not give the model's logits"):
        cpu.prepare_generator(
            traps.OPENVINO_AS_IT_COMES, make_language_model("llama"), make_prompts(2, 24), on_failure="raise"
        )


def test_padding_on_the_right_changes_the_shorter_texts_only():
    task = cpu.load_task("text-generation")
    prompts = [one.prompt for one in task.dataset if one.copied][:2]
    texts = {
        side: traps.continued(task.trained_model, task.tokenizer, prompts, side, do_sample=False, max_new_tokens=12)
        for side in (None, "left", "right")
    }
    assert texts[None] == texts["left"]
    assert texts["right"][0] != texts["left"][0] and texts["right"][1] == texts["left"][1]
    mask = traps.padded(task.tokenizer, prompts, "right")["attention_mask"]
    assert mask[0, -1] == 0 and bool(mask[1].all())
