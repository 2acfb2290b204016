from __future__ import annotations

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.interface.reference import Reference
from cpuinfer_helpers.verification.checks import verify
from cpuinfer_helpers.verification.variations import plan


def by_name(bert, inputs):
    return {question.alternatives[0].name: question.alternatives[0] for question in plan(bert.config, inputs)}


def checks_of(answer, bert, inputs):
    return verify(answer, Reference.of(bert, inputs)).checks


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
    long = {name: tensor.repeat(1, 6)[:, :64] for name, tensor in bert_inputs.items()}
    longer = by_name(bert, long)["longer"]
    assert longer.inputs is None and "no more than 64" in longer.note


def test_swapped_arguments_are_caught(bert, bert_inputs):
    """What comparing a trace with itself in the same wrong order can never catch."""

    def swapped(inputs):
        return bert(inputs["input_ids"], inputs["token_type_ids"], inputs["attention_mask"])

    checks = checks_of(swapped, bert, bert_inputs)
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

    checks = checks_of(fails_late, bert, bert_inputs)
    assert checks[-1].passed is False and "call 3" in checks[-1].note


def test_a_crash_is_a_failed_check(bert, bert_inputs):
    def crashes(inputs):
        if inputs["input_ids"].shape[0] == 3:
            raise RuntimeError("three is too many")
        return bert(**inputs)

    failed = checks_of(crashes, bert, bert_inputs)[-1]
    assert failed.passed is False and "three is too many" in failed.note


class RefusesShortTexts(torch.nn.Module):
    def forward(self, input_ids):
        if input_ids.shape[1] < 10:
            raise ValueError("too short for me")
        return input_ids.float()


def test_what_the_model_itself_refuses_is_no_failure_and_is_refused_later():
    ids = {"input_ids": torch.arange(24).view(2, 12)}
    found = verify(lambda inputs: inputs["input_ids"].float(), Reference.of(RefusesShortTexts().eval(), ids))
    refused = [check for check in found.checks if check.passed is None and check.shape]
    assert found.difference is None
    assert refused and all("the model itself refuses: ValueError: too short for me" in check.note for check in refused)
    # 11 is what was compared: of the sizes that "shorter" tries, the first that the model takes.
    assert found.sizes.ranges["input_ids"][0][0] == 11
    with pytest.raises(cpu.InputError, match=r"each row of input_ids is 7; .* at 11 to 768 only"):
        found.sizes.refuse_others({"input_ids": torch.ones(1, 7)})


def test_an_answer_without_any_of_the_models_outputs_is_no_answer(bert, bert_inputs):
    checks = checks_of(lambda i: {"other": i["input_ids"]}, bert, bert_inputs)
    assert checks[0].passed is False and "nothing to compare" in checks[0].note
