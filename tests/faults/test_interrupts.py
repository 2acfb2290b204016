"""An interrupt where the other tests of interrupts do not look: nothing is left behind, and it can be done again."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import psutil
import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.compare.scores import score_recipes
from tests.faults.harm import Layers, example, sleep_after_writing, wait_for

pytestmark = pytest.mark.apart


@pytest.fixture(autouse=True)
def _interrupts_are_raised():
    """A shell may have started the tests with interrupts ignored, as it does with commands in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


class Interrupted(Layers):
    """In the call of this number, of whichever copy, somebody presses Ctrl-C."""

    calls = 0
    fatal_call = 0

    def forward(self, input_ids, attention_mask):
        Interrupted.calls += 1
        if Interrupted.calls == Interrupted.fatal_call:
            interrupt()
        return super().forward(input_ids, attention_mask)


def state() -> tuple:
    library = logging.getLogger("transformers")
    threads, modes = torch.get_num_threads(), (torch.is_grad_enabled(), torch.get_default_dtype())
    return threads, modes, list(library.handlers), library.propagate, list(warnings.filters)


def test_while_a_trace_is_verified(monkeypatch):
    model = Interrupted().eval()
    monkeypatch.setattr(Interrupted, "calls", 0)
    assert cpu.trace_model(model, example()).receipt.verified
    calls = Interrupted.calls
    assert calls > 20
    before, random = state(), torch.get_rng_state()
    # Every call: before tracing, in it, and in each comparison with the trace.
    for number in range(1, calls + 1):
        monkeypatch.setattr(Interrupted, "calls", 0)
        monkeypatch.setattr(Interrupted, "fatal_call", number)
        with pytest.raises(KeyboardInterrupt):
            cpu.trace_model(model, example())
        assert state() == before and torch.equal(torch.get_rng_state(), random)
    monkeypatch.setattr(Interrupted, "fatal_call", 0)
    assert cpu.trace_model(model, example()).receipt.verified


@pytest.mark.parametrize("name", ["model.torchscript.pt", "probe.safetensors", "manifest.json"])
def test_while_a_trace_is_saved_over_an_older_one(tmp_path, monkeypatch, name):
    old, new = (cpu.trace_model(Layers(seed).eval(), example(), verify=False) for seed in (0, 1))
    old.save(tmp_path / "model")
    write = Path.write_bytes

    def write_half(self, data):
        if self.name == name:
            write(self, data[: len(data) // 2])
            interrupt()
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", write_half)
    monkeypatch.setattr(Path, "write_text", lambda self, text, **more: write_half(self, text.encode()))
    with pytest.raises(KeyboardInterrupt):
        new.save(tmp_path / "model")
    assert os.listdir(tmp_path) == ["model"]
    loaded = cpu.TracedModel.load(tmp_path / "model")
    assert torch.equal(loaded(**example())["logits"], old(**example())["logits"])


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("name", ["rename", "rmtree"])
def test_while_an_older_trace_is_replaced(tmp_path, monkeypatch, moment, name):
    """Around each step of replacing: the old one is there, or the new one."""
    from cpuinfer_helpers.saving import folders

    old, new = (cpu.trace_model(Layers(seed).eval(), example(), verify=False) for seed in (0, 1))
    old.save(tmp_path / "model")
    target = Path if name == "rename" else folders.shutil
    real = getattr(target, name)
    pressed = []

    def pressed_once(*arguments, **more):
        now, pressed[:] = not pressed, [True]
        if moment == "before" and now:
            interrupt()
        try:
            return real(*arguments, **more)
        finally:
            if moment == "after" and now:
                interrupt()

    monkeypatch.setattr(target, name, pressed_once)
    with pytest.raises(KeyboardInterrupt):
        new.save(tmp_path / "model")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["model"]
    answers = cpu.TracedModel.load(tmp_path / "model")(**example())["logits"]
    assert any(torch.equal(answers, model(**example())["logits"]) for model in (old, new))


def test_while_recipes_are_scored(tmp_path, monkeypatch):
    task = cpu.load_task("text-classification")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    marker = tmp_path / "preparing"
    waits = cpu.Recipe("eager-bf16", "for a test", lambda request: sleep_after_writing(marker))
    module = sys.modules["cpuinfer_helpers.compare.scores"]
    monkeypatch.setattr(module, "choose_recipes", lambda recipes: tuple(recipes))

    def press() -> None:
        wait_for(marker)
        interrupt()

    before = set(psutil.Process().children(recursive=True))
    finger = threading.Thread(target=press)
    finger.start()
    with pytest.raises(KeyboardInterrupt):
        score_recipes(task, [waits], limit=2, threads=1)
    finger.join()
    assert not psutil.pid_exists(int(marker.read_text()))
    assert set(psutil.Process().children(recursive=True)) <= before
    assert list(temporary.iterdir()) == []
