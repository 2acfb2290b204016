"""The BetterTransformer recipes: what their receipts prove, and how they fall back."""

from __future__ import annotations

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.recipes.backends import bettertransformer as recipes
from cpuinfer_helpers.verification.agreement import label_agreement, max_error
from tests.bettertransformer.families import AUDIO, make
from tests.conftest import make_bert, make_inputs
from tests.isa import needs_bf16_kernels
from tests.optimize.saving_cases import by_hand
from tests.recipes.peers import Rectifier, errors, features, nothing_changes

pytestmark = pytest.mark.cpu
NAMES = [
    "bettertransformer-fp32",
    pytest.param("bettertransformer-bf16", marks=needs_bf16_kernels),
]
# As a share of the largest answer. FP32: the same products in another order. BF16: 8 bits of each.
TOLERANCE = {"bettertransformer-fp32": 1e-5, "bettertransformer-bf16": 5e-2}
SIZES = {"num_attention_heads": 4, "initializer_range": 0.2}


@pytest.fixture(scope="module", params=NAMES)
def prepared(request):
    model = make_bert(**SIZES)
    with nothing_changes(model):
        return cpu.prepare(request.param, model, make_inputs(), on_failure="raise"), model


def test_it_is_verified_and_gives_the_models_answers(prepared):
    result, model = prepared
    assert result.receipt.verified
    for batch, length in ((1, 12), (3, 30), (2, 64)):
        inputs = make_inputs(batch, length)
        assert errors(result, model, inputs) <= TOLERANCE[result.recipe]
        assert type(result(**inputs)) is type(model(**inputs))
        assert result(**inputs).start_logits.dtype == torch.float32


def test_the_receipt_proves_fast_path_nested_tensors_and_dtype(prepared):
    receipt = prepared[0].receipt
    precision = prepared[0].recipe.rpartition("-")[2].upper()
    assert receipt.evidence["fast path, example"] == f"2 layers in {precision}, no nested tensors"
    assert receipt.evidence["fast path, padded"] == f"2 layers in {precision}, nested tensors"
    assert list(receipt.weight_dtypes) == [{"FP32": "float32", "BF16": "bfloat16"}[precision]]


@needs_bf16_kernels
def test_bf16_really_computes_in_bf16():
    model = make_bert(**SIZES)
    result = cpu.prepare("bettertransformer-bf16", model, make_inputs(), verify=False, on_failure="raise")
    # FP32 would be a thousand times nearer.
    assert errors(result, model, make_inputs()) > 1e-4


def test_padded_frames_of_recordings_are_not_compared(tmp_path):
    """They are left out, so what stands there is not what the model gives; verified, compared, saved and loaded."""
    model = make("Wav2Vec2ForCTC", {**AUDIO, "feat_extract_norm": "layer"})
    waves, mask = torch.randn(2, 900, generator=torch.Generator().manual_seed(0)), torch.ones(2, 900, dtype=torch.long)
    mask[1, 400:] = 0
    inputs = {"input_values": waves * mask, "attention_mask": mask}
    result = cpu.prepare("bettertransformer-fp32", model, inputs, on_failure="raise")
    assert result.receipt.verified and any(check.name == "padding" and check.passed for check in result.receipt.checks)
    with torch.no_grad():
        wanted, seen = {"logits": model(**inputs).logits}, {"logits": result(**inputs).logits}
    assert max_error([wanted], [seen], [inputs]) > 1e-2
    assert max_error([wanted], [seen], [inputs], model.config) < 1e-4
    assert label_agreement([wanted], [seen], [inputs], model.config)[0] == 100.0
    folder = by_hand("bettertransformer-fp32", model, inputs).save(tmp_path / "model")
    assert max_error([wanted], [{"logits": cpu.load_optimized(folder)(**inputs).logits}], [inputs], model.config) < 1e-4


def test_an_example_that_is_padded_itself_is_taken():
    model = make_bert(**SIZES)
    result = cpu.prepare("bettertransformer-fp32", model, make_inputs(3, padding=5), on_failure="raise")
    assert result.receipt.evidence["fast path, example"] == "2 layers in FP32, nested tensors"


@pytest.mark.parametrize(
    ("settings", "constants", "reason"),
    [
        ({"hidden_act": "gelu_new"}, {}, "activation"),
        ({"num_attention_heads": 1}, {}, "1 attention heads"),
        ({"output_hidden_states": True}, {}, "output_hidden_states"),
        ({}, {"output_hidden_states": True}, "output_hidden_states"),
    ],
)
def test_what_cannot_be_converted_falls_back_with_the_reason(settings, constants, reason, caplog):
    model = make_bert(**{**SIZES, **settings})
    result = cpu.prepare("bettertransformer-fp32", model, {**make_inputs(), **constants})
    assert not result.prepared
    assert reason in result.reason
    assert reason in caplog.text
    wanted = model(**make_inputs(), **constants)
    assert torch.equal(result(**make_inputs()).start_logits, wanted.start_logits)


def test_any_other_module_falls_back():
    result = cpu.prepare("bettertransformer-fp32", Rectifier().eval(), {"features": features()})
    assert not result.prepared
    assert "no encoder layers" in result.reason


def test_a_fast_path_that_was_not_seen_is_no_success(monkeypatch):
    # A layer with hooks inside is what torch.nn.TransformerEncoderLayer computes the slow way.
    convert = recipes.to_bettertransformer

    def convert_with_hook(model):
        converted = convert(model)
        converted.bert.encoder.layer[1].fast.norm1.register_forward_hook(lambda *_: None)
        return converted

    monkeypatch.setattr(recipes, "to_bettertransformer", convert_with_hook)
    result = cpu.prepare("bettertransformer-fp32", make_bert(**SIZES), make_inputs())
    assert not result.prepared
    assert "the profiler saw 1 layers on the fast path, for 2 calls" in result.reason


def test_a_mask_that_is_ignored_is_found_by_verification(monkeypatch):
    monkeypatch.setattr("cpuinfer_helpers.bettertransformer.layer.valid_positions", lambda *_: None)
    result = cpu.prepare("bettertransformer-fp32", make_bert(**SIZES), make_inputs())
    assert not result.prepared
    assert "padding" in result.reason


def test_a_fast_path_switched_off_is_an_obstacle():
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        assert "switched off" in cpu.get_recipe("bettertransformer-fp32").why_not
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert cpu.get_recipe("bettertransformer-fp32").can_run


def test_a_cpu_without_bf16_kernels_is_told_so(monkeypatch):
    monkeypatch.setattr(recipes.torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert "BF16" in cpu.get_recipe("bettertransformer-bf16").why_not
    assert cpu.get_recipe("bettertransformer-fp32").can_run
