"""What cannot be converted, or asked of a converted model, is refused with the reason."""

from __future__ import annotations

import copy

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.errors import InputError, RecipeError
from tests.bettertransformer.families import AUDIO, TEXT, make, make_wide_bert
from tests.conftest import make_inputs

PADDINGS_OF_SIX = [[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"output_attentions": True}, "output_attentions"),
        ({"output_hidden_states": True}, "output_hidden_states"),
        ({"inputs_embeds": torch.zeros(2, 12, 32, requires_grad=True), "input_ids": None}, "no gradients"),
    ],
)
def test_a_call_that_the_fast_path_cannot_answer_is_refused(pair, inputs, reason):
    with pytest.raises(RecipeError, match=reason):
        pair[1](**{**make_inputs(), **inputs})


def test_a_mask_that_differs_from_query_to_query_is_refused(pair):
    import transformers

    # Version 4 takes such masks with three dimensions, version 5 with four.
    mask = torch.ones(2, 12, 12, dtype=torch.bool).tril()
    mask = mask if transformers.__version__.startswith("4.") else mask[:, None]
    with pytest.raises(RecipeError, match="differs from query to query"):
        pair[1](**{**make_inputs(), "attention_mask": mask})


def test_layers_with_different_masks_are_refused(pair):
    first, second = pair[1].bert.encoder.layer
    hidden = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0))
    mask, other = torch.tensor(PADDINGS_OF_SIX), torch.tensor(PADDINGS_OF_SIX[::-1])
    as_layers_return_it = first(hidden, mask[:, None, None].bool())
    nested = as_layers_return_it[0] if isinstance(as_layers_return_it, tuple) else as_layers_return_it

    assert nested.is_nested
    second(nested, mask[:, None, None].bool())
    for wrong in (other[:, None, None].bool(), torch.ones(2, 1, 1, 6, dtype=torch.bool)):
        with pytest.raises(RecipeError, match="different attention masks"):
            second(nested, wrong)


def test_a_head_mask_is_refused_where_the_model_takes_one(pair):
    import inspect

    if "head_mask" not in inspect.signature(pair[0].forward).parameters:
        pytest.skip("this version of transformers has no head masks")
    with pytest.raises(RecipeError, match="head_mask"):
        pair[1](**make_inputs(), head_mask=torch.tensor([1.0, 0.0, 1.0, 1.0]))


def test_outputs_of_inside_are_refused_by_position_and_configuration(pair):
    converted = pair[1]
    by_position = copy.deepcopy(converted)
    by_position.config.output_hidden_states = True
    with pytest.raises(RecipeError, match="output_hidden_states"):
        by_position(**make_inputs())
    with pytest.raises(RecipeError, match="output_attentions"):
        converted.bert(make_inputs()["input_ids"], output_attentions=True)


def test_training_autocast_and_a_fast_path_switched_off_are_refused(pair):
    converted = copy.deepcopy(pair[1])
    with pytest.raises(RecipeError, match="cannot be trained"):
        converted.train()(**make_inputs())
    converted.eval()
    with pytest.raises(RecipeError, match="autocast"), torch.autocast("cpu", dtype=torch.bfloat16):
        converted(**make_inputs())
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with pytest.raises(RecipeError, match="switched off"):
            converted(**make_inputs())
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_a_converted_model_is_not_saved_under_names_that_nobody_could_load(pair, tmp_path):
    with pytest.raises(RecipeError, match="reverse_bettertransformer"):
        pair[1].save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


REFUSED = {
    "relative positions in the layers": ("MPNetForQuestionAnswering", TEXT, "relative position"),
    "a decoder": ("BertModel", {**TEXT, "is_decoder": True}, "decoder"),
    "cross attention": ("BertModel", {**TEXT, "is_decoder": True, "add_cross_attention": True}, "decoder"),
    "an encoder with a decoder": (
        "BartForQuestionAnswering",
        {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "vocab_size": 120},
        "decoder",
    ),
    "an approximate activation": ("BertModel", {**TEXT, "hidden_act": "gelu_new"}, "activation"),
    "an odd number of heads": ("BertModel", {**TEXT, "hidden_size": 36, "num_attention_heads": 3}, "3 attention heads"),
    "attention maps configured": ("BertModel", {**TEXT, "output_attentions": True}, "output_attentions"),
    "hidden states configured": ("BertModel", {**TEXT, "output_hidden_states": True}, "output_hidden_states"),
    "a sum of all layers": ("Wav2Vec2ForSequenceClassification", {**AUDIO, "use_weighted_layer_sum": True}, "sums"),
    "rotary positions": ("RoFormerForQuestionAnswering", {**TEXT, "embedding_size": 32}, "sinusoidal_pos"),
    "other attention, same weights": ("YosoForQuestionAnswering", TEXT, "computes something else|does not run"),
    "a convolution beside the attention": ("ConvBertForQuestionAnswering", TEXT, "has no place|known kind"),
    "relative positions in audio": ("WavLMForCTC", AUDIO, "relative|rel_pos"),
    "no attention": ("FNetForQuestionAnswering", {**TEXT, "num_attention_heads": 4}, "known kind"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_fast_path_cannot_compute_is_refused_with_the_reason(case):
    name, sizes, reason = REFUSED[case]
    model = make(name, sizes)

    with pytest.raises(RecipeError, match=reason):
        cpu.to_bettertransformer(model)


def test_hooks_and_further_weights_in_a_layer_are_refused():
    hooked = make_wide_bert()
    hooked.bert.encoder.layer[1].output.register_forward_hook(lambda *_: None)
    with pytest.raises(RecipeError, match="hooks on output"):
        cpu.to_bettertransformer(hooked)
    extended = make_wide_bert()
    extended.bert.encoder.layer[0].adapter = torch.nn.Linear(32, 32).eval()
    with pytest.raises(RecipeError, match="adapter"):
        cpu.to_bettertransformer(extended)


def test_a_layer_that_computes_something_else_is_found_out(monkeypatch):
    model = make_wide_bert()
    layer = model.bert.encoder.layer[1]
    usual = type(layer).feed_forward_chunk
    with monkeypatch.context() as patched:
        patched.setattr(type(layer), "feed_forward_chunk", lambda layer, hidden: 1.01 * usual(layer, hidden))
        with pytest.raises(RecipeError, match="computes something else"):
            cpu.to_bettertransformer(model)

    layer.feed_forward_chunk = lambda hidden: 1.01 * usual(layer, hidden)
    with pytest.raises(RecipeError, match="has a feed_forward_chunk of its own"):
        cpu.to_bettertransformer(model)


def test_what_is_converted_or_not_is_told(pair):
    with pytest.raises(InputError, match="converted already"):
        cpu.to_bettertransformer(pair[1])
    with pytest.raises(InputError, match="was not made by"):
        cpu.reverse_bettertransformer(pair[0])
    with pytest.raises(InputError, match="training mode"):
        cpu.to_bettertransformer(make_wide_bert().train())
