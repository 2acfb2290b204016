"""Each pattern on a module of its own, in processes of their own."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace

import pytest
import torch

from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.fusion.examples import PATTERN_EXAMPLES
from cpuinfer_helpers.fusion.patterns import ONEDNN_GRAPH, PATTERNS
from cpuinfer_helpers.fusion.prove import Proofs, prove, prove_patterns

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
HAS_IPEX = importlib.util.find_spec("intel_extension_for_pytorch") is not None


@pytest.fixture(scope="module")
def proofs() -> Proofs:
    return prove_patterns()


def test_every_pattern_has_an_example_and_a_row(proofs: Proofs) -> None:
    assert list(PATTERN_EXAMPLES) == [pattern.name for pattern in PATTERNS]
    assert {(proof.pattern, proof.precision) for proof in proofs.proofs} == {
        (name, precision) for name in PATTERN_EXAMPLES for precision in ("fp32", "bf16")
    }
    assert len(proofs.table().rows) == 12


def test_ipex_stays_out_of_this_process(proofs: Proofs) -> None:
    assert "intel_extension_for_pytorch" not in sys.modules


@pytest.mark.parametrize("pattern", [name for name in PATTERN_EXAMPLES if name != ONEDNN_GRAPH])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_patterns_of_ipex(proofs: Proofs, pattern: str, precision: str) -> None:
    proof = next(each for each in proofs.proofs if (each.pattern, each.precision) == (pattern, precision))
    if not HAS_IPEX:
        assert not proof.proven
        assert proof.why_not == "IPEX is not installed; it needs torch 2.8"
        return
    assert proof.proven, proof.why_not
    fused = {name: count for name, count in proof.report.counts.items() if count}
    assert fused == {pattern: 1}
    assert proof.why_not == ""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_partitions(proofs: Proofs, precision: str) -> None:
    proof = next(each for each in proofs.proofs if (each.pattern, each.precision) == (ONEDNN_GRAPH, precision))
    assert proof.proven, proof.why_not
    assert proof.report[ONEDNN_GRAPH].nodes == {"prim::oneDNNFusionGroup": 2}


def test_other_answers_are_no_proof(proofs: Proofs) -> None:
    proof = next(each for each in proofs.proofs if each.pattern == ONEDNN_GRAPH)
    wrong = replace(proof, max_error=1.0, tolerance=0.1)
    assert not wrong.proven
    assert wrong.why_not == "other answers: largest error 1.0e+00, tolerance 1.0e-01"
    assert not replace(proof, max_error=float("nan")).proven


def test_the_switches_are_put_back() -> None:
    def switches() -> tuple[bool, bool]:
        mode = torch._C._jit_set_autocast_mode(True)
        torch._C._jit_set_autocast_mode(mode)
        return torch.jit.onednn_fusion_enabled(), mode

    before = switches()
    assert prove(ONEDNN_GRAPH, "bf16").proven
    assert switches() == before


def test_an_unknown_precision() -> None:
    with pytest.raises(InputError, match="int4"):
        prove_patterns(("int4",))
