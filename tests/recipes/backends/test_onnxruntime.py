"""ONNX Runtime: real exports of small models, what the optimised model holds, and what the process is left like."""

from __future__ import annotations

import importlib.metadata
import tempfile

import pytest
import torch

from cpuinfer_helpers.errors import RecipeError
from cpuinfer_helpers.recipes import get_recipe, prepare
from cpuinfer_helpers.recipes.backends import onnxruntime
from tests.conftest import make_bert, make_inputs
from tests.recipes.peers import LeavesOneOut, NoProduct, Rectifier, errors, features, nothing_changes

NAMES = ("onnxruntime-fp32", "onnxruntime-int8")
# FP32: rounding in another order. INT8: 8 bits of the range of each tensor, over two layers of random weights.
TOLERANCES = {"onnxruntime-fp32": 1e-4, "onnxruntime-int8": 0.1}

pytestmark = pytest.mark.skipif(
    any(get_recipe(name).why_not for name in NAMES), reason="onnx or ONNX Runtime is not installed"
)


@pytest.fixture(scope="module")
def prepared():
    """Each recipe's small BERT, made once."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = prepare(name, make_bert(), make_inputs(), on_failure="raise")
        return made[name]

    return make


@pytest.mark.parametrize("name", NAMES)
def test_it_gives_the_models_answers_on_shapes_it_was_not_made_with(name, prepared, bert):
    for batch, length, padding in ((1, 12, 0), (2, 5, 0), (5, 31, 7), (3, 64, 40)):
        assert errors(prepared(name), bert, make_inputs(batch, length, padding=padding)) <= TOLERANCES[name]


@pytest.mark.parametrize("name", NAMES)
def test_an_example_of_one_row_will_do(name, bert):
    result = prepare(name, bert, make_inputs(1, 9), on_failure="raise")
    assert errors(result, bert, make_inputs(4, 20, padding=6)) <= TOLERANCES[name]


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_drop_in_and_verified(name, prepared, bert, bert_inputs):
    output = prepared(name)(**bert_inputs)
    assert type(output) is type(bert(**bert_inputs))
    assert output.start_logits.dtype == torch.float32
    assert prepared(name).receipt.verified


@pytest.mark.parametrize("name", NAMES)
def test_outputs_survive_the_next_call(name, prepared):
    first = prepared(name)(**make_inputs(seed=1)).start_logits
    kept = first.clone()
    prepared(name)(**make_inputs(seed=2))
    assert torch.equal(first, kept)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_of_another_integer_type_and_slices_are_taken(name, prepared):
    inputs = make_inputs(4)
    expected = prepared(name)(**{key: tensor[1:3].clone() for key, tensor in inputs.items()})
    other = prepared(name)(**{key: tensor.int()[1:3] for key, tensor in inputs.items()})
    assert torch.equal(other.start_logits, expected.start_logits)


def test_the_evidence_names_the_kinds_of_nodes(prepared):
    fp32, int8 = (prepared(name).receipt for name in NAMES)
    # Two layers: six products with weights each, two of activations (one fused with the scale), one for the answers.
    assert fp32.graph_nodes["MatMul"] + fp32.graph_nodes["FusedMatMul"] == 17
    assert "BiasGelu 2" in fp32.evidence["fused nodes"]
    assert "INT8 nodes" not in fp32.evidence
    assert int8.graph_nodes["MatMulIntegerToFloat"] + int8.graph_nodes["DynamicQuantizeMatMul"] == 13
    assert "DynamicQuantizeMatMul" in int8.evidence["INT8 nodes"]


def test_int8_falls_back_where_nothing_can_be_quantised():
    result = prepare("onnxruntime-int8", NoProduct().eval(), {"features": features()})
    assert not result.prepared
    assert "no node of the optimised model computes in INT8" in result.reason


@pytest.mark.parametrize("name", NAMES)
def test_any_module_will_do(name):
    model = Rectifier().eval()
    result = prepare(name, model, {"features": features()}, on_failure="raise")
    assert errors(result, model, {"features": features(9, seed=1)}) <= TOLERANCES[name]


def test_every_dimension_may_vary():
    class Mean(torch.nn.Module):
        def forward(self, signal: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.softmax(signal, dim=-1).mean(1)

    model = Mean().eval()
    result = prepare("onnxruntime-fp32", model, {"signal": torch.ones(2, 5, 7)}, on_failure="raise")
    signal = torch.randn(3, 4, 11, generator=torch.Generator().manual_seed(0))
    assert errors(result, model, {"signal": signal}) <= 1e-5


def test_an_input_that_the_model_ignores():
    model = LeavesOneOut().eval()
    inputs = {"features": features(), "ignored": torch.ones(4, 2)}
    assert errors(prepare("onnxruntime-fp32", model, inputs, on_failure="raise"), model, inputs) <= 1e-4


def test_nested_outputs_come_back_by_name(bert):
    inputs = {**make_inputs(), "output_hidden_states": True}
    result = prepare("onnxruntime-fp32", bert, inputs, on_failure="raise")
    output = result(**make_inputs(3, 7))
    with torch.no_grad():
        wanted = bert(**make_inputs(3, 7), output_hidden_states=True)
    assert len(output.hidden_states) == 3
    torch.testing.assert_close(output.hidden_states[1], wanted.hidden_states[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_weights_too_large_for_one_file_go_into_others(name, monkeypatch, bert):
    """The limit lowered, since a model of 2 GiB is no test."""
    monkeypatch.setattr(onnxruntime, "_LARGE", 0)
    result = prepare(name, bert, make_inputs(), on_failure="raise")
    assert errors(result, bert, make_inputs(3, 20)) <= TOLERANCES[name]


@pytest.mark.parametrize("name", NAMES)
def test_model_and_process_are_left_as_they_were(name, new_bert, bert_inputs, capfd, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = new_bert()
    with nothing_changes(model):
        assert prepare(name, model, bert_inputs, verify=False).prepared
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
@pytest.mark.parametrize("name", NAMES)
def test_without_the_package_it_says_which(name, package, monkeypatch, bert, bert_inputs):
    real = importlib.metadata.version

    def version(wanted):
        if wanted == package:
            raise importlib.metadata.PackageNotFoundError(wanted)
        return real(wanted)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert f"{package} is not installed" in get_recipe(name).why_not
    with pytest.raises(RecipeError, match=f"{package} is not installed"):
        prepare(name, bert, bert_inputs, on_failure="raise")
