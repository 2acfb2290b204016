"""``use_ipex``: ours and transformers' own, in one child process, because IPEX changes the process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cpuinfer_helpers.recipes import get_recipe
from tests.conftest import seen_in_child
from tests.isa import NO_BF16_KERNELS_IN_IPEX, needs_bf16_kernels_in_ipex

WHY_NOT = get_recipe("ipex-fp32").why_not
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")
# FP32: the same sums in another order. BF16 keeps 8 bits of each number; logits here are below 1.
LARGEST = {"": 1e-5, "bf16": 2e-2, "bf16_full_eval": 2e-2}
FLAGS = [pytest.param(flag, marks=needs_bf16_kernels_in_ipex if flag else ()) for flag in LARGEST]


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    return seen_in_child(str(Path(__file__).with_name("ipex_scenarios.py")))


@pytest.mark.parametrize("flag", FLAGS)
def test_with_jit_a_trace_of_ipex_answers(seen: dict[str, Any], flag: str) -> None:
    found = seen["ours"][flag]
    receipt = found["receipt"]
    assert receipt["script_module"] and receipt["reason"] is None and "IPEX kernels" in receipt["evidence"]
    assert found["metrics"]["test_jit_recipe"] == f"ipex-{'bf16' if flag else 'fp32'}"
    assert found["error"] < LARGEST[flag] and (not flag or found["error"] > 1e-5)
    assert set(receipt["linear_dtypes"]) == {"bfloat16" if flag else "float32"}


@pytest.mark.parametrize("flag", FLAGS)
def test_without_jit_the_kernels_of_ipex_answer(seen: dict[str, Any], flag: str) -> None:
    found = seen["untraced"][flag]
    receipt = found["receipt"]
    assert not receipt["script_module"] and receipt["reason"] is None and receipt["evidence"]["IPEX kernels"]
    assert found["metrics"]["test_jit_traced"] is False
    assert found["metrics"]["test_jit_recipe"] == f"ipex-untraced-{'bf16' if flag else 'fp32'}"
    assert found["error"] < LARGEST[flag] and (not flag or found["error"] > 1e-5)


@pytest.mark.cpu
@pytest.mark.skipif(NO_BF16_KERNELS_IN_IPEX is None, reason="IPEX has BF16 kernels here")
@pytest.mark.parametrize(("part", "recipe"), [("ours", "torchscript-bf16"), ("untraced", "eager-bf16")])
@pytest.mark.parametrize("flag", ["bf16", "bf16_full_eval"])
def test_without_bf16_kernels_others_answer_and_say_why(seen: dict[str, Any], part: str, recipe: str, flag: str):
    found = seen[part][flag]
    assert found["metrics"]["test_jit_recipe"] == recipe and found["error"] < LARGEST[flag]
    assert NO_BF16_KERNELS_IN_IPEX in found["receipt"]["reason"]


@pytest.mark.parametrize("part", ["ours", "untraced"])
def test_the_users_model_is_left_alone(seen: dict[str, Any], part: str) -> None:
    for found in seen[part].values():
        assert found["unchanged"] and found["type"] == "Linear"


def test_transformers_own_trainer_beside_it(seen: dict[str, Any]) -> None:
    stock = seen["stock"]
    assert stock["jit_mode_eval"]["jit"] == "done" and stock["jit_mode_eval"]["ipex"] == "not requested"
    assert stock["use_ipex"]["ipex"] == "done" and stock["use_ipex"]["jit"] == "not requested"
    both = stock["jit_mode_eval use_ipex"]
    assert both["jit"] == both["ipex"] == "done" and all(found["unchanged"] for found in stock.values())


def test_training_is_left_to_pytorch(seen: dict[str, Any]) -> None:
    found = seen["trained"]
    assert found["optimised by transformers"] == 0 and found["type"] == "Linear"
    assert found["same model"] and found["recipe"] == "ipex-fp32"
