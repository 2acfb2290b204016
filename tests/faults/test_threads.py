"""One core, and absurd numbers of threads in the environment: it works, or what is wrong is said."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import pytest

from tests.conftest import seen_in_child

WORK = """
import json, os, sys
if "one core" in sys.argv:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import torch
import cpuinfer_helpers as cpu
from cpuinfer_helpers import doctor
from tests.faults.harm import Layers, example

report = cpu.machine_report()
seen = {"threads": report.threads, "cores": report.cores, "doctor": str(doctor._cores(report))}
traced = cpu.trace_model(Layers().eval(), example())
seen["traced"] = traced.traced and traced.receipt.verified
if "compare" in sys.argv:
    compared = cpu.compare(Layers().eval(), example(), [], budget_s=0.2, measure_roofline=False)
    seen["status"] = [row.status for row in compared.rows.values()]
    seen["threads of children"] = sorted({compared.threads, *(row.receipt.threads for row in compared.rows.values())})
if "int8" in sys.argv:
    prepared = cpu.prepare("ipex-int8", Layers().eval(), example(), calibration=[example(4)])
    wanted = Layers().eval()(**example())["logits"]
    seen["int8"] = [prepared.reason, (prepared(**example())["logits"] - wanted).abs().max().item()]
    seen["threads after"] = torch.get_num_threads()
print("SEEN", json.dumps(seen))
"""
NO_NUMBER = {"nought": "0", "minus one": "-1", "a word": "abc"}
OTHERS = {"empty": "", "a thousand": "1000"}


def work(*words: str, **environment: str) -> dict[str, Any]:
    # Two that spin while they wait slow each other down many times.
    return seen_in_child("-c", WORK, *words, MKL_NUM_THREADS="", GOMP_SPINCOUNT="0", **environment)


@pytest.fixture(scope="module")
def seen() -> dict[str, dict[str, Any]]:
    """Two children at a time: most of it is importing."""

    def of(value: str) -> dict[str, Any]:
        return work(OMP_NUM_THREADS=value)

    given = {**NO_NUMBER, **OTHERS}
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(given, pool.map(of, given.values()), strict=True))


@pytest.mark.parametrize("name", [*NO_NUMBER, *OTHERS])
def test_an_absurd_number_of_threads_stops_nothing(seen, name):
    assert seen[name]["traced"]
    assert seen[name]["threads"] >= 1


@pytest.mark.parametrize("name", NO_NUMBER)
def test_what_is_no_number_of_threads_is_named(seen, name):
    told = seen[name]["doctor"]
    assert told.startswith("[warn]") and f"OMP_NUM_THREADS={NO_NUMBER[name]!r} is no number of threads" in told
    assert f"set OMP_NUM_THREADS={seen[name]['cores']}" in told


@pytest.mark.parametrize("name", OTHERS)
def test_what_openmp_takes_is_not_called_wrong(seen, name):
    assert "is no number of threads" not in seen[name]["doctor"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot keep a process on one core")
def test_one_core_and_a_word_for_the_number_of_threads():
    has_ipex = find_spec("intel_extension_for_pytorch") is not None
    words = ["one core", "compare", *(["int8"] if has_ipex else [])]
    seen = work(*words, OMP_NUM_THREADS="abc")
    assert (seen["cores"], seen["threads"], seen["threads of children"]) == (1, 1, [1])
    assert seen["traced"] and seen["status"] == ["successful"]
    assert "OMP_NUM_THREADS='abc' is no number of threads" in seen["doctor"]
    if has_ipex:
        # Calibrated with one thread, its scales are wrong (FACTS section 3, item 9); INT8 has 256 steps for about 1.
        reason, error = seen["int8"]
        assert reason is None and error < 0.05
        assert seen["threads after"] == 1
