"""Rows for a Trainer give the scores of Task.evaluate."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers

import cpuinfer_helpers as cpu
from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.tasks import task_names
from cpuinfer_helpers.tasks.loading import checkpoint_directory
from cpuinfer_helpers.tasks.rows import task_rows
from cpuinfer_helpers.trainer import JitTrainer

SCORED = [name for name in task_names() if name != "text-generation"]


@pytest.mark.parametrize("name", SCORED)
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


def test_a_task_that_a_trainer_is_not_meant_to_score_says_so():
    """The logits of every token of every row, side by side, would fill the memory."""
    with pytest.raises(InputError, match=r"text-generation is not scored by a Trainer; use Task\.evaluate"):
        task_rows(cpu.load_task("text-generation"))


@pytest.fixture(params=SCORED)
def padded_left(request, tmp_path):
    """A task whose checkpoint says that its tokenizer pads on the left."""
    folder = shutil.copytree(checkpoint_directory(request.param), tmp_path / "left")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "padding_side": "left"}))
    return cpu.load_model(folder, request.param).as_task()


def test_a_tokenizer_that_pads_on_the_left_changes_no_answer(padded_left, new_args):
    task, rows = padded_left, task_rows(padded_left, limit=4)
    of_tokens = task.name == "token-classification"
    kind = transformers.DataCollatorForTokenClassification if of_tokens else transformers.DataCollatorWithPadding
    expected = cpu.load_task(task.name).evaluate(limit=4)
    assert task.evaluate(limit=4, pad_to=384).predictions == expected.predictions
    for options in ({}, {"jit_mode_eval": True, "group_eval_by_length": True}):
        trainer = JitTrainer(model=task.trained_model, args=new_args(**options), data_collator=kind(task.tokenizer))
        assert rows.score(trainer.predict(rows.rows).predictions).predictions == expected.predictions


def test_inputs_of_mixed_lengths_are_padded_on_the_right_whatever_the_tokenizer_says(padded_left):
    padded_left.tokenizer.padding_side = "left"
    own = [padded_left.inputs(1, length) for length in (20, 33)]
    padded = [padded_left.inputs(1, 64, tokens=length) for length in (20, 33)]
    for short, long in zip(own, padded, strict=True):
        length = short["input_ids"].shape[1]
        assert torch.equal(long["input_ids"][:, :length], short["input_ids"])
        assert long["attention_mask"][0].tolist() == [1] * length + [0] * (64 - length)
        with torch.no_grad():
            one, other = (next(iter(padded_left.trained_model(**inputs).values())) for inputs in (short, long))
        wanted = other[:, :length] if one.shape != other.shape else other
        torch.testing.assert_close(one, wanted, atol=1e-4, rtol=1e-4)


def test_an_unknown_split_is_refused():
    with pytest.raises(InputError, match="split 'train' is not part of this task"):
        task_rows(cpu.load_task("text-classification"), split="train")
