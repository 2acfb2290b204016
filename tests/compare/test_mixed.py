from __future__ import annotations

import dataclasses
import json
import statistics
from collections import Counter

import pytest

import cpuinfer_helpers as cpu
from cpuinfer_helpers.compare.mixed import measure_mixed_lengths

LENGTHS = (20, 50, 33)


@pytest.fixture(scope="module")
def mixed():
    task = cpu.load_task("question-answering")
    small = dataclasses.replace(task, model=task.trained_model)
    recipes = ["eager-fp32", "onednn-graph-fp32", "eager-bf16"]
    return cpu.compare_mixed_lengths(small, recipes, lengths=LENGTHS, padded_to=64, budget_s=0.5)


def test_each_recipe_runs_the_mix_at_its_own_lengths_and_padded(mixed):
    assert list(mixed.rows) == ["eager-fp32", "onednn-graph-fp32", "eager-bf16"]
    for row in mixed.rows.values():
        assert row.status.successful
        assert row.seconds > 0
        assert row.padded_seconds > 0
        assert row.gain_low <= row.gain <= row.gain_high
        assert row.unseen > 0


def test_the_table_and_the_file_hold_every_recipe(mixed):
    text = str(mixed)

    assert "3 inputs, 20 to 50 tokens, 34 on average" in text
    assert all(name in text for name in mixed.rows)
    plain = json.loads(json.dumps(mixed.to_dict()))
    assert plain["lengths"] == list(LENGTHS) and plain["rows"]["eager-bf16"]["status"] == "successful"


def test_a_recipe_that_cannot_run_says_why():
    task = cpu.load_task("question-answering")
    small = dataclasses.replace(task, model=task.trained_model)
    lacking = cpu.Recipe("nothing-fp32", "needs what nobody has", lambda request: None, needs=("no-such-package>=1",))
    mixed = cpu.compare_mixed_lengths(small, [lacking], lengths=(8,), padded_to=16, budget_s=0.1)

    assert str(mixed.rows["nothing-fp32"].status).startswith("lacks: no-such-package")


def test_realistic_lengths_are_mostly_under_200_tokens_and_never_too_long():
    lengths = cpu.realistic_lengths(100, longest=384)

    assert max(lengths) <= 384
    assert statistics.median(lengths) == pytest.approx(160, abs=2)
    assert 150 < statistics.mean(lengths) < 200
    assert sum(length < 200 for length in lengths) > 60
    with pytest.raises(cpu.InputError, match="count 0"):
        cpu.realistic_lengths(0)


@pytest.mark.parametrize("slow_call", [1, 2, 3])
def test_the_measurement_sees_what_an_unseen_length_costs(slow_call):
    import time

    calls = Counter()

    def slow_once(length):
        calls[length] += 1
        time.sleep(0.02 if calls[length] == slow_call else 0.001)

    inputs = [{"length": 1}, {"length": 2}]
    measured = measure_mixed_lengths(slow_once, {"mixed": inputs, "padded": [{"length": 3}] * 2}, budget_s=0.05)

    assert measured["unseen"] > 2
