"""Verification sees every kind of fault that a step can have, and the model's own logits pass it."""

from __future__ import annotations

import math

import pytest
import torch

from cpuinfer_helpers.generation.backends.eager import EagerState, EagerStep
from cpuinfer_helpers.generation.closeness import closeness, perplexity
from cpuinfer_helpers.generation.positions import attention_kinds, masks_of, positions_of
from cpuinfer_helpers.generation.verification import texts_for, verify_step
from tests.generation.models import make_language_model, make_prompts


class ForgetsPadding(EagerStep):
    def _feed(self, ids, mask, positions, state, last):
        return super()._feed(ids, torch.ones_like(mask), positions, state, last)


class CountsPadding(EagerStep):
    def _feed(self, ids, mask, positions, state, last):
        counted = torch.arange(state.length, state.length + ids.shape[1]).expand_as(ids)
        return super()._feed(ids, mask, counted, state, last)


class KeepsTheDraft(EagerStep):
    class State(EagerState):
        def _crop(self, length):
            self.cache.crop(max(length, 13) + 1 - self.length)

    def _new_state(self, batch, capacity):
        return self.State(batch, capacity)


class KeepsTheOrder(EagerStep):
    class State(EagerState):
        def _reorder(self, rows):
            self.cache.batch_select_indices(torch.arange(len(rows)) % self.batch)

    def _new_state(self, batch, capacity):
        return self.State(batch, capacity)


class HasOneCacheForAll(EagerStep):
    """Each state begins with what the last one was fed first."""

    first = None

    def _feed(self, ids, mask, positions, state, last):
        if self.first is None or len(self.first) != len(ids):
            self.first = ids
        seen = ids if state.length else self.first[:, : ids.shape[1]].expand_as(ids)
        return super()._feed(seen, mask, positions, state, last)


class ForgetsWhenItGrows(EagerStep):
    class State(EagerState):
        def _grow(self, capacity):
            for layer in self.cache.layers:
                layer.keys = torch.zeros_like(layer.keys)

    def _new_state(self, batch, capacity):
        return self.State(batch, capacity)


class GivesTheFirstTokensLogits(EagerStep):
    def _feed(self, ids, mask, positions, state, last):
        return super()._feed(ids, mask, positions, state, ids.shape[1])[:, :last]


class GivesNoNumber(EagerStep):
    def _feed(self, ids, mask, positions, state, last):
        logits = super()._feed(ids, mask, positions, state, last)
        return logits.masked_fill(torch.arange(logits.shape[-1]) == 3, math.nan)


class IsALittleOff(EagerStep):
    def _feed(self, ids, mask, positions, state, last):
        logits = super()._feed(ids, mask, positions, state, last)
        return logits + 1e-3 * logits.std() * torch.arange(logits.shape[-1]).cos()


class FailsAtLength(EagerStep):
    def _feed(self, ids, mask, positions, state, last):
        if mask.shape[1] > 64:
            raise RuntimeError("no such length")
        return super()._feed(ids, mask, positions, state, last)


FAULTS = {
    ForgetsPadding: "padding on the left",
    CountsPadding: "padding on the left",
    KeepsTheDraft: "a draft cropped",
    KeepsTheOrder: "rows reordered",
    HasOneCacheForAll: "a prompt of 2 tokens",
    GivesTheFirstTokensLogits: "logits of the last tokens only",
    GivesNoNumber: "one token at a time",
    IsALittleOff: "one token at a time",
    FailsAtLength: "more tokens than there was room for",
}


@pytest.fixture(scope="module")
def model():
    return make_language_model("llama")


@pytest.fixture(scope="module")
def texts(model):
    return texts_for(model, make_prompts())


def test_the_models_own_step_passes_all(model, texts):
    found = verify_step(EagerStep(model, 200), "fp32", model, texts)
    assert found.difference is None and len(found.checks) == 10
    assert all(check.passed and check.max_error < 1e-5 for check in found.checks)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_seen(model, texts, fault):
    if fault is CountsPadding:
        # Llama's positions are relative, so that it does not matter where they begin.
        model = make_language_model("gpt2")
        texts = texts_for(model, make_prompts())
    found = verify_step(fault(model, 200), "fp32", model, texts)
    assert found.difference is not None
    assert found.checks[-1].name == FAULTS[fault] and found.checks[-1].passed is False


