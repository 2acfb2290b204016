"""What an encoder reads, and whether it reads a mask of that, is seen in the model."""

from __future__ import annotations

import functools

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.generation.encoding.caches import layouts_of
from cpuinfer_helpers.generation.encoding.sources import encoded, example_sources, reads_mask, source_name
from tests.generation.encoder_models import make_encoder_model, make_sources


@pytest.mark.parametrize(
    ("name", "argument", "read"),
    [("t5", "input_ids", True), ("speech2text", "input_features", True), ("whisper", "input_features", False)],
)
def test_what_is_read_is_seen(name, argument, read):
    model = make_encoder_model(name)
    assert source_name(model) == argument
    assert reads_mask(model, argument, make_sources(name)[argument]) is read


def masked_by(places):
    """Whisper's forward, which reads a mask of so many places of the features' last or first dimension."""
    own = type(make_encoder_model("whisper")).forward

    @functools.wraps(own)
    def forward(self, input_features=None, attention_mask=None, **named):
        if attention_mask is not None and input_features is not None:
            if attention_mask.shape[1] != places:
                raise ValueError("no such mask")
            hidden = attention_mask[:, None, :] if places == input_features.shape[-1] else attention_mask[..., None]
            input_features = input_features * hidden
        return own(self, input_features=input_features, **named)

    return forward


@pytest.mark.parametrize(("places", "reason"), [(64, "reads a mask of its sources of shape"), (5, "fails with a mask")])
def test_a_mask_of_a_form_that_is_not_known_is_refused(monkeypatch, places, reason):
    model = make_encoder_model("whisper")
    monkeypatch.setattr(type(model), "forward", masked_by(places))
    assert reason in cpu.prepare_generator("eager-fp32", model, make_sources("whisper")).reason


def test_an_example_has_rows_and_tokens_enough_to_be_traced():
    one = {"input_ids": torch.tensor([[7, 8, 9]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    source, mask = example_sources(one, "input_ids")
    assert source.shape == mask.shape == (2, 9) and source[1].tolist() == [7, 8, 9] * 3


def test_a_single_token_is_example_enough():
    model, one = make_encoder_model("bart"), {"input_ids": torch.tensor([[7]])}
    generator = cpu.prepare_generator("torchscript-fp32", model, one, on_failure="raise")
    sources = make_sources("bart", 3, 19)
    settings = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(**sources, **settings), generator.generate(**sources, **settings))


def test_states_of_sound_need_the_mask_of_that_sound():
    model, sources = make_encoder_model("speech2text"), make_sources("speech2text")
    generator = cpu.prepare_generator("torchscript-fp32", model, sources, on_failure="raise")
    states = generator.model.get_encoder()(**sources)
    settings = {"max_new_tokens": 6, "do_sample": False}
    seen = generator.generate(encoder_outputs=states, **settings)
    assert torch.equal(seen, model.generate(**sources, **settings))
    plain = (states.last_hidden_state,)
    with pytest.raises(cpu.InputError, match="give attention_mask of the input_features"):
        generator(encoder_outputs=plain, decoder_input_ids=torch.tensor([[2], [2]]))


def test_a_layout_tells_both_halves_apart():
    model, sources = make_encoder_model("t5", num_heads=2, d_kv=6), make_sources("t5")
    with torch.no_grad():
        states = encoded(model, "input_ids", *sources.values())
    layouts = layouts_of(model, states, sources["attention_mask"])
    assert layouts.own.keys == layouts.cross.values == ((2, 6), (2, 6)) and not layouts.by_tuples
