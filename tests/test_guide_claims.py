"""One test for each thing that the guide says, on small real models; the README shows the list.

Claims about speed are measured in the notebooks and reported, not asserted: a test that depends on timing is no test.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers import cpp
from cpuinfer_helpers.fusion.prove import prove_patterns


def tokenizer_order(inputs):
    """BERT's tokenizer names the segments before the mask; its forward takes the mask before the segments."""
    return {name: inputs[name] for name in ("input_ids", "token_type_ids", "attention_mask")}


def test_torchscript_is_serializable_from_a_python_process(bert, bert_inputs, tmp_path):
    traced = cpu.trace_model(bert, bert_inputs)
    traced.save(tmp_path / "saved")
    script = (
        "import sys, torch, cpuinfer_helpers as cpu; traced = cpu.TracedModel.load(sys.argv[1]); "
        "print(isinstance(traced.module, torch.jit.ScriptModule), 'transformers.models.bert' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "saved")]
    folder = Path(cpu.__file__).parents[1]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    # A ScriptModule it is, and the model's own Python code was not needed to load it.
    assert result.stdout.split() == ["True", "False"]


@pytest.mark.skipif(cpp.find_compiler() is None, reason="no C++ compiler is installed")
def test_a_torchscript_program_runs_where_there_is_no_python(bert, bert_inputs, tmp_path):
    traced = cpu.trace_model(bert, bert_inputs)
    result = cpp.run(cpp.build(tmp_path), traced.module, bert_inputs)
    assert not result.has_python
    expected = bert(**bert_inputs).start_logits.detach()
    torch.testing.assert_close(result.outputs["start_logits"], expected, rtol=1e-5, atol=1e-6)


def test_dict_inputs_are_supported_in_jit_trace_so_order_does_not_matter(bert, bert_inputs):
    for inputs in (bert_inputs, tokenizer_order(bert_inputs), dict(reversed(bert_inputs.items()))):
        traced = cpu.trace_model(bert, inputs)
        assert traced.traced and traced.receipt.verified


def test_tuple_inputs_work_where_the_order_matches_the_forward_parameters(bert, bert_inputs):
    traced = cpu.trace_model(bert, bert_inputs, input_style="tuple")
    assert traced.traced and traced.receipt.verified


def test_tuple_inputs_with_labels_first_fail_in_jit_trace(new_bert, bert_inputs):
    """The guide's example: a text classification batch, whose order does not match."""
    model = new_bert("BertForSequenceClassification")
    batch = (torch.zeros(2, dtype=torch.long), bert_inputs["input_ids"], bert_inputs["attention_mask"])
    with pytest.raises((RuntimeError, ValueError, IndexError, TypeError)):
        torch.jit.trace(model, batch, strict=False)


def test_the_failure_is_caught_falls_back_and_is_logged(new_bert, bert_inputs, caplog):
    model = new_bert("BertForSequenceClassification")
    batch = {"labels": torch.zeros(2, dtype=torch.long), **bert_inputs}
    answered = cpu.trace_model(model, batch, input_style="tuple")
    assert not answered.traced
    assert "'labels'" in answered.reason and answered.reason in caplog.text
    torch.testing.assert_close(answered(**bert_inputs).logits, model(**bert_inputs).logits.detach())


def test_the_guide_does_not_say_that_a_wrong_order_can_also_be_silent(bert, bert_inputs):
    """A question answering batch in the tokenizer's order: plain jit.trace takes it, and segments become the mask."""
    inputs = tokenizer_order(bert_inputs)
    with torch.no_grad():
        traced = torch.jit.trace(bert, tuple(inputs.values()), strict=False)
        silent = traced(*inputs.values())["start_logits"]
        assert torch.allclose(silent, bert(*inputs.values()).start_logits, atol=1e-5)
        assert not torch.allclose(silent, bert(**inputs).start_logits, atol=1e-3)
    assert not cpu.trace_model(bert, inputs, input_style="tuple").traced


# What the guide says of IPEX: five fusions, in FP32 and in BF16. IPEX changes the process, so each runs in a child.
NO_IPEX = cpu.get_recipe("ipex-fp32").why_not
needs_ipex = pytest.mark.skipif(NO_IPEX is not None, reason=str(NO_IPEX))
FIVE_PATTERNS = ("multi-head attention", "concat linear", "linear+add", "linear+gelu", "add+layernorm")


@pytest.fixture(scope="module")
def proofs():
    return {(proof.pattern, proof.precision): proof for proof in prove_patterns().proofs}


@needs_ipex
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("pattern", FIVE_PATTERNS)
def test_ipex_fuses_each_of_the_five_patterns(proofs, pattern, precision):
    proof = proofs[pattern, precision]
    assert proof.proven, proof.why_not
    assert sum(proof.report[pattern].events.values()) > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stock_pytorch_has_onednn_graph_instead(proofs, precision):
    proof = proofs["oneDNN Graph partition", precision]
    assert proof.proven, proof.why_not


@pytest.fixture(scope="module")
def comparison(bert):
    recipes = ["ipex-fp32", "ipex-bf16", "onednn-graph-fp32", "onednn-graph-bf16"]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 120, (2, 16), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    return cpu.compare(bert, inputs, recipes, budget_s=0.2, measure_roofline=False)


@needs_ipex
@pytest.mark.parametrize(("recipe", "dtype"), [("ipex-fp32", "float32"), ("ipex-bf16", "bfloat16")])
def test_ipex_runs_a_whole_model_in_fp32_and_in_bf16(comparison, recipe, dtype):
    row = comparison.rows[recipe]
    assert row.successful, row.status
    assert row.receipt.verified
    # 12 linear layers and the head; IPEX makes one of queries, keys and values.
    assert max(row.receipt.linear_dtypes, key=row.receipt.linear_dtypes.get) == dtype


@pytest.mark.parametrize(("recipe", "dtype"), [("onednn-graph-fp32", "float32"), ("onednn-graph-bf16", "bfloat16")])
def test_stock_pytorch_runs_a_whole_model_in_fp32_and_in_bf16(comparison, recipe, dtype):
    reason = cpu.get_recipe(recipe).why_not
    if reason:
        pytest.skip(reason)
    row = comparison.rows[recipe]
    assert row.successful, row.status
    assert row.receipt.verified
    assert row.receipt.linear_dtypes[dtype] >= 8