@pytest.mark.skipif(not hasattr(EagerState(1, 1).cache, "layers"), reason="caches of transformers 4 have no layers")
def test_a_state_that_forgets_when_it_grows_is_seen(model, texts):
    found = verify_step(ForgetsWhenItGrows(model, 200), "fp32", model, texts)
    assert found.checks[-1].name == "more tokens than there was room for"


@pytest.mark.parametrize("fault", [ForgetsPadding, KeepsTheDraft, KeepsTheOrder], ids=lambda fault: fault.__name__)
def test_the_tolerance_of_quantised_weights_hides_no_fault(model, texts, fault):
    found = verify_step(fault(model, 200), "int4", model, texts)
    assert found.difference is not None
    assert found.checks[-1].name == FAULTS[fault]


def test_a_limit_of_few_tokens_leaves_out_what_needs_more():
    model = make_language_model("gpt2", max_position_embeddings=12)
    found = verify_step(EagerStep(model, 12), "fp32", model, texts_for(model, make_prompts()))
    assert found.difference is None
    assert [check.passed for check in found.checks].count(None) >= 2


def test_a_window_too_large_to_go_beyond_limits_the_tokens():
    model = make_language_model("mistral", sliding_window=600, max_position_embeddings=2000)
    found = verify_step(EagerStep(model, 2000), "fp32", model, texts_for(model, make_prompts()))
    assert found.limit == 600


# How near is near.


def test_what_a_softmax_does_not_see_is_no_difference():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    assert closeness(logits, logits + torch.arange(4.0)[:, None] * 100, 1e-4).worst < 1e-4


def test_the_worst_token_is_found_among_many():
    logits = torch.randn(400, 50, generator=torch.Generator().manual_seed(0))
    seen = logits.clone()
    seen[7] = seen[7].flip(0)
    found = closeness(logits, seen, 1e-4)
    assert found.worst > 0.5 and found.mean < 0.1 and found.same >= 398


def test_tokens_that_must_not_come_are_compared_as_such():
    logits = torch.tensor([[1.0, 2.0, -math.inf]])
    assert closeness(logits, logits, 1e-4).worst == 0
    assert closeness(logits, torch.tensor([[1.0, 2.0, 3.0]]), 1e-4).worst > 0.5


def test_perplexity_of_even_odds_is_the_number_of_tokens():
    assert perplexity(torch.zeros(1, 6, 20), torch.arange(6)[None]) == pytest.approx(20)


# Positions and masks.


def test_positions_leave_padding_out():
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    assert positions_of(mask, 4).tolist() == [[0, 1, 2, 3], [1, 1, 0, 1]]
    assert positions_of(mask, 1).tolist() == [[3], [1]]


def test_masks_let_a_token_see_what_its_layer_sees():
    mask = torch.tensor([[0, 1, 1, 1, 1]])
    full, sliding = masks_of({"full_attention": None, "sliding_attention": 2}, mask, 3, torch.float32)
    assert (full == 0)[0, 0].tolist() == [[False, True, True, True, False], [False, True, True, True, True]]
    assert (sliding == 0)[0, 0].tolist() == [[False, False, True, True, False], [False, False, False, True, True]]


def test_a_window_that_is_switched_off_is_none():
    config = make_language_model("qwen2", sliding_window=8, use_sliding_window=False).config
    assert set(attention_kinds(config).values()) == {None}


def test_chunks_begin_with_the_first_token_of_each_row():
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
    (chunked,) = masks_of({"chunked_attention": 2}, mask, 3, torch.float32)
    assert (chunked == 0)[0, 0].tolist() == [[False, False, True, True, False], [False, False, False, False, True]]
    assert (chunked == 0)[1, 0].tolist() == [[False, False, False, True, False], [False, False, False, True, True]]
