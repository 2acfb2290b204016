"""Trace, prepare and call in several threads while another one trains: the small form of ``make soak``."""

from __future__ import annotations

import threading

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.recipes import get_recipe
from cpuinfer_helpers.tracing import each_shape
from tests import soak
from tests.conftest import make_bert, make_inputs


def test_threads_that_do_everything_at_once_change_nothing():
    work = soak.Soak()
    ways = work.ways()
    for name, make in ways.items():
        work.turn(name, make)
    before = soak.state()
    work.run(ways, threads=4, turns=dict.fromkeys(ways, 1))
    assert work.faults == []
    assert soak.changes(before, soak.state()) == {}
    assert work.done["training steps"] > 10


def in_threads(count: int, work) -> None:
    failed: list[Exception] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


class Branches(torch.nn.Module):
    """No one trace is right: another answer for long inputs."""

    def forward(self, input_ids):
        return input_ids * 2.0 if input_ids.shape[1] > 6 else input_ids + 1.0


def ids(length: int, value: int = 7) -> torch.Tensor:
    return torch.full((2, length), value)


def each_shape_traced():
    traced = cpu.trace_model(Branches().eval(), {"input_ids": ids(5)}, each_shape=True)
    assert isinstance(traced, each_shape.TracedEachShape)
    return traced


def test_threads_that_meet_a_new_shape_together_make_one_trace():
    traced, made = each_shape_traced(), []
    make = traced._make
    traced._make = lambda tensors: made.append(tensors["input_ids"].shape) or make(tensors)

    def call(number: int) -> None:
        for length in (7, 8, 4):
            x = ids(length, number + 5)
            assert torch.equal(traced(input_ids=x), Branches()(x))

    in_threads(6, call)
    assert sorted(shape[1] for shape in made) == [4, 7, 8]


def test_a_known_shape_does_not_wait_for_a_new_one():
    traced, waiting, go_on = each_shape_traced(), threading.Event(), threading.Event()
    make = traced._make

    def slow(tensors):
        waiting.set()
        assert go_on.wait(60), "the known shape waited"
        return make(tensors)

    traced._make = slow
    thread = threading.Thread(target=traced, kwargs={"input_ids": ids(9)})
    thread.start()
    assert waiting.wait(60)
    answered = threading.Thread(target=traced, kwargs={"input_ids": ids(5)})
    answered.start()
    answered.join(30)
    known = not answered.is_alive()
    go_on.set()
    thread.join()
    answered.join()
    assert known and len(traced.shapes) == 2


def test_calls_of_settled_shapes_touch_no_switch(monkeypatch):
    model = make_bert()
    prepared = cpu.prepare("onednn-graph-fp32", model, make_inputs(2, 12), verify=False)
    cases = [make_inputs(rows, length) for rows in (1, 2, 3) for length in (8, 16, 40)]
    with torch.no_grad():
        wanted = [model(**inputs).start_logits for inputs in cases]

    def call(number: int) -> None:
        for _ in range(5):
            for inputs, answer in zip(cases, wanted, strict=True):
                # FP32 kernels add in another order; the answers are of the size of 0.1 to 1.
                assert (prepared(**inputs).start_logits - answer).abs().max() < 1e-4

    before = soak.state()["JIT switches"]
    in_threads(4, call)
    assert soak.state()["JIT switches"] == before
    # Where another thread had the switches, a call ran the graph as it is, and its shape may not be settled.
    call(0)
    monkeypatch.setattr(switches, "onednn_fusion", None)
    call(0)


def test_the_lock_is_not_held_while_a_model_that_is_ready_answers():
    prepared = cpu.prepare("onednn-graph-fp32", make_bert(), make_inputs(2, 12), verify=False)
    inputs = make_inputs(2, 12)
    for _ in range(4):
        prepared(**inputs)
    called = threading.Thread(target=prepared, kwargs=inputs)
    with switches.held():
        called.start()
        called.join(30)
        alone = not called.is_alive()
    called.join()
    assert alone


class BranchesByLength(torch.nn.Module):
    """No one trace is right, and each has a product, which autocast computes in BF16."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.linear = torch.nn.Linear(8, 4)

    def forward(self, features):
        return self.linear(features) * (2 if features.shape[1] > 6 else 3)


def features(length: int) -> torch.Tensor:
    return torch.randn(2, length, 8, generator=torch.Generator().manual_seed(length))


MODES = {
    "gradients": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast without a cache": lambda: torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False),
    "no autocast": lambda: torch.autocast("cpu", enabled=False),
}


def mode_of_this_thread() -> dict:
    found = soak.state()
    return {name: found[name] for name in ("gradients", "autocast", "tracing", "default dtype")}


@pytest.mark.parametrize("make", ["each shape", "onednn-graph-fp32", "openvino-fp32", "onnxruntime-fp32"])
def test_calls_leave_the_mode_of_every_thread_as_it_is(make):
    example = {"features": features(5)}
    if make == "each shape":
        made = cpu.trace_model(BranchesByLength().eval(), example, each_shape=True)
    elif get_recipe(make).can_run:
        made = cpu.prepare(make, BranchesByLength().eval(), example, verify=False)
    else:
        pytest.skip(get_recipe(make).why_not)

    def call(number: int) -> None:
        enter = list(MODES.values())[number]
        with enter():
            before = mode_of_this_thread()
            # A shape that nobody has seen, one that others may be making a trace of, and one that is known.
            for length in (7 + number, 14, 5):
                made(features=features(length))
                assert mode_of_this_thread() == before

    in_threads(len(MODES), call)


@pytest.mark.parametrize("first", MODES)
def test_a_trace_does_not_keep_the_mode_of_the_call_that_met_its_shape(first):
    model = BranchesByLength().eval()
    traced, x = cpu.trace_model(model, {"features": features(5)}, each_shape=True), features(9)
    with MODES[first]():
        traced(features=features(9))
    with torch.no_grad():
        wanted = model(x)
    # BF16 would be a hundred times further away.
    torch.testing.assert_close(traced(features=x), wanted, rtol=0, atol=1e-5)
    assert not traced.eager_shapes


def test_a_model_that_was_traced_under_autocast_makes_further_traces_under_it():
    model = BranchesByLength().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        traced = cpu.trace_model(model, {"features": features(5)}, each_shape=True)
    for length in (5, 9):
        with torch.no_grad():
            wanted = model(features(length))
        # FP32 would be a thousand times nearer.
        assert 1e-4 < (traced(features=features(length)) - wanted).abs().max() < 0.1
