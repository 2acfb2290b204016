"""What the report says of small models under IPEX; they run in one child process.

Without AVX512 the same nodes are found, and the kernels that are written for it run their slow branch.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cpuinfer_helpers.fusion import FusionReport
from cpuinfer_helpers.saving.plain import read
from tests.isa import NO_AVX512_LOOPS, NO_BF16_KERNELS_IN_IPEX, needs_bf16_kernels_in_ipex

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(importlib.util.find_spec("intel_extension_for_pytorch") is None, reason="IPEX is not installed"),
]
BF16 = {"marks": needs_bf16_kernels_in_ipex}


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    child = subprocess.run(
        [sys.executable, "-m", "tests.fusion.ipex_cases"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def reports(told: dict[str, Any]) -> dict[str, FusionReport]:
    return {name: read(FusionReport, data, name) for name, data in told["reports"].items()}


def assert_loops_fused(report: FusionReport, pattern: str, count: int) -> None:
    """A pattern whose kernel is written for AVX512: found in any case, fused where the process may use AVX512."""
    assert report[pattern].found == count
    if NO_AVX512_LOOPS is None:
        assert report.counts[pattern] == count
        return
    assert (report.counts[pattern], report[pattern].events, report[pattern].share) == (0, {}, 0)
    assert report[pattern].why_not[0] == f"the fast kernel needs AVX512: {NO_AVX512_LOOPS}"
    assert not any("not known" in cause for cause in report[pattern].why_not)


def test_what_holds_ipex_back_is_known_without_asking_it(told: dict[str, Any]) -> None:
    assert told["ipex"]["bf16"] == (NO_BF16_KERNELS_IN_IPEX is None)
    assert told["ipex"]["loops"].startswith(("AVX512", "AMX")) == (NO_AVX512_LOOPS is None)


def why_not(report: FusionReport, pattern: str) -> str:
    return "; ".join(report[pattern].why_not)


@pytest.mark.parametrize(
    ("name", "attention"), [("bert fp32", "mha_scores_calc"), pytest.param("bert bf16", "bert_flash_mha", **BF16)]
)
def test_bert(reports: dict[str, FusionReport], name: str, attention: str) -> None:
    """Two layers: each has one attention, one joined linear, two additions and one GELU."""
    report = reports[name]
    assert report["multi-head attention"].nodes == {f"ipex::{attention}": 2}
    assert_loops_fused(report, "multi-head attention", 2)
    assert {pattern: count for pattern, count in report.counts.items() if pattern != "multi-head attention"} == {
        "concat linear": 2,
        "linear+add": 4,
        "linear+gelu": 2,
        "add+layernorm": 0,
        "oneDNN Graph partition": 0,
    }
    if NO_AVX512_LOOPS is None:
        assert report["multi-head attention"].events[f"dil_{attention}"] == 2
    assert report["linear+add"].events == {"ipex_prepack::linear_add_run": 4}
    # One linear layer of the three for start and end is not joined.
    assert report["concat linear"].events == {"ipex_prepack::linear_run": 2}
    assert why_not(report, "add+layernorm").startswith("the Add was taken by Linear+Add before 4 of 5 layer norms")
    assert "aten::add_" in why_not(report, "add+layernorm")
    assert all(0 < finding.share < 1 for finding in report.findings if finding.fused)
    assert not report["linear+add"].why_not


SCORES = [(("matmul", "div", "add", "softmax"), "mha_scores_calc"), (("matmul",), "matmul_outtrans")]
WHOLE = [(("matmul", "div", "add", "softmax", "matmul"), "bert_flash_mha")]


@pytest.mark.parametrize(("name", "attention"), [("bert fp32", SCORES), pytest.param("bert bf16", WHOLE, **BF16)])
def test_layer_of_bert(reports: dict[str, FusionReport], name: str, attention: list[tuple[tuple[str], str]]) -> None:
    picture = reports[name].layer_picture()
    assert picture.layers == 2
    first, *others = attention
    assert [(row.before, row.after.rpartition("::")[2], row.pattern) for row in picture.rows] == [
        (("linear",) * 3, "linear_run", "concat linear"),
        (*first, "multi-head attention"),
        *((*other, "") for other in others),
        (("linear", "add"), "linear_add_run", "linear+add"),
        (("layer_norm",), "layer_norm", ""),
        (("linear", "gelu"), "linear_gelu_run", "linear+gelu"),
        (("linear", "add"), "linear_add_run", "linear+add"),
        (("layer_norm",), "layer_norm", ""),
    ]


def test_sdpa_and_mkl_are_named(reports: dict[str, FusionReport]) -> None:
    report = reports["bert mkl"]
    assert report.stock_attention == {"aten::scaled_dot_product_attention": 2}
    assert why_not(report, "multi-head attention").startswith("SDPA attention: 2 x aten::scaled_dot_product_attention")
    for pattern in ("linear+add", "linear+gelu"):
        assert report.counts[pattern] == 0
        # Two layers of joined, output and two feed-forward linears, and the one for start and end.
        assert why_not(report, pattern).startswith("MKL linear: 9 x ipex_prepack::mkl_sgemm_run")
    assert report.counts["concat linear"] == 2
    assert_loops_fused(report, "add+layernorm", 4)


def test_a_model_without_ipex_optimize(reports: dict[str, FusionReport]) -> None:
    report = reports["bert not optimized"]
    assert why_not(report, "linear+gelu") == "no ipex.optimize: 9 linear layers are plain aten::linear"
    assert_loops_fused(report, "multi-head attention", 2)
    assert report["concat linear"].nodes == {"aten::linear": 2}


def test_a_module_that_is_not_frozen(reports: dict[str, FusionReport]) -> None:
    report = reports["bert not frozen"]
    assert report.counts["concat linear"] == 0
    assert why_not(report, "concat linear").startswith("not frozen: ")
    assert report.counts["linear+add"] == 4


def test_one_call_is_too_few(reports: dict[str, FusionReport]) -> None:
    report = reports["bert one call"]
    assert set(report.counts.values()) == {0}
    assert all(why_not(report, pattern).startswith("too few calls") for pattern in report.counts)


def test_an_add_in_place_is_left_alone(reports: dict[str, FusionReport]) -> None:
    report = reports["add in place"]
    assert report["add+layernorm"].found == 0
    assert why_not(report, "add+layernorm").startswith("in place: 1 x aten::add_")


@pytest.mark.parametrize(
    ("name", "pattern", "seen", "cause"),
    [
        ("add of another shape", "add+layernorm", "aten::layer_norm", "differ in shape: 2 x 16 x 64 and 64"),
        ("expanded mask", "multi-head attention", "dil_softmax", "the mask is expanded"),
        ("mask handed in expanded", "multi-head attention", "dil_softmax", "the mask is expanded"),
        pytest.param(
            "fp32 mask in bf16",
            "multi-head attention",
            "aten::softmax",
            "mask of float to scores of c10::BFloat16",
            **BF16,
        ),
    ],
)
def test_a_node_whose_fast_kernel_did_not_run_is_not_fused(
    reports: dict[str, FusionReport], name: str, pattern: str, seen: str, cause: str
) -> None:
    finding = reports[name][pattern]
    assert (finding.found, finding.fused, finding.events, finding.share) == (1, 0, {}, 0)
    assert f"the fast kernel did not run: {seen} inside dil_" in "; ".join(finding.why_not)
    assert cause in "; ".join(finding.why_not)
    # It would keep the slow branch on a better CPU as well.
    assert ("AVX512 alone would not help: " in "; ".join(finding.why_not)) == (NO_AVX512_LOOPS is not None)


def test_a_split_of_the_models_own_is_no_fusion(reports: dict[str, FusionReport]) -> None:
    assert reports["own split"].counts["concat linear"] == 0
    assert why_not(reports["own split"], "concat linear") == "nothing to fuse: no two linear layers share an input"


@pytest.mark.parametrize("name", ["distilbert fp32", pytest.param("distilbert bf16", **BF16)])
def test_distilbert(reports: dict[str, FusionReport], name: str) -> None:
    """Its mask is computed once, in the first layer; its embeddings add one row of positions to all rows."""
    report = reports[name]
    assert report["multi-head attention"].nodes == {"ipex::distil_mha_scores_calc": 3}
    assert_loops_fused(report, "multi-head attention", 3)
    assert report.counts["linear+add"] == 6
    assert "differ in shape: 2 x 16 x 64 and 1 x 16 x 64" in why_not(report, "add+layernorm")
    assert report.layer_picture().layers == 3
    rows = report.layer_picture().rows
    assert (rows[0].before, rows[0].pattern) == (("linear",) * 3, "concat linear")
    assert rows[1].before == ("div", "matmul", "masked_fill", "softmax")


def test_int8(reports: dict[str, FusionReport]) -> None:
    report = reports["bert int8"]
    found = report["oneDNN Graph partition"]
    assert found.fused == found.found == found.nodes["ipex::LlgaFusionGroup"] > 10
    assert sum(found.events.values()) == found.fused
    assert why_not(report, "linear+gelu") == "inside oneDNN Graph partitions instead: 2 hold gelu and linear"
    assert "13 linear layers are inside oneDNN Graph partitions" in why_not(report, "concat linear")
    assert "by a oneDNN Graph partition before" in why_not(report, "add+layernorm")
    assert "not known" not in str(report)
