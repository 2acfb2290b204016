"""Causes of a slow branch, looked up in made-up evidence: IPEX's nodes need no IPEX to be read."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from cpuinfer_helpers import graph
from cpuinfer_helpers.fusion import PATTERNS, causes
from cpuinfer_helpers.fusion.causes import why_not
from cpuinfer_helpers.fusion.events import Event, Profile
from cpuinfer_helpers.fusion.observed import Evidence
from cpuinfer_helpers.machine.report import machine_report

PATTERN = {pattern.name: pattern for pattern in PATTERNS}
MHA, ADD_LAYERNORM, ONEDNN_GRAPH = "multi-head attention", "add+layernorm", "oneDNN Graph partition"

SCORES = "%r : Tensor = ipex::mha_scores_calc(%q, %k, %m, %one, %d, %dim, %none)"
EXPANDED = f"%m : Tensor = aten::expand(%mask, %sizes, %no)\n{SCORES}"
FLASH = "%r : Tensor = ipex::bert_flash_mha(%q, %m, %one, %d, %dim, %none, %heads, %size)"
DISTIL = "%r : Tensor = ipex::distil_mha_scores_calc(%q, %k, %m, %shape, %fill, %d)"
NORM = "%r : Tensor = ipex::add_layernorm(%q, %k, %one, %sizes, %w, %b, %eps, %no)"
LINEAR = "%r : Tensor = aten::linear(%q, %w, %b)"


@pytest.fixture
def on_cpu(monkeypatch):
    """Sets what this CPU has, and what holds it back."""

    def set_cpu(*isa: str, **caps: str) -> None:
        report = replace(machine_report(), isa=isa, isa_caps=caps)
        monkeypatch.setattr(causes, "machine_report", lambda: report)

    return set_cpu


def event(name: str, *inside: str | Event, dtypes=(), shapes=()) -> Event:
    return Event(name, 0, 1, dtypes, shapes, [each if isinstance(each, Event) else event(each) for each in inside])


def evidence(body: str, *events: Event) -> Evidence:
    """Of a graph whose nodes are ``body``: values that no node makes are its inputs."""
    made = re.findall(r"%(\w+) :", body)
    inputs = [name for name in dict.fromkeys(re.findall(r"%(\w+)", body)) if name not in made]
    lines = [f"graph({', '.join(f'%{name}' for name in inputs)}):", *body.splitlines(), "return (%r)"]
    parsed = torch._C.parse_ir("\n  ".join(lines))
    return Evidence(
        before=(),
        executed=tuple(graph.executed_nodes(parsed)),
        profile=Profile(events),
        inputs={},
        unfrozen=0,
        graphs=(parsed,),
    )


CASES = {
    "scores": (MHA, SCORES, event("dil_mha_scores_calc", event("dil_addsoftmax", "aten::add", "aten::softmax"))),
    "flash": (MHA, FLASH, event("dil_bert_flash_mha", "aten::matmul", "aten::add", "aten::softmax")),
    "distil": (MHA, DISTIL, event("dil_distil_mha_scores_calc", "aten::masked_fill_", "aten::softmax")),
    "norm": (ADD_LAYERNORM, NORM, event("dil_add_layernorm", "aten::add", "aten::layer_norm")),
}


@pytest.mark.parametrize("case", CASES)
def test_a_cpu_without_avx512_is_the_cause(on_cpu, case):
    pattern, node, slow = CASES[case]
    on_cpu("AVX2")
    first, cpus, last = why_not(PATTERN[pattern], evidence(node, slow))
    assert first == "the fast kernel needs AVX512: this CPU has no AVX512"
    assert cpus.startswith("CPUs with AVX512: ") and "Zen 4" in cpus
    assert last.startswith("found, but the fast kernel did not run: aten::")
    assert max(map(len, (first, cpus, last))) < 100, "a table's text cuts cells there"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("value", ["avx2", "avx2_vnni", "default"])
def test_what_holds_avx512_back_is_the_cause(on_cpu, case, value):
    pattern, node, slow = CASES[case]
    on_cpu("AVX2", "AVX512", ATEN_CPU_CAPABILITY=value)
    first, last = why_not(PATTERN[pattern], evidence(node, slow))
    assert first.startswith(f"the fast kernel needs AVX512: ATEN_CPU_CAPABILITY={value} holds AVX512 back")
    assert last.startswith("found, but the fast kernel did not run: ")


def test_with_avx512_the_cause_is_looked_for_in_the_inputs_alone(on_cpu):
    on_cpu("AVX2", "AVX512", ONEDNN_MAX_CPU_ISA="AVX2")
    pattern, node, slow = CASES["scores"]
    assert why_not(PATTERN[pattern], evidence(node, slow))[1:] == ("why its slow branch ran is not known",)


SIZES = ((2, 16, 64), (64,))
REFUSED = {
    "the mask is expanded, not contiguous": (MHA, EXPANDED, event("dil_mha_scores_calc", "aten::add", "dil_softmax")),
    "it adds a mask of float to scores of c10::BFloat16": (
        MHA,
        SCORES,
        event("dil_mha_scores_calc", event("aten::add", dtypes=("c10::BFloat16", "float")), "aten::softmax"),
    ),
    "the two sides of the add differ in shape: 2 x 16 x 64 and 64": (
        ADD_LAYERNORM,
        NORM,
        event("dil_add_layernorm", event("aten::add", shapes=SIZES), "aten::layer_norm"),
    ),
}


@pytest.mark.parametrize("cause", REFUSED)
def test_what_the_fast_kernel_would_refuse_on_a_better_cpu_is_named_too(on_cpu, cause):
    pattern, node, slow = REFUSED[cause]
    on_cpu("AVX2", "AVX512")
    assert why_not(PATTERN[pattern], evidence(node, slow))[1:] == (cause,)
    on_cpu("AVX2", "AVX512", ATEN_CPU_CAPABILITY="avx2")
    first, _, last = why_not(PATTERN[pattern], evidence(node, slow))
    assert first == "the fast kernel needs AVX512: ATEN_CPU_CAPABILITY=avx2 holds AVX512 back"
    assert last == f"AVX512 alone would not help: {cause}"


@pytest.mark.parametrize(
    ("dtype", "why", "causes_named"),
    [
        ("c10::BFloat16", "oneDNN has none here", ("oneDNN has none here",)),
        ("c10::BFloat16", None, ("not known: 1 places did not fuse, and no known obstacle is there",)),
        ("float", "oneDNN has none here", ("not known: 1 places did not fuse, and no known obstacle is there",)),
    ],
)
def test_without_bf16_kernels_no_bf16_partitions(monkeypatch, dtype, why, causes_named):
    monkeypatch.setattr(causes, "no_bf16_kernels", lambda: why)
    seen = evidence(LINEAR, event("aten::linear", dtypes=(dtype, dtype)))
    seen = replace(seen, before=tuple(node.node for node in seen.executed))
    with graph.onednn_fusion(jit_autocast=False):
        assert why_not(PATTERN[ONEDNN_GRAPH], seen) == causes_named
