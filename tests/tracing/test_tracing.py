from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.saving.folders import MANIFEST, sha256
from tests.conftest import MaskDroppedWhenFull

# FP32 against FP32: the trace runs the same operators, so only a fused or reordered one may differ by rounding.
SAME = {"rtol": 1e-5, "atol": 1e-6}


class LengthBakedIn(torch.nn.Module):
    """Divides by the length of the example, for ever."""

    def forward(self, input_ids, attention_mask):
        scores = (input_ids * attention_mask).float()
        return scores.cumsum(dim=1) / int(input_ids.shape[1])


class BatchBakedIn(torch.nn.Module):
    def forward(self, input_ids):
        return input_ids.float() * float(input_ids.shape[0])


class CrashesOnOtherLength(torch.nn.Module):
    def forward(self, input_ids):
        return input_ids.view(input_ids.shape[0], int(input_ids.shape[1])).float()


class AlwaysDropout(torch.nn.Module):
    def forward(self, input_ids):
        return torch.nn.functional.dropout(input_ids.float(), p=0.5, training=True)


class RefusesTracing(torch.nn.Module):
    def forward(self, input_ids):
        if torch.jit.is_tracing():
            raise RuntimeError("this operator has no TorchScript form")
        return input_ids.float()


class Nested(torch.nn.Module):
    def forward(self, input_ids):
        x = input_ids.float()
        return {"first": x, "nothing": None, "layers": (x + 1, (x + 2, None)), "cache": object()}


Pair = namedtuple("Pair", "left right")


class ReturnsPair(torch.nn.Module):
    def forward(self, input_ids):
        return Pair(input_ids.float(), input_ids.float() * 2)


