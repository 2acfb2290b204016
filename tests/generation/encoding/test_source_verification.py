"""Verification sees every kind of fault that a step of an encoder and a decoder can have."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.generation.backends.eager import EagerEncodingStep, EagerSourceState
from cpuinfer_helpers.generation.encoding.traced import EncodedState, TracedEncodingStep
from cpuinfer_helpers.generation.step import GenerationRecipe, Sources
from cpuinfer_helpers.generation.verification import comparable, refuse_unlike_own_generate, texts_for, verify_step
from tests.generation.encoder_models import make_encoder_model, make_sources


class ForgetsTheSourcesMask(EagerEncodingStep):
    def _begin(self, sources, capacity):
        mask = torch.ones_like(sources.mask)
        return super()._begin(Sources(sources.states, mask), capacity)


class EncodesWithoutMask(EagerEncodingStep):
    def _encode(self, inputs, mask):
        return super()._encode(inputs, torch.ones_like(mask))


class KeepsTheFirstSource(EagerEncodingStep):
    """Each text is written of what was read first, where that has the same shape."""

    first = None

    def _begin(self, sources, capacity):
        if self.first is None or self.first.states.shape[0] != sources.batch:
            self.first = sources
        return super()._begin(self.first, capacity)


class SwapsSourcesWhenReordered(EagerEncodingStep):
    class State(EagerSourceState):
        def _reorder(self, rows):
            self.cache.self_attention_cache.batch_select_indices(rows)
            self.cache.cross_attention_cache.batch_select_indices(torch.arange(len(rows)) % self.batch)

    def _begin(self, sources, capacity):
        return self.State(sources, capacity)


class ForgetsPaddingOfBeginnings(EagerEncodingStep):
    def _feed(self, ids, mask, positions, state, last):
        return super()._feed(ids, torch.ones_like(mask), positions, state, last)


FAULTS = {
    ForgetsTheSourcesMask: "a prompt of 2 tokens",
    EncodesWithoutMask: "a prompt of 2 tokens",
    KeepsTheFirstSource: "a prompt of 2 tokens",
    SwapsSourcesWhenReordered: "rows reordered",
    ForgetsPaddingOfBeginnings: "padding on the left",
}


@pytest.fixture(scope="module")
def model():
    return make_encoder_model("t5")


@pytest.fixture(scope="module")
def texts(model):
    return texts_for(model, make_sources("t5"))


def step_of(kind, model):
    return kind(model, 200, inputs_name="input_ids", reads_mask=True)


def test_the_models_own_step_passes_all(model, texts):
    found = verify_step(step_of(EagerEncodingStep, model), "fp32", model, texts)
    assert found.difference is None and len(found.checks) == 10
    assert all(check.passed and check.max_error < 1e-5 for check in found.checks)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_fault_is_seen(model, texts, fault, precision):
    if precision == "int4" and fault in (EncodesWithoutMask, ForgetsTheSourcesMask):
        pytest.skip("what is masked changes less than 4 bits do")
    found = verify_step(step_of(fault, model), precision, model, texts)
    assert found.difference is not None
    if precision == "fp32":
        assert found.checks[-1].name == FAULTS[fault] and found.checks[-1].passed is False


def test_a_trace_that_loses_rows_of_the_source_is_seen(monkeypatch, model):
    def reorder(self, rows):
        super(EncodedState, self)._reorder(rows)
        self.given = [tensor.index_select(0, torch.arange(len(rows)) % len(tensor)) for tensor in self.given]

    monkeypatch.setattr(EncodedState, "_reorder", reorder)
    generator = cpu.prepare_generator("torchscript-fp32", model, make_sources("t5"))
    assert not generator.prepared and "rows reordered" in generator.reason


def test_a_trace_that_encodes_without_the_mask_is_seen(monkeypatch, model):
    own = TracedEncodingStep._encode
    monkeypatch.setattr(
        TracedEncodingStep, "_encode", lambda self, inputs, mask: own(self, inputs, torch.ones_like(mask))
    )
    assert not cpu.prepare_generator("torchscript-fp32", model, make_sources("t5")).prepared


def test_sources_are_of_other_lengths_and_padded(model, texts):
    given, example = texts.given, make_sources("t5")["input_ids"]
    assert len({given.source.shape[1], given.long_source.shape[1], example.shape[1]}) == 3
    hidden = (given.mask == 0).sum(dim=1).tolist()
    assert hidden[0] == 0 < hidden[1] < hidden[2] and bool(given.long_mask.all())


def test_an_encoder_of_one_length_is_verified_at_that():
    whisper = make_encoder_model("whisper")
    given = texts_for(whisper, make_sources("whisper")).given
    assert given.source.shape == (3, 16, 64) and given.mask is None
    assert not torch.equal(given.source[0], given.source[1])


def test_beginnings_are_compared_without_padding_where_only_that_differs(monkeypatch, model, texts):
    own = type(model).forward

    @functools.wraps(own)
    def otherwise_when_padded(self, *arguments, decoder_attention_mask=None, **named):
        output = own(self, *arguments, decoder_attention_mask=decoder_attention_mask, **named)
        padded = decoder_attention_mask is not None and not bool(decoder_attention_mask.all())
        if padded and named.get("use_cache"):
            output.logits = output.logits.flip(-1)
        return output

    monkeypatch.setattr(type(model), "forward", otherwise_when_padded)
    with pytest.raises(cpu.RecipeError, match="its own generate"):
        refuse_unlike_own_generate(model, texts)
    assert bool(comparable(model, texts).mask.all())
    generator = cpu.prepare_generator("eager-fp32", model, make_sources("t5"), on_failure="raise")
    assert "without padding" in generator.receipt.evidence["beginnings"]
    ids = torch.tensor([[0, 7, 8], [0, 0, 7]])
    padded = {"decoder_input_ids": ids, "decoder_attention_mask": torch.tensor([[1, 1, 1], [0, 1, 1]])}
    with pytest.raises(cpu.InputError, match="beginnings of one length"):
        generator.generate(**make_sources("t5"), **padded, max_new_tokens=2)


def test_a_model_whose_own_generate_contradicts_it_is_refused(monkeypatch, model):
    own = type(model).forward

    @functools.wraps(own)
    def shifted(self, *arguments, **named):
        output = own(self, *arguments, **named)
        if named.get("use_cache"):
            output.logits = output.logits.flip(-1)
        return output

    monkeypatch.setattr(type(model), "forward", shifted)
    reason = cpu.prepare_generator("eager-fp32", model, make_sources("t5")).reason
    assert "its own generate() gives other logits" in reason


# The contract.


def test_a_state_begins_with_a_source_for_each_row(model):
    step = step_of(EagerEncodingStep, model)
    sources = step.encode(**{"inputs": make_sources("t5")["input_ids"], "mask": make_sources("t5")["attention_mask"]})
    with pytest.raises(cpu.InputError, match="encode one first"):
        step.new_state(2, 1)
    with pytest.raises(cpu.InputError, match="2 sources and 3 rows"):
        step.new_state(3, 1, sources)
    assert step.new_state(2, 1, sources).batch == 2


def test_a_decoder_alone_takes_no_source():
    from cpuinfer_helpers.generation.backends.eager import EagerStep
    from tests.generation.models import make_language_model

    with pytest.raises(cpu.InputError, match="writes of no sources"):
        EagerStep(make_language_model(), None).new_state(1, 1, Sources(torch.zeros(1, 1, 1)))


def test_a_backend_of_ones_own_needs_one_function(model):
    """What a recipe of an encoder and a decoder has to make is an EncodingStep."""
    from cpuinfer_helpers.generation.backends.eager import RECIPES

    recipe = GenerationRecipe("own-fp32", "the eager model by another name", RECIPES[0].build)
    broken = dataclasses.replace(
        recipe,
        build=lambda request: dataclasses.replace(
            RECIPES[0].build(request), step=step_of(KeepsTheFirstSource, request.model)
        ),
    )
    assert cpu.prepare_generator(recipe, model, make_sources("t5")).prepared
    assert "does not give the model's logits" in cpu.prepare_generator(broken, model, make_sources("t5")).reason
