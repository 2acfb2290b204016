"""A CPU held back to AVX2 and below: seen, said, and the answers stay right."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from cpuinfer_helpers.machine import instructions
from cpuinfer_helpers.machine.report import detect_isa
from cpuinfer_helpers.recipes import get_recipe
from tests.conftest import seen_in_child

pytestmark = pytest.mark.skipif("AVX2" not in detect_isa(), reason="the variables cap instruction sets of x86 CPUs")

SEE = """
import json, sys
import cpuinfer_helpers as cpu
from cpuinfer_helpers.commands import doctor
from cpuinfer_helpers.tracing.trace import trace_model
from tests.faults.harm import Layers, example

model = Layers().eval()
report = cpu.machine_report()
recipes = {recipe.name: recipe for recipe in cpu.list_recipes()}
seen = {
    "caps": dict(report.isa_caps),
    "capability": __import__("torch").backends.cpu.get_cpu_capability(),
    "bf16": report.bf16_native,
    "line": report.one_line(),
    "doctor": str(doctor._cpu(report)),
    "recipes": {},
}
for name in sys.argv[1:]:
    recipe = recipes[name]
    prepared = cpu.prepare(name, model, example(), calibration=[example()])
    right = model(**example())["logits"]
    seen["recipes"][name] = {
        "emulated": recipe.emulated,
        "why not": recipe.why_not,
        "reason": prepared.reason,
        "verified": prepared.receipt.verified,
        "evidence": dict(prepared.receipt.evidence),
        "error": (prepared(**example(3))["logits"] - model(**example(3))["logits"]).abs().max().item(),
    }
print("SEEN", json.dumps(seen))
"""
FP32 = ("eager-fp32", "torchscript-fp32", "onednn-graph-fp32")
BF16 = ("eager-bf16", "torchscript-bf16", "onednn-graph-bf16")
# Answers are about one; BF16 keeps 8 bits, and FP32 kernels differ in the order of additions.
TOLERANCE = {"fp32": 1e-6, "bf16": 2e-2, "int8": 0.2}


def check_answers(recipes: dict[str, dict[str, Any]]) -> None:
    for name, seen in recipes.items():
        assert seen["verified"] or seen["reason"], name
        assert seen["error"] <= TOLERANCE[name.rpartition("-")[2]], name


def check_cause(told: str) -> None:
    """What the CPU has is held back by the variable; what it has not is no fault of a variable."""
    held_back = instructions.is_native("bf16", detect_isa())
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in told if held_back else "CPU" in told


def see(*recipes: str, **caps: str) -> dict[str, Any]:
    """With only these caps, whatever the tests were started with."""
    none = dict.fromkeys(instructions.CAPS, "")
    return seen_in_child("-c", SEE, *recipes, **{**none, **caps})


def test_a_cpu_with_avx2_only():
    seen = see(*FP32, *BF16, ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2")
    assert seen["caps"] == {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    assert seen["capability"] == "AVX2", "PyTorch itself has taken notice"
    assert not seen["bf16"] and "BF16 emulated" in seen["line"]
    assert "held back by ATEN_CPU_CAPABILITY=avx2, ONEDNN_MAX_CPU_ISA=AVX2" in seen["doctor"]
    recipes = seen["recipes"]
    check_answers(recipes)
    for name in FP32:
        assert recipes[name]["verified"] and not recipes[name]["emulated"]
    for name in BF16:
        assert recipes[name]["emulated"]
        check_cause(recipes[name]["evidence"].get("BF16") or recipes[name]["reason"])
    for name in BF16[:2]:
        assert recipes[name]["evidence"]["BF16"].startswith("emulated: ") and recipes[name]["verified"]
    # oneDNN itself refuses BF16 below AVX512, unless the CPU has AVX-NE-CONVERT.
    refused = recipes["onednn-graph-bf16"]
    assert refused["why not"] is None or refused["why not"].startswith("oneDNN has no BF16 kernels ")


def test_pytorchs_own_kernels_without_any_vectors():
    """The cap of PyTorch's kernels is not one of oneDNN's, where matrix products run: BF16 stays what it is."""
    seen = see(*FP32, "eager-bf16", ATEN_CPU_CAPABILITY="default")
    assert seen["caps"] == {"ATEN_CPU_CAPABILITY": "default"}
    assert seen["capability"] in ("DEFAULT", "NO AVX")
    assert "held back by ATEN_CPU_CAPABILITY=default" in seen["doctor"]
    check_answers(seen["recipes"])
    for name in FP32:
        assert seen["recipes"][name]["verified"] and not seen["recipes"][name]["emulated"]
    assert seen["recipes"]["eager-bf16"]["emulated"] != seen["bf16"]


def test_ipex_on_a_cpu_with_avx2_only():
    if find_spec("intel_extension_for_pytorch") is None:
        pytest.skip("IPEX is not installed; it needs torch 2.8")
    names = ("ipex-fp32", "ipex-bf16")
    recipes = see(*names, ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2")["recipes"]
    check_answers(recipes)
    assert recipes["ipex-fp32"]["verified"] and "avx512" not in recipes["ipex-fp32"]["evidence"]["oneDNN ran"]
    assert recipes["ipex-bf16"]["emulated"]
    check_cause(recipes["ipex-bf16"]["evidence"].get("BF16") or recipes["ipex-bf16"]["reason"])


INT8 = """
import json, sys, torch
import cpuinfer_helpers as cpu

class Ones(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(64, 64), torch.nn.Linear(64, 32)
        for layer in (self.first, self.second):
            torch.nn.init.ones_(layer.weight)

    def forward(self, values):
        return {"logits": self.second(torch.relu(self.first(values)))}

torch.manual_seed(0)
model, rows = Ones().eval(), [{"values": 1 - 0.1 * torch.rand(4, 64)} for _ in range(5)]
seen = {}
for name in sys.argv[1:]:
    prepared = cpu.prepare(name, model, rows[0], calibration=rows[1:], on_failure="raise")
    wanted, got = model(**rows[0])["logits"], prepared(**rows[0])["logits"]
    error = ((got - wanted).abs().max() / wanted.abs().max()).item()
    seen[name] = [error, prepared.receipt.evidence.get("weights", "")]
print("SEEN", json.dumps(seen))
"""


def test_without_vnni_no_sum_of_int8_products_overflows():
    """Largest weights and inputs: pairs of products in 16 bits lose half of every sum unless the weights leave room."""
    names = [name for name in ("ipex-int8", "openvino-int8", "onnxruntime-int8") if get_recipe(name).can_run]
    caps = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OV_CPU_MAX_ISA": "AVX2"}
    for name, (error, weights) in seen_in_child("-c", INT8, *names, **caps).items():
        # Of each number one step of 127 or 255 is lost at most, in two layers.
        assert error < 0.03, name
        assert weights.startswith("7 of 8 bits"), name
