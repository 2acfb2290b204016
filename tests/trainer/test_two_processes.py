"""Under torchrun with two processes the metrics are those of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import seen_in_child

SCENARIO = Path(__file__).with_name("two_processes.py")


def run(processes: int, task: str, *flags: str) -> dict[str, float]:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1")
    words = (*torchrun, f"--nproc-per-node={processes}", str(SCENARIO), task, *flags)
    return seen_in_child(*words, OMP_NUM_THREADS="1")


@pytest.mark.parametrize(
    ("task", "flags"),
    [
        ("question-answering", ("jit_mode_eval", "group_eval_by_length")),
        ("token-classification", ("jit_mode_eval",)),
    ],
)
def test_metrics_are_those_of_one_process(task: str, flags: tuple[str, ...]) -> None:
    one, two = run(1, task, *flags), run(2, task, *flags)
    assert one["processes"] == 1 and two["processes"] == 2
    assert one["test_jit_traced"] is two["test_jit_traced"] is True
    for name in ("test_rows", "test_first", "test_last", "test_sum", "test_loss"):
        assert two[name] == pytest.approx(one[name], abs=1e-4), name
