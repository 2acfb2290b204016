from __future__ import annotations

import pytest
import torch

from cpuinfer_helpers.interface.inputs import bind_inputs
from cpuinfer_helpers.recipes.base import Request
from cpuinfer_helpers.recipes.tools.buckets import LengthBuckets, with_buckets


class Recording:
    """A model's answers, with a note of the shapes that were asked for."""

    def __init__(self, model):
        self.model, self.shapes = model, []

    def __call__(self, tensors):
        self.shapes.append(tuple(tensors["input_ids"].shape))
        with torch.no_grad():
            output = self.model(**tensors)
        return {"start_logits": output.start_logits, "end_logits": output.end_logits}


@pytest.fixture
def bucketed(bert, bert_inputs):
    answer = Recording(bert)
    request = Request("test-fp32", "fp32", bert, bind_inputs(bert, bert_inputs))
    with torch.no_grad():
        return with_buckets(request, answer), answer


def test_lengths_are_padded_to_the_next_bucket_and_cut_again(bucketed, bert, new_inputs):
    answer, inner = bucketed
    inputs = new_inputs(3, 21, padding=4)
    with torch.no_grad():
        expected = bert(**inputs).start_logits
    seen = answer(inputs)["start_logits"]

    assert inner.shapes == [(3, 32)]
    assert seen.shape == expected.shape
    valid = inputs["attention_mask"].bool()
    # Masked columns weigh nothing; what remains is the order of a few sums.
    torch.testing.assert_close(seen[valid], expected[valid], atol=1e-5, rtol=0)


@pytest.mark.parametrize("padding", [1, 4, 20])
def test_rows_that_are_padded_on_the_left_are_not_padded_on_the_right_too(padding, bucketed, bert, new_inputs):
    answer, inner = bucketed
    inputs = {name: tensor.flip(1) for name, tensor in new_inputs(3, 21, padding=padding).items()}
    assert inputs["attention_mask"][1, 0] == 0
    with torch.no_grad():
        expected = bert(**inputs)
    seen = answer(inputs)
    assert inner.shapes == [(3, 21)]
    valid = inputs["attention_mask"].bool()
    for name in ("start_logits", "end_logits"):
        assert seen[name].shape == (3, 21)
        torch.testing.assert_close(seen[name][valid], expected[name][valid], atol=1e-5, rtol=0)


def test_labels_as_many_as_tokens_are_not_cut(new_bert, new_inputs):
    """Of 12 tokens in the example, and of 16 that it is padded to."""
    for labels, length in ((12, 12), (12, 9), (16, 12), (16, 16)):
        model, inputs = new_bert("BertForSequenceClassification", num_labels=labels), new_inputs(2, length)
        request = Request("test-fp32", "fp32", model, bind_inputs(model, inputs))
        with torch.no_grad():
            answer = with_buckets(request, lambda tensors, model=model: {"logits": model(**tensors).logits})
            seen, expected = answer(inputs)["logits"], model(**inputs).logits
        assert answer.length_dims == {"logits": ()}
        torch.testing.assert_close(seen, expected, atol=1e-5, rtol=0)


def test_what_is_cut_can_be_viewed_in_another_shape_like_the_models_own_output(bucketed, new_inputs):
    answer, _ = bucketed
    for output in answer(new_inputs(3, 21)).values():
        assert output.view(-1).shape == (63,)


def test_a_length_that_is_a_bucket_is_not_touched(bucketed, new_inputs):
    answer, inner = bucketed
    inputs = new_inputs(2, 32)
    inner.shapes.clear()
    answer(inputs)

    assert inner.shapes == [(2, 32)]


def test_nothing_is_padded_beyond_what_the_model_takes(bucketed, new_inputs):
    answer, inner = bucketed  # The small model has 64 positions.
    assert answer.bucket_of(60) == 62
    assert answer.bucket_of(63) == 63
    assert answer(new_inputs(1, 63))["start_logits"].shape == (1, 63)
    assert inner.shapes == [(1, 63)]


def test_inputs_without_a_mask_are_not_padded(bert, bert_inputs):
    del bert_inputs["attention_mask"]
    answer = Recording(bert)
    request = Request("test-fp32", "fp32", bert, bind_inputs(bert, bert_inputs))

    assert with_buckets(request, answer) is answer


def test_only_dimensions_that_follow_the_length_are_cut():
    def answer(tensors):
        length = tensors["attention_mask"].shape[1]
        return {"square": torch.ones(1, length, length), "pooled": torch.ones(1, 16)}

    buckets = LengthBuckets(answer, {"attention_mask": 0}, {"square": (1, 2), "pooled": ()}, longest=None)
    outputs = buckets({"attention_mask": torch.ones(1, 11)})

    assert {name: tuple(tensor.shape) for name, tensor in outputs.items()} == {"square": (1, 11, 11), "pooled": (1, 16)}
