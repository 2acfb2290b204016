"""Children that are killed or run out of memory in the middle of a comparison cost their own row and nothing else."""

from __future__ import annotations

import math

import pytest

from tests.faults.harm import BYSTANDERS


@pytest.mark.parametrize("name", ["eager-fp32", *BYSTANDERS])
def test_the_other_rows_are_complete(outcome, name):
    row = outcome.comparison[name]
    assert row.successful
    assert row.timing.calls >= 6 and row.max_error is not None and row.labels > 0
    assert row.resident_bytes > 0 and row.receipt is not None
    assert (row.speedup is None) == (name == "eager-fp32")
    assert math.isfinite(row.timing.median)


@pytest.mark.parametrize("stage", ["preparing", "measuring"])
def test_the_row_of_a_killed_child_says_that_it_was_killed(outcome, stage):
    row = outcome.comparison[f"killed-{stage}-fp32"]
    assert row.status.kind == "crashed"
    assert "ended by SIGKILL" in row.status.reason and "from outside" in row.status.reason
    assert row.timing is None and row.speedup is None
    # What was seen before stays: it was prepared, verified and compared with the reference.
    assert (row.receipt is not None) == (row.max_error is not None) == (stage == "measuring")


def test_the_row_of_a_child_without_memory_says_so(outcome):
    row = outcome.comparison["too-large-fp32"]
    assert row.status.kind == "out of memory" and "can't allocate memory" in row.status.reason
    assert row.timing is None


def test_no_process_and_no_file_is_left(outcome):
    assert outcome.processes == [] and outcome.files == []
