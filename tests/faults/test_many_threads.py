"""Trace, prepare and call in several threads while another one trains: the small form of ``make soak``."""

from __future__ import annotations

import threading

import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers import each_shape, switches
from tests import soak
from tests.conftest import make_bert, make_inputs


def test_threads_that_do_everything_at_once_change_nothing():
    work = soak.Soak()
    ways = work.ways()
    for name, make in ways.items():
        work.turn(name, make)
    before = soak.state()
    work.run(ways, threads=4, turns=2)
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
