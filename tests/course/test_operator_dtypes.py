"""Which operator ran in which dtype, on a small BERT in FP32, under autocast and with BF16 weights."""

from __future__ import annotations

import pytest
import torch

from cpuinfer_helpers.course.operator_dtypes import OperatorDtypes, operator_dtypes
from cpuinfer_helpers.interface.copies import cast_copy
from tests.conftest import make_bert

LINEAR_LAYERS = 2 * 6 + 1
LAYER_NORMS = 2 * 2 + 1


@pytest.fixture(scope="module")
def autocast(eager_bert: torch.nn.Module) -> OperatorDtypes:
    inputs = {"input_ids": torch.full((2, 12), 7), "attention_mask": torch.ones(2, 12, dtype=torch.long)}
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        return operator_dtypes(eager_bert, inputs)


def test_without_autocast_everything_is_fp32_and_nothing_is_cast(bert, bert_inputs):
    seen = operator_dtypes(bert, bert_inputs)
    assert all(set(row.calls) == {"FP32"} for row in seen.operators.values())
    assert seen.casts == {} and seen.cast_seconds == 0.0
    assert seen.operators["linear"].calls == {"FP32": LINEAR_LAYERS}
    assert seen.dtypes("scaled_dot_product_attention") == {"FP32"}


def test_autocast_runs_products_in_bf16_and_residuals_stay_fp32(autocast):
    assert autocast.operators["linear"].calls == {"BF16": LINEAR_LAYERS}
    assert autocast.dtypes("matmul") == {"BF16"}
    # Not because autocast would cast its input: that is a sum with the FP32 residual.
    assert autocast.operators["layer_norm"].calls == {"FP32": LAYER_NORMS}


@pytest.mark.parametrize(("dtype", "shown"), [(torch.float32, "FP32"), (torch.bfloat16, "BF16")])
def test_softmax_is_shown_in_the_dtype_in_which_it_is_computed(dtype, shown):
    class Softmax(torch.nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return torch.softmax(values, -1, dtype=dtype)

    seen = operator_dtypes(Softmax(), {"values": torch.ones(2, 8, dtype=torch.bfloat16)})
    assert seen.operators["softmax"].calls == {shown: 1}


def test_autocast_without_cache_casts_every_weight_and_bias(autocast):
    assert autocast.casts["FP32 to BF16"] >= 2 * LINEAR_LAYERS
    assert 0.0 < autocast.cast_seconds < autocast.seconds


def test_autocast_with_cache_has_cast_the_weights_before(eager_bert, bert_inputs, autocast):
    # The cache keeps parameters that could be trained.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = operator_dtypes(eager_bert, bert_inputs)
    assert seen.casts["FP32 to BF16"] <= autocast.casts["FP32 to BF16"] - 2 * LINEAR_LAYERS


def test_bf16_weights_leave_nothing_to_cast(bert_inputs):
    seen = operator_dtypes(cast_copy(make_bert(), torch.bfloat16), bert_inputs)
    assert seen.dtypes("linear") == seen.dtypes("layer_norm") == {"BF16"}
    assert seen.casts == {}


def test_a_trace_is_seen_too(eager_bert, bert_inputs):
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        module = torch.jit.trace(eager_bert, example_kwarg_inputs=bert_inputs, strict=False, check_trace=False)
    seen = operator_dtypes(module, bert_inputs)
    assert seen.operators["linear"].calls == {"BF16": LINEAR_LAYERS}
    assert seen.dtypes("layer_norm") == {"FP32"}


def test_the_table_has_a_row_for_each_operator_and_one_for_casts(autocast):
    table = autocast.table()
    rows = {row[0]: row for row in table.rows}
    assert rows["linear"][1] == f"BF16: {LINEAR_LAYERS}"
    assert rows["(casts)"][1].startswith("FP32 to BF16: ")
    assert sum(float(row[2].rstrip("%")) for row in table.rows) <= 101.0
    assert autocast.dtypes("conv2d") == frozenset()
