"""An evaluation that waits for processes and threads of the user's: none of them waits for a lock of ours in turn."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rows import make_model, make_rows

from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.trainer import verify_trainer

TASK = "text-classification"
LONGEST_S = 60
EVALUATE = {"evaluate": lambda trainer: trainer.evaluate(), "verify_trainer": verify_trainer}

forked = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
# The workers are forks of the process that runs the tests.
in_a_worker = pytest.param(1, marks=[pytest.mark.apart, forked, pytest.mark.filterwarnings("ignore:.*fork")])


class Rows(torch.utils.data.Dataset):
    """Rows that do something, where they are loaded, before the first is there."""

    def __init__(self, before: Callable[[], Any]) -> None:
        self.rows, self.before = make_rows(TASK), before

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.before()
        return self.rows[index]


def events() -> tuple[Any, Any]:
    """Two that a worker shares."""
    context = multiprocessing.get_context("fork" if hasattr(os, "fork") else None)
    return context.Event(), context.Event()


@pytest.mark.parametrize("workers", [0, in_a_worker])
@pytest.mark.parametrize("name", EVALUATE)
def test_rows_may_wait_for_a_thread_that_needs_the_lock(name, workers, new_trainer):
    wanted, done = events()

    def need() -> None:
        wanted.wait(LONGEST_S)
        with switches.held():
            done.set()

    def wait() -> None:
        wanted.set()
        assert done.wait(LONGEST_S), "the thread that needs the lock waits"

    thread = threading.Thread(target=need)
    thread.start()
    try:
        trainer = new_trainer(make_model(TASK), Rows(wait), jit_mode_eval=True, dataloader_num_workers=workers)
        EVALUATE[name](trainer)
    finally:
        wanted.set()
        thread.join()
    assert done.is_set()


@pytest.mark.apart
@forked
@pytest.mark.filterwarnings("ignore:.*fork")
@pytest.mark.parametrize("name", EVALUATE)
def test_a_worker_that_is_forked_while_the_lock_is_held_has_a_free_one(name, new_trainer):
    taken, holding = events()
    in_time: list[bool] = []

    def hold() -> None:
        with switches.held():
            holding.set()
            in_time.append(taken.wait(LONGEST_S))

    def take() -> None:
        # A worker that waits for ever would have the evaluation wait for it.
        signal.alarm(LONGEST_S)
        with switches.held():
            taken.set()
        signal.alarm(0)

    thread = threading.Thread(target=hold)

    def hold_from_the_first_fork_on() -> None:
        if thread.ident is None:
            thread.start()
            holding.wait(LONGEST_S)

    # It stays for the rest of this process, which is the test's own.
    os.register_at_fork(before=hold_from_the_first_fork_on)
    trainer = new_trainer(make_model(TASK), Rows(take), jit_mode_eval=True, dataloader_num_workers=1)
    try:
        EVALUATE[name](trainer)
        assert holding.is_set()
    finally:
        taken.set()
        thread.join()
    assert in_time == [True]
