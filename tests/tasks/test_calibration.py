"""Rows to calibrate a quantised model with."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.tasks import Task, task_names
from cpuinfer_helpers.tasks.kinds.registry import get_kind
from cpuinfer_helpers.tasks.squad.windows import prepare_windows


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    return {name: cpu.load_task(name) for name in task_names()}


def rows_of(batches: list[dict[str, torch.Tensor]]) -> list[tuple[int, ...]]:
    """Real tokens of every row."""
    return [
        tuple(ids[mask.bool()].tolist())
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def text_of(example: Any) -> str:
    if hasattr(example, "prompt"):
        return example.prompt + example.continuation
    return example.text if hasattr(example, "text") else " ".join(example.words)


@pytest.mark.parametrize("name", task_names())
def test_there_are_as_many_rows_as_asked_for_all_different(tasks: dict[str, Task], name: str) -> None:
    batches = tasks[name].calibration_inputs(24)
    assert len(batches) == 24 == len(set(rows_of(batches)))
    assert len(tasks[name].calibration_inputs()) == 32
    for batch in batches:
        assert set(batch) == set(tasks[name].tokenizer.model_input_names)
        shapes = {tuple(tensor.shape) for tensor in batch.values()}
        assert len(shapes) == 1 and shapes.pop()[0] == 1
        assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    with torch.no_grad():
        tasks[name].trained_model(**batches[0])


@pytest.mark.parametrize("name", ["text-classification", "text-generation", "token-classification"])
def test_rows_are_of_the_training_part_and_none_is_ever_scored(tasks: dict[str, Task], name: str) -> None:
    task = tasks[name]

    def normal(text: str) -> str:
        return task.tokenizer.decode(task.tokenizer(text, add_special_tokens=False)["input_ids"]).replace(" ", "")

    training = "\n".join(normal(text_of(example)) for example in get_kind(name).data.examples("train"))
    scored = {normal(text_of(example)) for part in task.datasets.values() for example in part}
    for row in rows_of(task.calibration_inputs(16)):
        text = task.tokenizer.decode(row, skip_special_tokens=True).replace(" ", "")
        assert text in training and text not in scored


@pytest.mark.parametrize("name", task_names())
def test_rows_are_the_same_every_time_and_spread_over_the_data(tasks: dict[str, Task], name: str) -> None:
    first, second = tasks[name].calibration_inputs(8), cpu.load_task(name).calibration_inputs(8)
    assert rows_of(first) == rows_of(second)
    examples = get_kind(name).data.examples("train")
    head = tasks[name].calibration_inputs(len(examples) if len(examples) < 200 else 200)
    assert rows_of(first) != rows_of(head)[:8]


def test_questions_are_windows_of_the_training_part_as_in_evaluation(tasks: dict[str, Task]) -> None:
    task = tasks["question-answering"]
    windows = prepare_windows(task.kind.data.examples("train"), task.tokenizer)
    encoded = {tuple(window.inputs["input_ids"]): window.inputs["token_type_ids"] for window in windows}
    for batch in task.calibration_inputs(12):
        row = tuple(batch["input_ids"][0].tolist())
        assert encoded[row] == batch["token_type_ids"][0].tolist()


def test_a_length_pads_every_row_to_it(tasks: dict[str, Task]) -> None:
    task = tasks["question-answering"]
    free, padded = task.calibration_inputs(10), task.calibration_inputs(10, length=384)
    assert {batch["input_ids"].shape for batch in padded} == {torch.Size([1, 384])}
    assert len({batch["input_ids"].shape for batch in free}) > 3
    assert rows_of(padded) == rows_of(free)
    for batch in padded:
        assert (batch["input_ids"][batch["attention_mask"] == 0] == task.tokenizer.pad_token_id).all()


def test_rows_come_in_batches(tasks: dict[str, Task]) -> None:
    task = tasks["text-classification"]
    batches = task.calibration_inputs(10, batch_size=4)
    assert [batch["input_ids"].shape[0] for batch in batches] == [4, 4, 2]
    assert rows_of(batches) == rows_of(task.calibration_inputs(10))
    for batch in batches:
        assert batch["attention_mask"].sum(dim=1).max() == batch["input_ids"].shape[1]


def test_more_rows_than_there_are_gives_all(tasks: dict[str, Task]) -> None:
    task = tasks["text-classification"]
    rows = rows_of(task.calibration_inputs(10**6, batch_size=64))
    assert len(rows) == len(task.kind.data.examples("train"))


@pytest.mark.parametrize("arguments", [{"count": 0}, {"count": -1}, {"batch_size": 0}])
def test_sizes_that_are_not_positive_are_refused(tasks: dict[str, Task], arguments: dict[str, int]) -> None:
    with pytest.raises(InputError, match="must be at least 1"):
        tasks["text-classification"].calibration_inputs(**arguments)


def test_a_length_that_cuts_a_row_is_refused(tasks: dict[str, Task]) -> None:
    with pytest.raises(InputError, match=r"length is 16, but a row has .* tokens"):
        tasks["question-answering"].calibration_inputs(4, length=16)
