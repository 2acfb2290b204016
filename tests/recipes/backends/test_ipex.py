"""The IPEX recipes, prepared in one child process, because IPEX changes the process that imports it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cpuinfer_helpers.machine.switches import native_stdout
from cpuinfer_helpers.recipes import get_recipe, list_recipes, prepare
from cpuinfer_helpers.recipes.backends import ipex
from cpuinfer_helpers.recipes.backends.ipex import HeadsByTranspose, Primitive, parse_primitive
from tests.conftest import make_inputs, seen_in_child
from tests.forks import OK, REFUSED
from tests.isa import needs_bf16_kernels_in_ipex

pytestmark = pytest.mark.cpu

NAMES = ("ipex-fp32", "ipex-bf16", "ipex-int8")
SCENARIOS = Path(__file__).with_name("ipex_scenarios.py")
ROOT = Path(__file__).parents[3]
# Shares of the largest answer. FP32: another order of the same operations. BF16 keeps 8 bits; INT8 has 8 in all.
LARGEST = {"ipex-fp32": 1e-5, "ipex-bf16": 5e-2, "ipex-int8": 0.25}
# Below these an answer would be suspiciously exact for its precision.
SMALLEST = {"ipex-fp32": 0.0, "ipex-bf16": 1e-4, "ipex-int8": 1e-4}

HAS_IPEX = importlib.util.find_spec("intel_extension_for_pytorch") is not None
needs_ipex = pytest.mark.skipif(
    get_recipe("ipex-fp32").why_not is not None, reason=get_recipe("ipex-fp32").why_not or "it can run"
)


# On a CPU without BF16 kernels ipex-bf16 cannot run: the eager model answers, and the reason is given.
WHY_NOT = {name: get_recipe(name).why_not for name in NAMES}


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    # Weights are packed for a number of threads; two that spin while they wait would slow each other down.
    return seen_in_child(str(SCENARIOS), OMP_NUM_THREADS="2", GOMP_SPINCOUNT="0")


# On BERT


@needs_ipex
@pytest.mark.parametrize("name", NAMES)
def test_it_is_prepared_verified_and_frozen(seen: dict[str, Any], name: str) -> None:
    prepared = seen["bert"][name]
    if WHY_NOT[name]:
        assert not prepared["prepared"] and WHY_NOT[name] in prepared["reason"]
        return
    assert prepared["prepared"], prepared["reason"]
    assert prepared["verified"] and prepared["frozen"] and prepared["script_module"]
    assert "IPEX" in prepared["runs"] and prepared["output"] == "QuestionAnsweringModelOutput"
    assert prepared["evidence"]["packed for"].startswith("2 threads")


@needs_ipex
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["errors", "errors_in_thread"])
def test_answers_are_right_on_every_call_shape_and_thread(seen: dict[str, Any], name: str, where: str) -> None:
    errors = seen["bert"][name][where]
    assert len(errors) == 16
    largest, smallest = (0.0, 0.0) if WHY_NOT[name] else (LARGEST[name], SMALLEST[name])
    assert smallest <= max(errors) <= largest


@needs_ipex
@pytest.mark.parametrize("name", NAMES)
def test_the_model_and_the_process_stay_as_they_were(seen: dict[str, Any], name: str) -> None:
    assert seen["bert"][name]["model_unchanged"] and seen["bert"][name]["same_state"]


@needs_ipex
def test_fp32_runs_onednns_fused_linear_layers_and_pytorchs_attention(seen: dict[str, Any]) -> None:
    prepared = seen["bert"]["ipex-fp32"]
    nodes = prepared["nodes"]
    assert prepared["attention"] == "sdpa" and nodes["aten::scaled_dot_product_attention"] == 2
    assert (nodes["ipex_prepack::linear_gelu_run"], nodes["ipex_prepack::linear_add_run"]) == (2, 4)
    # Queries, keys and values of a layer in one, and the head.
    assert nodes["ipex_prepack::linear_run"] == 3
    assert "mkl_sgemm" not in str(prepared)
    assert "ipex_prepack::linear_gelu_run 2" in prepared["evidence"]["IPEX kernels"]
    assert "inner_product f32" in prepared["evidence"]["oneDNN ran"]
    assert prepared["linears"] == {"float32": 9} and set(prepared["weights"]) == {"float32"}


@needs_ipex
@needs_bf16_kernels_in_ipex
def test_bf16_is_bf16_and_fuses_the_scores_of_attention(seen: dict[str, Any]) -> None:
    prepared = seen["bert"]["ipex-bf16"]
    nodes, evidence = prepared["nodes"], prepared["evidence"]
    assert prepared["attention"] == "eager"
    assert nodes["ipex::mha_scores_calc"] == 2 and "ipex::bert_flash_mha" not in nodes
    assert nodes["ipex_prepack::linear_gelu_run"] == 2 and nodes["ipex_prepack::linear_add_run"] == 4
    assert "dil_mha_scores_calc 2" in evidence["IPEX kernels"]
    assert "inner_product bf16" in evidence["oneDNN ran"] and " f32 " not in evidence["oneDNN ran"]
    assert prepared["linears"] == {"bfloat16": 9}
    assert prepared["weights"]["bfloat16"] > prepared["weights"]["float32"]


@needs_ipex
@needs_bf16_kernels_in_ipex
def test_the_larger_fusion_of_attention_is_avoided_on_purpose(seen: dict[str, Any]) -> None:
    prepared = seen["bert"]["whole attention fused"]
    assert prepared["prepared"] and "ipex::mha_scores_calc" not in prepared["nodes"]
    assert prepared["nodes"]["ipex::bert_flash_mha"] == 2
    assert "dil_bert_flash_mha 2" in prepared["evidence"]["IPEX kernels"]


@needs_ipex
def test_int8_multiplies_in_int8(seen: dict[str, Any]) -> None:
    prepared = seen["bert"]["ipex-int8"]
    evidence = prepared["evidence"]
    assert prepared["attention"] == "eager" and prepared["nodes"]["ipex::LlgaFusionGroup"] >= 13
    assert str(prepared["nodes"]["ipex::LlgaFusionGroup"]) in evidence["INT8 partitions"]
    assert prepared["weights"]["qint8"] == 13 and prepared["linears"] == {"uint8": 13}
    assert "matmul u8" in evidence["oneDNN ran"] and " f32 " not in evidence["oneDNN ran"]
    assert evidence["calibrated with"] == "16 rows"


@needs_ipex
@pytest.mark.parametrize("name", NAMES)
def test_a_call_in_a_fork_answers_with_one_thread_and_is_refused_with_more(seen: dict[str, Any], name: str) -> None:
    assert seen["bert"][name]["in a fork"] == {"1": OK, "2": REFUSED}


@needs_ipex
def test_int8_without_calibration_rows_uses_the_example_and_says_so(seen: dict[str, Any]) -> None:
    prepared = seen["bert"]["example only"]
    assert prepared["prepared"] and "the example alone" in prepared["evidence"]["calibrated with"]


@needs_ipex
def test_a_calibration_row_that_does_not_fit_is_named(seen: dict[str, Any]) -> None:
    assert "calibration[8]: 'attention_mask' is missing" in seen["bert"]["bad row"]


@needs_ipex
def test_calibration_has_two_threads_even_where_one_was_set(seen: dict[str, Any]) -> None:
    calibration = seen["calibration"]
    assert calibration["prepared"] and calibration["observed"] == [2] and calibration["after"] == 1


@needs_ipex
def test_another_number_of_threads_is_warned_of_once(seen: dict[str, Any]) -> None:
    (message,) = seen["bert"]["threads"]
    assert "packed for" in message and "torch.set_num_threads" in message


@needs_ipex
@pytest.mark.parametrize("name", NAMES)
def test_the_trained_model_keeps_its_score(seen: dict[str, Any], name: str) -> None:
    score = seen["scores"][name]
    assert score["prepared"] == (WHY_NOT[name] is None)
    assert score["f1"] >= seen["scores"]["eager"] - 1.0
    # Of 60 questions: the small model is unsure of a few, which fall the other way in 8 bits.
    assert score["agreement"] >= {"ipex-fp32": 100.0, "ipex-bf16": 90.0, "ipex-int8": 85.0}[name]


# On other modules


@needs_ipex
@pytest.mark.parametrize("name", NAMES)
def test_convolutions_are_folded_and_the_model_keeps_its_own(seen: dict[str, Any], name: str) -> None:
    prepared = seen["modules"][f"convolution {name}"]
    if WHY_NOT[name]:
        assert WHY_NOT[name] in prepared["reason"] and prepared["model_unchanged"]
        return
    assert prepared["prepared"], prepared["reason"]
    dtype = {"ipex-fp32": "f32", "ipex-bf16": "bf16", "ipex-int8": "u8"}[name]
    assert f"convolution {dtype}" in prepared["evidence"]["oneDNN ran"]
    assert "aten::batch_norm" not in prepared["nodes"] and prepared["model_unchanged"]


@needs_ipex
def test_what_did_not_run_in_its_precision_is_refused(seen: dict[str, Any]) -> None:
    reasons = {kind: seen["modules"][kind]["reason"] for kind in seen["modules"]}
    assert (WHY_NOT["ipex-bf16"] or "no matrix product ran in BF16") in reasons["no product ipex-bf16"]
    assert "LlgaFusionGroup" in reasons["no product ipex-int8"]
    for name in NAMES:
        assert (WHY_NOT[name] or "no kernel of IPEX ran") in reasons[f"nothing {name}"]


@needs_ipex
@pytest.mark.parametrize("name", NAMES)
def test_an_encoder_layer_gives_right_answers_or_falls_back(seen: dict[str, Any], name: str) -> None:
    prepared = seen["modules"][f"encoder layer {name}"]
    assert prepared["model_unchanged"]
    why = WHY_NOT[name] or "does not give the model's answers"
    assert prepared["verified"] if prepared["prepared"] else why in prepared["reason"]
    if name == "ipex-fp32":
        assert prepared["prepared"]


# Without IPEX


@pytest.mark.skipif(HAS_IPEX, reason="IPEX is installed")
@pytest.mark.parametrize("name", NAMES)
def test_without_ipex_the_model_answers_and_the_reason_is_given(name: str, bert: Any) -> None:
    inputs = make_inputs()
    prepared = prepare(name, bert, inputs)
    assert not prepared.prepared
    assert "intel-extension-for-pytorch is not installed; pip install" in prepared.reason
    with torch.no_grad():
        assert torch.equal(prepared(**inputs).start_logits, bert(**inputs).start_logits)
    row = next(row for row in list_recipes().table().rows if row[0] == name)
    assert row[3].startswith("cannot run: intel-extension-for-pytorch")


def test_asking_whether_it_can_run_does_not_import_it() -> None:
    code = (
        "import sys\nfrom cpuinfer_helpers.recipes import list_recipes\n"
        "str(list_recipes())\nassert 'intel_extension_for_pytorch' not in sys.modules"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert child.returncode == 0, child.stderr


def test_obstacles_are_found_before_an_import_that_would_end_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(torch, "__version__", "2.9.1+cpu")
        assert ipex._obstacle() == "IPEX 2.8 needs torch 2.8; torch 2.9.1+cpu is installed"
    monkeypatch.setattr(torch, "__version__", "2.8.0+cpu")
    monkeypatch.setattr(ipex.sys, "platform", "linux")
    monkeypatch.setattr(ipex.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(ipex, "detect_isa", lambda: ("AVX2",))
    assert ipex._obstacle() is None
    with monkeypatch.context() as patched:
        patched.setattr(ipex, "detect_isa", lambda: ())
        assert "AVX2" in ipex._obstacle()
    with monkeypatch.context() as patched:
        patched.setattr(ipex.platform, "machine", lambda: "aarch64")
        assert "x86-64" in ipex._obstacle() and "aarch64" in ipex._obstacle()
    monkeypatch.setattr(ipex.sys, "platform", "darwin")
    assert "Linux" in ipex._obstacle()


# Its parts


def test_heads_by_transpose_records_the_same_view() -> None:
    def split(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        heads = x.view(2, 5, 3, 4)
        return heads.permute(0, 2, 1, 3), heads.permute((0, 2, 1, 3)), heads.permute(0, 1, 3, 2), x.permute(0, 2, 1)

    x = torch.randn(2, 5, 12)
    plain = torch.jit.trace(split, (x,))
    with HeadsByTranspose():
        traced = torch.jit.trace(split, (x,), check_trace=False)
    kinds = [node.kind() for node in traced.graph.nodes()]
    assert (kinds.count("aten::transpose"), kinds.count("aten::permute")) == (2, 2)
    assert "aten::transpose" not in str(plain.graph)
    for seen, wanted in zip(traced(x), plain(x), strict=True):
        assert torch.equal(seen, wanted) and seen.stride() == wanted.stride()


@pytest.mark.parametrize(
    ("line", "primitive"),
    [
        (
            "onednn_verbose,v1,primitive,exec,cpu,inner_product,brgemm:avx512_core_bf16,forward_inference,"
            "src:bf16::blocked:ab::f0 wei:bf16:p:blocked:AB8b64a2b::f0 dst:bf16::blocked:ab::f0,"
            "attr-scratchpad:user,,mb24ic32oc96,0.002",
            Primitive("inner_product", "brgemm:avx512_core_bf16", "bf16", True),
        ),
        (
            "onednn_verbose,v1,primitive,exec,cpu,matmul,brg_matmul:avx512_core_vnni,undef,"
            "src:u8:a:blocked:ab::f0 wei:s8:ap:blocked:AB16a64b4a::f8:zpm2 dst:u8:a:blocked:ab::f0,"
            "attr-scratchpad:user,,24x32:32x96,0.002",
            Primitive("matmul", "brg_matmul:avx512_core_vnni", "u8", True),
        ),
        (
            "onednn_verbose,v1,primitive,exec,cpu,matmul,brg_matmul:avx512_core_bf16,undef,"
            "src:bf16::blocked:acbd::f0 wei:bf16::blocked:adbc::f0 dst:bf16::blocked:abcd::f0,"
            "attr-scratchpad:user,,2x2x12x16:2x2x16x12,0.003",
            Primitive("matmul", "brg_matmul:avx512_core_bf16", "bf16", False),
        ),
        (
            "onednn_verbose,exec,cpu,convolution,brgconv:avx512_core,forward_inference,"
            "src_f32::blocked:acdb:f0 wei_f32::blocked:Acdb16a:f0,attr-scratchpad:user,alg:convolution_direct,"
            "mb2_ic3oc8_ih12oh10kh3sh1dh0ph0,0.01",
            Primitive("convolution", "brgconv:avx512_core", "f32", False),
        ),
        ("onednn_verbose,v1,info,oneDNN v3.7.2 (commit N/A)", None),
        (
            "onednn_verbose,v1,graph,exec,cpu,100197,quantized_matmul_post_ops,aten::linear,,in0_u8:0:strided,"
            "fpm:strict,matmul_t,dnnl_backend,0",
            None,
        ),
        ("onednn_verbose,v1,primitive,create:cache_miss,cpu,inner_product,brgemm,x,src:f32,a,,mb1,0.1", None),
        ("something,exec,cpu,matmul,else,entirely,src:f32,a,,1x1:1x1,0", None),
    ],
)
def test_onednns_report_is_read(line: str, primitive: Primitive | None) -> None:
    assert parse_primitive(line) == primitive


def test_native_output_is_collected_and_the_place_it_goes_to_restored(capfd: pytest.CaptureFixture[str]) -> None:
    os.write(1, b"before\n")
    with pytest.raises(ValueError, match="half way"), native_stdout() as lines:
        os.write(1, b"inside\nand more\n")
        raise ValueError("half way")
    os.write(1, b"after\n")
    assert lines == ["inside", "and more"]
    assert capfd.readouterr().out == "before\nafter\n"