def ids(batch: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(5, 120, (batch, length), generator=torch.Generator().manual_seed(batch * 100 + length))


def with_mask(batch: int = 2, length: int = 12) -> dict[str, torch.Tensor]:
    tokens = ids(batch, length)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def test_a_trace_gives_the_models_answers_on_shapes_it_has_not_seen(bert, bert_inputs):
    traced = cpu.trace_model(bert, bert_inputs)
    assert traced.traced and traced.reason is None
    for batch, length in ((1, 3), (5, 31), (2, 64)):
        inputs = {"input_ids": ids(batch, length), "attention_mask": torch.ones(batch, length, dtype=torch.long)}
        inputs["attention_mask"][-1, length // 2 :] = 0
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        with torch.no_grad():
            expected = bert(**inputs)
        for _ in range(3):
            seen = traced(**inputs)
        valid = inputs["attention_mask"].bool()
        torch.testing.assert_close(seen.start_logits[valid], expected.start_logits[valid], **SAME)
        torch.testing.assert_close(seen.end_logits[valid], expected.end_logits[valid], **SAME)


def test_the_caller_gets_the_models_own_output_class_without_gradients(bert, bert_inputs):
    seen = cpu.trace_model(bert, bert_inputs)(**bert_inputs)
    assert type(seen) is type(bert(**bert_inputs))
    assert not seen.start_logits.requires_grad
    assert seen.loss is None


def test_the_receipt_says_what_ran(bert, bert_inputs):
    receipt = cpu.trace_model(bert, bert_inputs).receipt
    assert receipt.script_module and receipt.frozen and receipt.verified
    # Six linear layers in each of two encoder layers, and the one on top.
    assert receipt.graph_nodes["aten::linear"] == 13
    assert receipt.linear_dtypes == {"float32": 13}
    assert set(receipt.weight_dtypes) == {"float32"}
    assert receipt.attention_implementation == "sdpa"
    assert receipt.versions["torch"] == torch.__version__ or receipt.versions["torch"] in torch.__version__
    names = {check.name for check in receipt.checks}
    wanted = {"other batch size", "partial last batch", "shorter", "longer", "padding", "padded tokens changed"}
    assert wanted <= names


def test_a_bfloat16_model_is_seen_to_run_in_bfloat16(new_bert, bert_inputs):
    receipt = cpu.trace_model(new_bert().bfloat16(), bert_inputs).receipt
    assert receipt.script_module
    assert receipt.linear_dtypes == {"bfloat16": 13}
    assert set(receipt.weight_dtypes) == {"bfloat16"}


def test_the_model_and_the_process_are_left_as_they_were(new_bert, bert_inputs):
    model = new_bert()
    before_state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before_config = copy.deepcopy(model.config.to_dict())
    before_attention = model.config._attn_implementation
    before_inputs = {name: tensor.clone() for name, tensor in bert_inputs.items()}
    torch.manual_seed(7)
    before_random, before_threads = torch.random.get_rng_state(), torch.get_num_threads()
    cpu.trace_model(model, bert_inputs)
    assert torch.equal(torch.random.get_rng_state(), before_random)
    assert torch.get_num_threads() == before_threads
    assert not any(part.training for part in model.modules())
    assert model.config.to_dict() == before_config
    assert model.config._attn_implementation == before_attention
    assert all(torch.equal(tensor, before_state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, before_inputs[name]) for name, tensor in bert_inputs.items())
    assert "forward" not in vars(model)


@pytest.mark.parametrize(
    ("model", "inputs", "check"),
    [
        (LengthBakedIn(), with_mask(), "shorter"),
        (BatchBakedIn(), {"input_ids": ids()}, "other batch size"),
        (MaskDroppedWhenFull(), with_mask(), "padded tokens changed"),
        (CrashesOnOtherLength(), {"input_ids": ids()}, "shorter"),
    ],
    ids=["length", "batch", "mask", "crash"],
)
def test_what_is_baked_in_is_caught_and_falls_back(model, inputs, check, caplog):
    model.eval()
    with caplog.at_level(logging.WARNING, logger="cpuinfer_helpers"):
        answered = cpu.trace_model(model, inputs)
    assert not answered.traced and answered.module is None
    assert repr(check) in answered.reason
    assert answered.reason in caplog.text
    assert [c.name for c in answered.receipt.checks if c.passed is False] == [check]
    # The eager model answers in its place, so nothing is ever silently wrong.
    other = {name: tensor[:1, :5] for name, tensor in inputs.items()}
    torch.testing.assert_close(answered(**other), model(**other))
    with pytest.raises(cpu.TraceError, match=check):
        cpu.trace_model(model, inputs, on_failure="raise")


@pytest.mark.parametrize("model", [LengthBakedIn(), MaskDroppedWhenFull()], ids=["length", "mask"])
def test_without_verification_the_wrong_answers_would_have_gone_through(model):
    traced = cpu.trace_model(model.eval(), with_mask(), verify=False)
    assert traced.traced and not traced.receipt.verified and traced.receipt.checks == ()
    shorter = with_mask(2, 6)
    shorter["attention_mask"][:, 3:] = 0
    assert not torch.allclose(traced(**shorter), model(**shorter))


def test_tracer_warnings_go_into_the_receipt():
    receipt = cpu.trace_model(MaskDroppedWhenFull().eval(), with_mask(), verify=False).receipt
    assert any("TracerWarning" in text and "Python boolean" in text for text in receipt.warnings)


def test_a_model_that_cannot_be_traced_answers_eagerly(caplog):
    model = RefusesTracing().eval()
    answered = cpu.trace_model(model, {"input_ids": ids()})
    assert not answered.traced
    assert "has no TorchScript form" in answered.reason
    assert "RefusesTracing" in caplog.text and answered.reason in caplog.text
    assert answered.receipt.script_module is False and answered.receipt.reason == answered.reason
    torch.testing.assert_close(answered(input_ids=ids(1, 4)), ids(1, 4).float())


def test_a_model_with_random_answers_is_refused():
    assert "random seed" in cpu.trace_model(AlwaysDropout().eval(), {"input_ids": ids()}).reason


def test_nested_outputs_none_and_objects_do_not_stop_a_trace():
    traced = cpu.trace_model(Nested().eval(), {"input_ids": ids()})
    assert traced.traced, traced.reason
    seen = traced(input_ids=ids(3, 4))
    assert seen["nothing"] is None and isinstance(seen["layers"], tuple)
    torch.testing.assert_close(seen["layers"][1][0], ids(3, 4).float() + 2)
    assert seen["layers"][1][1] is None
    assert traced.receipt.outputs_left_out == ("cache",)


def test_a_named_tuple_comes_back_as_one():
    seen = cpu.trace_model(ReturnsPair().eval(), {"input_ids": ids()})(input_ids=ids(1, 3))
    assert type(seen) is Pair
    torch.testing.assert_close(seen.right, ids(1, 3).float() * 2)


def test_past_key_values_are_left_out_and_said_so():
    from transformers import GPT2Config, GPT2ForSequenceClassification

    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=120, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = GPT2ForSequenceClassification(config).eval()
    assert model(**with_mask()).past_key_values is not None
    traced = cpu.trace_model(model, with_mask())
    assert traced.traced, traced.reason
    assert traced(**with_mask(3, 5)).past_key_values is None
    torch.testing.assert_close(traced(**with_mask(3, 5)).logits, model(**with_mask(3, 5)).logits.detach(), **SAME)
    assert model.config.use_cache is True


def test_plain_values_are_constants_of_the_trace(bert, bert_inputs):
    traced = cpu.trace_model(bert, {**bert_inputs, "output_hidden_states": True})
    assert len(traced(**bert_inputs).hidden_states) == 3
    assert len(traced(**bert_inputs, output_hidden_states=True).hidden_states) == 3
    with pytest.raises(cpu.InputError, match="output_hidden_states was traced as True"):
        traced(**bert_inputs, output_hidden_states=False)


def test_a_fallback_keeps_the_plain_values(bert, bert_inputs):
    swapped = dict(reversed(bert_inputs.items()))
    answered = cpu.trace_model(bert, {**swapped, "output_hidden_states": True}, input_style="tuple")
    assert not answered.traced
    assert len(answered(**bert_inputs).hidden_states) == 3


def test_tuple_inputs_in_the_models_order_are_traced(bert, bert_inputs):
    traced = cpu.trace_model(bert, bert_inputs, input_style="tuple")
    assert traced.traced
    backwards = dict(reversed(bert_inputs.items()))
    torch.testing.assert_close(traced(**backwards).start_logits, bert(**bert_inputs).start_logits.detach(), **SAME)


def test_tuple_inputs_in_another_order_are_refused(bert, bert_inputs, caplog):
    swapped = {name: bert_inputs[name] for name in ("input_ids", "token_type_ids", "attention_mask")}
    answered = cpu.trace_model(bert, swapped, input_style="tuple")
    assert not answered.traced
    assert "'token_type_ids', number 2, would be taken as 'attention_mask'" in answered.reason
    assert answered.reason in caplog.text
    # By name the order does not matter.
    assert cpu.trace_model(bert, swapped).traced


def test_a_trace_that_is_not_frozen_keeps_its_parameters(bert, bert_inputs):
    traced = cpu.trace_model(bert, bert_inputs, freeze=False)
    assert traced.traced and not traced.receipt.frozen
    assert len(list(traced.module.parameters())) == len(list(bert.parameters()))
    assert not list(cpu.trace_model(bert, bert_inputs).module.parameters())


def test_changing_the_example_afterwards_changes_nothing(bert, bert_inputs, tmp_path):
    inputs = {name: tensor.clone() for name, tensor in bert_inputs.items()}
    traced = cpu.trace_model(bert, inputs)
    inputs["input_ids"].zero_()
    traced.save(tmp_path / "saved")
    cpu.TracedModel.load(tmp_path / "saved")


LOAD_IN_A_NEW_PROCESS = """
import sys, torch, cpuinfer_helpers as cpu
inputs = torch.load(sys.argv[2], weights_only=True)
traced = cpu.TracedModel.load(sys.argv[1])
assert type(traced(**inputs)).__name__ == "QuestionAnsweringModelOutput"
torch.save([traced(**inputs).start_logits for _ in range(4)], sys.argv[3])
"""


def test_a_saved_trace_gives_the_same_answers_in_a_new_process(bert, bert_inputs, tmp_path):
    folder = tmp_path / "a folder with ümläuts"
    traced = cpu.trace_model(bert, bert_inputs)
    traced.save(folder)
    torch.save(bert_inputs, tmp_path / "inputs.pt")
    command = [sys.executable, "-c", LOAD_IN_A_NEW_PROCESS, str(folder), str(tmp_path / "inputs.pt")]
    subprocess.run([*command, str(tmp_path / "answers.pt")], check=True, cwd=Path(cpu.__file__).parents[1])
    answers = torch.load(tmp_path / "answers.pt", weights_only=True)
    assert len(answers) == 4
    for answer in answers:
        torch.testing.assert_close(answer, traced(**bert_inputs).start_logits, **SAME)


def test_a_loaded_trace_carries_its_receipt_and_can_be_saved_again(bert, bert_inputs, tmp_path):
    traced = cpu.trace_model(bert, bert_inputs)
    traced.save(tmp_path / "one")
    loaded = cpu.TracedModel.load(tmp_path / "one")
    assert loaded.receipt == traced.receipt
    assert loaded.input_names == traced.input_names
    loaded.save(tmp_path / "one")
    assert cpu.TracedModel.load(tmp_path / "one").traced


def test_a_loaded_tuple_trace_keeps_the_order(bert, bert_inputs, tmp_path):
    cpu.trace_model(bert, bert_inputs, input_style="tuple").save(tmp_path / "saved")
    seen = cpu.TracedModel.load(tmp_path / "saved")(**dict(reversed(bert_inputs.items())))
    torch.testing.assert_close(seen.start_logits, bert(**bert_inputs).start_logits.detach(), **SAME)


def test_a_damaged_trace_is_not_loaded(bert, bert_inputs, tmp_path):
    cpu.trace_model(bert, bert_inputs).save(tmp_path / "saved")
    module = next(path for path in (tmp_path / "saved").iterdir() if path.suffix == ".pt")
    module.write_bytes(module.read_bytes()[:-100])
    with pytest.raises(cpu.ArtifactError, match="damaged"):
        cpu.TracedModel.load(tmp_path / "saved")


def test_the_probe_catches_a_module_that_answers_otherwise(new_bert, bert_inputs, tmp_path):
    cpu.trace_model(new_bert(seed=0), bert_inputs).save(tmp_path / "saved")
    cpu.trace_model(new_bert(seed=1), bert_inputs).save(tmp_path / "other")
    module = next(path for path in (tmp_path / "saved").iterdir() if path.suffix == ".pt")
    module.write_bytes((tmp_path / "other" / module.name).read_bytes())
    manifest = json.loads((tmp_path / "saved" / MANIFEST).read_text())
    manifest["files"][module.name] = sha256(module)
    (tmp_path / "saved" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(cpu.ArtifactError, match="_logits differs"):
        cpu.TracedModel.load(tmp_path / "saved")
    assert cpu.TracedModel.load(tmp_path / "saved", verify=False).traced


def test_another_torch_version_is_said(bert, bert_inputs, tmp_path, caplog):
    cpu.trace_model(bert, bert_inputs).save(tmp_path / "saved")
    manifest = json.loads((tmp_path / "saved" / MANIFEST).read_text())
    manifest["versions"]["torch"] = "1.0"
    (tmp_path / "saved" / MANIFEST).write_text(json.dumps(manifest))
    cpu.TracedModel.load(tmp_path / "saved")
    assert "saved with torch 1.0" in caplog.text


def test_a_fallback_cannot_be_saved(tmp_path):
    answered = cpu.trace_model(RefusesTracing().eval(), {"input_ids": ids()})
    with pytest.raises(cpu.ArtifactError, match="nothing was traced"):
        answered.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("entry", ["inputs", "output", "receipt", "versions"])
def test_a_manifest_that_lacks_an_entry_is_named(bert, bert_inputs, tmp_path, entry):
    folder = cpu.trace_model(bert, bert_inputs, verify=False).save(tmp_path / "saved")
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest[entry]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(cpu.ArtifactError, match=entry):
        cpu.TracedModel.load(folder)


def test_saving_over_something_else_is_refused(bert, bert_inputs, tmp_path):
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(cpu.ArtifactError, match=str(tmp_path)):
        cpu.trace_model(bert, bert_inputs).save(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "irreplaceable"


def test_a_call_names_the_input_that_is_wrong(bert, bert_inputs):
    traced = cpu.trace_model(bert, bert_inputs)
    with pytest.raises(cpu.InputError, match="'token_type_ids' is missing"):
        traced(input_ids=bert_inputs["input_ids"], attention_mask=bert_inputs["attention_mask"])
    with pytest.raises(cpu.InputError, match="'start_positions' was not among the inputs"):
        traced(**bert_inputs, start_positions=torch.zeros(2, dtype=torch.long))
    traced(**bert_inputs, start_positions=None)


def test_bad_models_and_inputs_are_named(bert, bert_inputs, new_bert):
    training = new_bert().train()
    partly = new_bert()
    partly.bert.encoder.layer[1].train()
    script = torch.jit.trace(torch.nn.Identity(), torch.ones(1))
    three_rows = bert_inputs["token_type_ids"][:1].repeat(3, 1)
    unequal = {**bert_inputs, "token_type_ids": three_rows}
    cases = [
        (training, bert_inputs, "training mode"),
        (partly, bert_inputs, r"training mode \(bert.encoder.layer.1"),
        (script, bert_inputs, "TopLevelTracedModule|ScriptModule"),
        (lambda: None, bert_inputs, "function, not a torch.nn.Module"),
        (bert, {}, "no tensor"),
        (bert, bert_inputs["input_ids"], "mapping"),
        (bert, {**bert_inputs, "pixel_values": torch.ones(2, 3)}, "'pixel_values', which BertForQuestionAnswering"),
        (bert, {"input_ids": bert_inputs["input_ids"].tolist()}, "no tensor|is a list"),
        (bert, unequal, "batch sizes differ: input_ids has 2 rows, token_type_ids has 3"),
        (bert, {"input_ids": torch.tensor(3)}, "batch dimension"),
        (bert, {"input_ids": torch.full((1, 4), 999)}, "itself cannot run"),
    ]
    for model, inputs, message in cases:
        for on_failure in ("fallback", "raise"):
            with pytest.raises(cpu.InputError, match=message):
                cpu.trace_model(model, inputs, on_failure=on_failure)


@pytest.mark.parametrize(("option", "value"), [("input_style", "dict"), ("on_failure", "ignore")])
def test_unknown_choices_are_named(bert, bert_inputs, option, value):
    with pytest.raises(cpu.InputError, match=f"{option} is '{value}'"):
        cpu.trace_model(bert, bert_inputs, **{option: value})


def test_it_shows_itself(bert, bert_inputs):
    traced = cpu.trace_model(bert, bert_inputs)
    assert "traced and frozen, verified" in str(traced)
    answered = cpu.trace_model(RefusesTracing().eval(), {"input_ids": ids()})
    assert "NOT traced" in str(answered) and answered.reason in str(answered)
