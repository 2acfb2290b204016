"""What holds instruction sets back from PyTorch, IPEX and the oneDNN that each of them has."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cpuinfer_helpers.machine import report
from cpuinfer_helpers.machine.report import machine_report, no_bf16_kernels

ATEN = "ATEN_CPU_CAPABILITY"
ONEDNN = "ONEDNN_MAX_CPU_ISA"
ALL = ("AVX2", "AVX512", "AVX512_VNNI", "AVX512_BF16")
NEEDED = "they need AVX512 or AVX-NE-CONVERT"


# As seen of IPEX 2.8 and torch 2.8 under each value: both compare the whole word, in small letters.
@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("default", f"{ATEN}=default holds AVX512 back"),
        ("avx2", f"{ATEN}=avx2 holds AVX512 back"),
        ("avx2_vnni", f"{ATEN}=avx2_vnni holds AVX512 back in IPEX"),
        ("avx512", None),
        ("avx512_vnni", None),
        ("amx", None),
        ("AVX2", None),
        ("DEFAULT", None),
        ("nonsense", None),
    ],
)
def test_what_holds_loops_back_from_avx512(value, why):
    report = replace(machine_report(), isa=ALL, isa_caps={ATEN: value})
    assert report.why_no_avx512() == why
    assert replace(report, isa=("AVX2",)).why_no_avx512() == "this CPU has no AVX512"


def test_the_cap_of_onednn_holds_no_loops_back():
    assert replace(machine_report(), isa=ALL, isa_caps={ONEDNN: "AVX2"}).why_no_avx512() is None


@pytest.mark.parametrize(
    ("caps", "supported", "in_pytorch", "in_ipex"),
    [
        ({}, True, None, None),
        ({ONEDNN: "AVX512_CORE"}, True, None, None),
        ({ONEDNN: "AVX2"}, False, f"under {ONEDNN}=AVX2", f"under {ONEDNN}=AVX2"),
        ({ATEN: "avx2"}, True, None, f"under {ATEN}=avx2"),
        ({ATEN: "avx2_vnni"}, True, None, f"under {ATEN}=avx2_vnni"),
        ({ATEN: "default"}, True, None, None),
        ({ATEN: "avx512"}, True, None, None),
        ({ATEN: "AVX2"}, True, None, None),
        ({ATEN: "avx2", ONEDNN: "AVX2"}, False, f"under {ONEDNN}=AVX2", f"under {ONEDNN}=AVX2 and {ATEN}=avx2"),
    ],
)
def test_what_holds_bf16_kernels_back(monkeypatch, caps, supported, in_pytorch, in_ipex):
    held = replace(machine_report(), isa=ALL, isa_caps=caps)
    monkeypatch.setattr(report, "machine_report", lambda: held)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    for where, seen in ((in_pytorch, no_bf16_kernels()), (in_ipex, no_bf16_kernels(in_ipex=True))):
        assert seen == (where and f"oneDNN has no BF16 kernels {where}: {NEEDED}")


def test_a_cpu_that_has_no_bf16_kernels_is_not_held_back_by_anything(monkeypatch):
    held = replace(machine_report(), isa=("AVX2",), isa_caps={ATEN: "avx2", ONEDNN: "AVX2"})
    monkeypatch.setattr(report, "machine_report", lambda: held)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert no_bf16_kernels(in_ipex=True) == f"oneDNN has no BF16 kernels for this CPU: {NEEDED}"
