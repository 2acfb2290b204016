"""One pattern proven in this process, and what is said of patterns that cannot be run at all.

The proofs of all patterns are made once, in test_guide_claims.py.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from cpuinfer_helpers.course import prove as proving
from cpuinfer_helpers.course.examples import PATTERN_EXAMPLES
from cpuinfer_helpers.course.prove import Proof, Proofs, prove, prove_patterns
from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.fusion.patterns import ONEDNN_GRAPH, PATTERNS
from cpuinfer_helpers.processes.asking import Answer
from cpuinfer_helpers.processes.status import Kind, Status
from tests.isa import NO_BF16_KERNELS

pytestmark = [pytest.mark.cpu, pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")]
IPEX_PATTERNS = [name for name in PATTERN_EXAMPLES if name != ONEDNN_GRAPH]


def test_every_pattern_has_an_example() -> None:
    assert list(PATTERN_EXAMPLES) == [pattern.name for pattern in PATTERNS]


def test_other_answers_are_no_proof() -> None:
    proof = prove(ONEDNN_GRAPH, "fp32")
    assert proof.proven, proof.why_not
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
    assert prove(ONEDNN_GRAPH, "bf16").proven == (NO_BF16_KERNELS is None)
    assert switches() == before


@pytest.fixture
def with_ipex(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if IPEX were installed, whose import would change this process."""
    monkeypatch.setattr(proving.importlib.util, "find_spec", lambda name: name)


def test_patterns_without_bf16_kernels_are_not_started(monkeypatch: pytest.MonkeyPatch, with_ipex: None) -> None:
    why = "oneDNN has no BF16 kernels for this CPU"
    monkeypatch.setattr(proving, "no_bf16_kernels", lambda in_ipex: why if in_ipex else None)
    monkeypatch.setattr(proving, "run_once", None)
    found = proving._in_child("ipex", "bf16")
    assert [(proof.pattern, proof.why_not, proof.report) for proof in found] == [
        (name, why, None) for name in IPEX_PATTERNS
    ]
    assert prove(IPEX_PATTERNS[0], "bf16") == found[0]


def test_patterns_whose_process_is_lost_say_how(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Status(Kind.TIMED_OUT, "prove all took more than 300 s")
    monkeypatch.setattr(proving, "run_once", lambda *words, **named: Answer(lost))
    (proof,) = proving._in_child("onednn", "fp32")
    assert (proof.proven, proof.why_not) == (False, "timed out: prove all took more than 300 s")


def test_a_pattern_that_is_refused_costs_no_other(
    monkeypatch: pytest.MonkeyPatch, with_ipex: None, caplog: pytest.LogCaptureFixture
) -> None:
    """IPEX refuses by assertions."""

    @contextmanager
    def refuse(module: torch.nn.Module, dtype: torch.dtype):
        raise AssertionError("not on this CPU")
        yield

    monkeypatch.setattr(proving, "_ipex", refuse)
    refused, proven = prove(IPEX_PATTERNS[0], "fp32"), prove(ONEDNN_GRAPH, "fp32")
    assert refused == Proof(IPEX_PATTERNS[0], "fp32", reason="AssertionError: not on this CPU")
    assert "AssertionError: not on this CPU" in caplog.text
    assert proven.proven


def test_the_table_says_that_bf16_is_emulated_only_where_it_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    held = replace(proving.machine_report(), isa=("AVX2",), isa_caps={})
    monkeypatch.setattr(proving, "machine_report", lambda: held)
    not_run = Proof(ONEDNN_GRAPH, "bf16", reason="no such thing here")
    assert Proofs((not_run,)).table().note == ""
    ran = replace(prove(ONEDNN_GRAPH, "fp32"), precision="bf16")
    assert Proofs((not_run, ran)).table().note.startswith("bf16 is emulated: this CPU has no ")


def test_an_unknown_precision() -> None:
    with pytest.raises(InputError, match="int4"):
        prove_patterns(("int4",))
