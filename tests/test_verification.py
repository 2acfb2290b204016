from __future__ import annotations

import pytest
import torch

from cpuinfer_helpers.verification import (
    largest_error,
    tolerance_for,
    variations,
    verify,
)


def by_name(bert, inputs):
    return {variation.name: variation for variation in variations(bert.config, inputs)}


def test_the_variations_differ_in_what_they_say(bert, bert_inputs):
    batch, length = bert_inputs["input_ids"].shape
    made = by_name(bert, bert_inputs)
    shape = {name: tuple(v.inputs["input_ids"].shape) for name, v in made.items()}
    assert shape["example"] == (batch, length)
    assert shape["other batch size"][0] == batch + 1
    assert shape["partial last batch"][0] == batch - 1
    assert shape["shorter"][1] < length < shape["longer"][1]
    assert made["padding"].valid.sum(dim=1).unique().numel() == 3
    assert (made["padding on the left"].inputs["attention_mask"][1:, -1] == 1).all()
    assert (made["padding on the left"].inputs["attention_mask"][1:, 0] == 0).all()


def test_only_padded_tokens_change(bert, bert_inputs):
    made = by_name(bert, bert_inputs)
    padded, changed = made["padding"].inputs["input_ids"], made["padded tokens changed"].inputs["input_ids"]
    valid = made["padding"].valid
    assert torch.equal(padded[valid], changed[valid])
    assert (padded[~valid] == bert.config.pad_token_id).all()
    assert (changed[~valid] != bert.config.pad_token_id).any()


def test_no_variation_is_longer_than_the_model_takes(bert, bert_inputs):
    long = {name: tensor.repeat(1, 6)[:, :62] for name, tensor in bert_inputs.items()}
    longer = by_name(bert, long)["longer"]
    assert longer.inputs is None and "no more than 62" in longer.note


def test_inputs_without_a_mask_or_a_length_are_varied_as_far_as_they_can_be():
    images = {"pixel_values": torch.rand(2, 3, 8, 8)}
    made = list(variations(None, images))
    assert [v.name for v in made if v.inputs is not None] == ["example", "other batch size", "partial last batch"]
    tokens = {"input_ids": torch.randint(5, 100, (2, 12))}
    padding = [v for v in variations(None, tokens) if v.name == "padding"]
    assert padding[0].inputs is None and "no attention mask" in padding[0].note


def test_swapped_arguments_are_caught(bert, bert_inputs):
    """What comparing a trace with itself in the same wrong order can never catch."""

    def swapped(inputs):
        return bert(inputs["input_ids"], inputs["token_type_ids"], inputs["attention_mask"])

    checks = verify(swapped, lambda inputs: bert(**inputs), bert.config, bert_inputs)
    assert checks[-1].passed is False


def test_an_error_on_the_third_call_is_caught(bert, bert_inputs):
    """Optimised plans appear after two to three calls."""
    calls = []

    def fails_late(inputs):
        calls.append(1)
        output = bert(**inputs)
        if len(calls) % 3 == 0:
            output["start_logits"] = output["start_logits"] + 1.0
        return output

    checks = verify(fails_late, lambda inputs: bert(**inputs), bert.config, bert_inputs)
    assert checks[-1].passed is False and "call 3" in checks[-1].note


def test_a_crash_is_a_failed_check_and_a_refusal_of_the_model_is_not(bert, bert_inputs):
    def crashes(inputs):
        if inputs["input_ids"].shape[0] == 3:
            raise RuntimeError("three is too many")
        return bert(**inputs)

    def reference(inputs):
        return bert(**inputs)

    failed = verify(crashes, reference, bert.config, bert_inputs)[-1]
    assert failed.passed is False and "three is too many" in failed.note
    refused = [check for check in verify(reference, crashes, bert.config, bert_inputs) if check.passed is None]
    assert refused and all("the model itself refuses" in check.note for check in refused)


@pytest.mark.parametrize(
    ("dtype", "factor", "same"),
    [
        (torch.float32, 1 + 1e-6, True),
        (torch.float32, 1 + 1e-3, False),
        (torch.bfloat16, 1.01, True),
        (torch.bfloat16, 1.5, False),
    ],
)
def test_the_tolerance_separates_rounding_from_another_answer(dtype, factor, same):
    expected = torch.linspace(-3, 3, 50).to(dtype)
    seen = (expected.double() * factor).to(dtype)
    assert (largest_error(expected, seen) <= tolerance_for(expected)) is same


def test_an_answer_without_any_of_the_models_outputs_is_no_answer(bert, bert_inputs):
    checks = verify(lambda i: {"other": i["input_ids"]}, lambda i: bert(**i), bert.config, bert_inputs)
    assert checks[0].passed is False and "nothing to compare" in checks[0].note


def test_integers_must_be_equal_and_nan_only_equals_nan():
    assert tolerance_for(torch.tensor([1, 2])) == 0.0
    nan = torch.tensor([float("nan"), 1.0])
    assert largest_error(nan, nan) == 0.0
    assert largest_error(nan, torch.tensor([0.0, 1.0])) == float("inf")
    assert largest_error(torch.tensor([0.0, 1.0]), nan) == float("inf")


def test_the_lowest_number_under_a_mask_does_not_widen_the_tolerance():
    masked = torch.tensor([1.0, torch.finfo(torch.float32).min])
    assert tolerance_for(masked) < 1e-3


def test_only_valid_positions_are_compared():
    valid = torch.tensor([[True, False]])
    assert largest_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 9.0]]), valid) == 0.0
