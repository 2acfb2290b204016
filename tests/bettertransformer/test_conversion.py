"""Conversion leaves the model alone and can be undone."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.bettertransformer import FastEncoderLayer
from cpuinfer_helpers.errors import RecipeError
from tests.bettertransformer.families import AUDIO, PADDINGS, TEXTS, check, largest_error, make, make_wide_bert, tokens
from tests.conftest import make_inputs


def test_the_users_model_stays_as_it_was():
    model = make_wide_bert()
    before = {name: (t.data_ptr(), t._version, t.clone()) for name, t in model.state_dict().items()}
    attributes = {name: set(vars(part)) for name, part in model.named_modules()}
    converted = cpu.to_bettertransformer(model)
    converted(**make_inputs(padding=3))

    for name, tensor in model.state_dict().items():
        pointer, version, values = before[name]
        assert (tensor.data_ptr(), tensor._version) == (pointer, version)
        assert torch.equal(tensor, values)
    assert {name: set(vars(part)) for name, part in model.named_modules()} == attributes
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(part._forward_pre_hooks for part in model.modules())
    assert not any(isinstance(part, FastEncoderLayer) for part in model.modules())


def test_weights_are_shared_but_for_queries_keys_and_values():
    model = make_wide_bert()
    converted = cpu.to_bettertransformer(model)
    own, shared = {t.data_ptr() for t in model.parameters()}, {t.data_ptr() for t in converted.parameters()}

    assert len(shared - own) == 2 * 2
    layer, fast = model.bert.encoder.layer[0], converted.bert.encoder.layer[0].fast
    assert fast.linear1.weight.data_ptr() == layer.intermediate.dense.weight.data_ptr()
    wanted = torch.cat([getattr(layer.attention.self, name).weight for name in ("query", "key", "value")])
    assert torch.equal(fast.self_attn.in_proj_weight, wanted)


@pytest.mark.parametrize("name", ["BertForQuestionAnswering", "DistilBertForQuestionAnswering"])
def test_reversing_gives_the_same_names_and_bits(name):
    model = make(name, TEXTS[name], "sdpa")
    model.qa_outputs.weight.requires_grad_(False)
    converted = cpu.to_bettertransformer(model)
    again = cpu.reverse_bettertransformer(converted)

    wanted, seen = model.state_dict(), again.state_dict()
    assert list(seen) == list(wanted)
    assert all(torch.equal(seen[key], wanted[key]) for key in wanted)
    inputs = tokens(PADDINGS["right"])
    with torch.no_grad():
        assert torch.equal(again(**inputs).start_logits, model(**inputs).start_logits)
        hidden = again(**inputs, output_hidden_states=True).hidden_states
    assert len(hidden) == 3
    flags = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    assert {key: parameter.requires_grad for key, parameter in again.named_parameters()} == flags
    assert not {t.data_ptr() for t in again.parameters()} & {t.data_ptr() for t in model.parameters()}
    # Three in one piece of memory could not be saved as safetensors.
    memory = [parameter.untyped_storage().data_ptr() for parameter in again.parameters()]
    assert len(set(memory)) == len(memory)
    assert all(part.config is again.config for part in again.modules() if hasattr(part, "config"))
    check(model, converted, inputs)


def test_hidden_states_asked_for_before_and_after_do_not_stand_in_the_way():
    model = make("Wav2Vec2ForSequenceClassification", AUDIO)
    waves = torch.randn(2, 900, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(waves, output_hidden_states=True)
        converted = cpu.to_bettertransformer(model)
        check(model, converted, {"input_values": waves})
        again = cpu.reverse_bettertransformer(converted)(waves, output_hidden_states=True)
        still = model(waves, output_hidden_states=True)
    assert len(again.hidden_states) == len(still.hidden_states) == len(wanted.hidden_states) == 3
    assert largest_error(again, wanted) == largest_error(still, wanted) == 0
    for asked in (converted, converted.wav2vec2, converted.wav2vec2.encoder):
        with pytest.raises(RecipeError, match="output_hidden_states"):
            asked(waves if asked is not converted.wav2vec2.encoder else waves[:, None], output_hidden_states=True)
    check(model, converted, {"input_values": waves})


def test_a_reversed_model_trains_saves_and_is_converted_again(tmp_path):
    model = make_wide_bert()
    again = cpu.reverse_bettertransformer(cpu.to_bettertransformer(model))
    again.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()

    check(loaded, cpu.to_bettertransformer(loaded), make_inputs(padding=3))
    again.train()(**make_inputs()).start_logits.sum().backward()
    assert again.bert.encoder.layer[0].attention.self.query.weight.grad is not None


def test_copies_and_pickles_of_a_converted_model_work(pair):
    model, converted = pair
    for other in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        check(model, other, make_inputs(padding=3))
        assert list(cpu.reverse_bettertransformer(other).state_dict()) == list(model.state_dict())


def test_conversion_under_autocast_is_the_same(pair):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        converted = cpu.to_bettertransformer(pair[0])
    check(pair[0], converted, make_inputs(padding=3))


def test_what_the_fused_kernel_calls_is_counted(pair):
    from cpuinfer_helpers.bettertransformer import kernels_inside

    seen = kernels_inside(pair[1], make_inputs())
    # Queries, keys and values are one product; the others are the output, and the two around the GELU.
    products = sum(seen.calls.get(name, 0) for name in ("addmm", "_addmm_activation", "mm"))
    assert (seen.layers, products) == (2, 2 * 4)
    assert seen.calls["_transform_bias_rescale_qkv"] == 2
    assert seen.table().rows[-1][0].endswith("others)")
    assert kernels_inside(pair[0], make_inputs()).layers == 0
