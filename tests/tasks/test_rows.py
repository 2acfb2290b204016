"""Rows for a Trainer give the scores of Task.evaluate."""

from __future__ import annotations

import pytest
import transformers

import cpuinfer_helpers as cpu
from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.tasks import TASK_NAMES
from cpuinfer_helpers.tasks.rows import task_rows


@pytest.mark.parametrize("name", TASK_NAMES)
def test_scores_are_those_of_the_task(name, new_args):
    task = cpu.load_task(name)
    rows = task_rows(task, limit=20)
    if name == "token-classification":
        collator = transformers.DataCollatorForTokenClassification(task.tokenizer)
    else:
        collator = transformers.DataCollatorWithPadding(task.tokenizer)
    trainer = transformers.Trainer(
        model=task.trained_model, args=new_args(), data_collator=collator, compute_metrics=rows.compute_metrics
    )
    output = trainer.predict(rows.rows)
    expected = task.evaluate(limit=20)
    score = rows.score(output.predictions, seconds=1.5)
    assert score.predictions == expected.predictions and score.seconds == 1.5
    assert score.metrics == pytest.approx(expected.metrics, abs=1e-4)
    assert (score.task, score.split, score.origin, score.examples) == (name, "heldout", task.origin, 20)
    if name == "question-answering":
        assert not any("labels" in row for row in rows.rows)
    else:
        for metric, value in expected.metrics.items():
            assert output.metrics[f"test_{metric}"] == pytest.approx(value, abs=1e-4)
        # A trained model's loss on its own labels, well below that of a guess among two or more.
        assert 0 < output.metrics["test_loss"] < 0.6


def test_an_unknown_split_is_refused():
    with pytest.raises(InputError, match="split 'train' is not part of this task"):
        task_rows(cpu.load_task("text-classification"), split="train")
