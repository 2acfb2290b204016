"""One core, and absurd numbers of threads in the environment: it works, or what is wrong is said."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import pytest

from cpuinfer_helpers.commands import doctor
from cpuinfer_helpers.machine.report import machine_report
from tests.conftest import seen_in_child

WORK = """
import json, os, sys
if "one core" in sys.argv:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import torch
import cpuinfer_helpers as cpu
from cpuinfer_helpers.commands import doctor
from tests.faults.harm import Layers, example

report = cpu.machine_report()
seen = {"threads": report.threads, "cores": report.cores, "doctor": str(doctor._cores(report))}
traced = cpu.trace_model(Layers().eval(), example())
seen["traced"] = traced.traced and traced.receipt.verified
if "compare" in sys.argv:
    compared = cpu.compare(Layers().eval(), example(), [], budget_s=0.2, measure_roofline=False)
    seen["status"] = [str(row.status) for row in compared.rows.values()]
    seen["threads of children"] = sorted({compared.threads, *(row.receipt.threads for row in compared.rows.values())})
if "int8" in sys.argv:
    prepared = cpu.prepare("ipex-int8", Layers().eval(), example(), calibration=[example(4)])
    wanted = Layers().eval()(**example())["logits"]
    seen["int8"] = [prepared.reason, (prepared(**example())["logits"] - wanted).abs().max().item()]
    seen["threads after"] = torch.get_num_threads()
print("SEEN", json.dumps(seen))
"""
NO_NUMBER = ("0", "-1", "abc")
TAKEN = ("", "1", "1000")


def work(*words: str, **environment: str) -> dict[str, Any]:
    # Two that spin while they wait slow each other down many times.
    return seen_in_child("-c", WORK, *words, MKL_NUM_THREADS="", GOMP_SPINCOUNT="0", **environment)


@pytest.mark.parametrize("value", ["0", "1000"])
def test_an_absurd_number_of_threads_stops_nothing(value):
    """OpenMP reads it when a process begins."""
    seen = work(OMP_NUM_THREADS=value)
    assert seen["traced"] and seen["threads"] >= 1
    assert ("is no number of threads" in seen["doctor"]) == (value in NO_NUMBER)


@pytest.mark.parametrize("value", NO_NUMBER)
def test_what_is_no_number_of_threads_is_named(monkeypatch, value):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    report = machine_report()
    told = str(doctor._cores(report))
    assert told.startswith("[warn]") and f"OMP_NUM_THREADS={value!r} is no number of threads" in told
    assert f"set OMP_NUM_THREADS={report.cores}" in told


@pytest.mark.parametrize("value", TAKEN)
def test_what_openmp_takes_is_not_called_wrong(monkeypatch, value):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert "is no number of threads" not in str(doctor._cores(machine_report()))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot keep a process on one core")
def test_one_core_and_a_word_for_the_number_of_threads():
    has_ipex = find_spec("intel_extension_for_pytorch") is not None
    words = ["one core", "compare", *(["int8"] if has_ipex else [])]
    seen = work(*words, OMP_NUM_THREADS="abc")
    assert (seen["cores"], seen["threads"], seen["threads of children"]) == (1, 1, [1])
    assert seen["traced"] and seen["status"] == ["successful"]
    assert "OMP_NUM_THREADS='abc' is no number of threads" in seen["doctor"]
    if has_ipex:
        # IPEX's static calibration gives wrong scales with one thread; INT8 has 256 steps for about 1.
        reason, error = seen["int8"]
        assert reason is None and error < 0.05
        assert seen["threads after"] == 1
