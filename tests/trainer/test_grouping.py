"""Rows of similar length are evaluated together, and come back in the dataset's order."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import transformers
from rows import make_model, make_rows

from cpuinfer_helpers.trainer import JitTrainer, JitTrainingArguments
from cpuinfer_helpers.trainer.grouping import TrimmedPadding, lengths_of, longest_first, restored, tokens_of_batches
from tests.conftest import make_bert


def shapes_of(trainer: JitTrainer, rows: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[tuple[int, int]]]:
    """Predictions, and the shape of every batch that was evaluated."""
    shapes: list[tuple[int, int]] = []
    step = trainer.prediction_step

    def noted(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        shapes.append(tuple(inputs["input_ids"].shape))
        return step(model, inputs, *args, **kwargs)

    monkeypatch.setattr(trainer, "prediction_step", noted)
    return trainer.predict(rows), shapes


@pytest.mark.parametrize("kind", ["list", "datasets"])
@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("task", ["question-answering", "text-classification", "token-classification"])
def test_results_are_in_the_callers_order(kind, jit, task, new_trainer, monkeypatch):
    model, rows = make_model(task), make_rows(task, 8)
    data = datasets.Dataset.from_list(rows) if kind == "datasets" else rows
    expected = new_trainer(model, data).predict(data)
    trainer = new_trainer(model, data, jit_mode_eval=jit, group_eval_by_length=True)
    seen, shapes = shapes_of(trainer, data, monkeypatch)
    assert [shape[1] for shape in shapes] == sorted((shape[1] for shape in shapes), reverse=True)
    assert shapes[-1][1] < shapes[0][1] == 32, "rows of 40 columns with 31 tokens at most were not trimmed"
    for name in ("predictions", "label_ids"):
        one, other = getattr(seen, name), getattr(expected, name)
        pairs = zip(one, other, strict=True) if isinstance(one, tuple) else [(one, other)]
        for got, wanted in pairs:
            assert len(got) == len(wanted)
            for row, had in enumerate(rows):
                valid = slice(sum(had["attention_mask"])) if got.ndim > 1 and task != "text-classification" else ...
                # Padding that was cut off weighs nothing; what remains are sums in another order.
                np.testing.assert_allclose(got[row][valid], wanted[row][valid], atol=1e-5)


def test_the_users_metric_sees_rows_in_order(new_trainer):
    rows, found = make_rows("text-classification", 8), {}

    def metric(evaluated):
        found["labels"] = evaluated.label_ids.tolist()
        found["inputs"] = evaluated.inputs[:, :8].tolist()
        found["predictions"] = evaluated.predictions
        return {"rows": len(evaluated.label_ids)}

    model, settings = make_model("text-classification"), {"compute_metrics": metric}
    arguments = {"include_for_metrics": ["inputs"], "jit_mode_eval": True, "group_eval_by_length": True}
    trainer = new_trainer(model, rows, trainer=settings, **arguments)
    assert trainer.evaluate()["eval_rows"] == 8
    assert found["labels"] == [row["labels"] for row in rows]
    assert found["inputs"] == [row["input_ids"][:8] for row in rows]
    expected = new_trainer(model, rows).predict(rows).predictions
    np.testing.assert_allclose(found["predictions"], expected, atol=1e-5)
    assert trainer.compute_metrics is metric


def test_unpadded_rows_with_a_collator_that_pads(new_trainer, tokenizer, monkeypatch):
    rows = [
        {name: row[name][: sum(row["attention_mask"])] for name in ("input_ids", "attention_mask", "token_type_ids")}
        for row in make_rows("question-answering", 8)
    ]
    collator = {"data_collator": transformers.DataCollatorWithPadding(tokenizer)}
    model = make_model()
    expected = new_trainer(model, rows, trainer=collator).predict(rows).predictions
    trainer = new_trainer(model, rows, trainer=collator, group_eval_by_length=True)
    seen, shapes = shapes_of(trainer, rows, monkeypatch)
    assert len(shapes) == 3 and shapes[-1][1] < 16
    for row, wanted in enumerate(rows):
        length = len(wanted["input_ids"])
        np.testing.assert_allclose(seen.predictions[0][row][:length], expected[0][row][:length], atol=1e-5)
    assert trainer.data_collator is collator["data_collator"]


class Stream(torch.utils.data.IterableDataset):
    """Rows without a length."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


@pytest.mark.parametrize("why", ["no length", "put back in order", "neither input_ids nor attention_mask"])
def test_what_cannot_be_grouped_is_evaluated_as_it_comes(why, new_trainer, caplog):
    rows = make_rows("text-classification", 5)
    model, settings = make_model("text-classification"), {"group_eval_by_length": True}
    data: Any = rows
    if why == "no length":
        data = Stream(rows)
    elif why == "put back in order":
        settings["eval_do_concat_batches"] = False
    else:
        model = Embedded(model)
        data = [{"embedded": [[float(i)] * 32] * 4, "labels": row["labels"]} for i, row in enumerate(rows)]
    with caplog.at_level(logging.WARNING, "cpuinfer_helpers"):
        seen = new_trainer(model, data, **settings).predict(data)
    assert why in caplog.text
    labels = np.concatenate(seen.label_ids) if isinstance(seen.label_ids, list) else seen.label_ids
    assert labels.tolist() == [row["labels"] for row in rows]


class Embedded(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)

    def forward(self, embedded, labels=None):
        return self.model(inputs_embeds=embedded, labels=labels)


def test_lengths_come_from_masks_or_ids():
    assert lengths_of([{"input_ids": [1] * n} for n in (3, 9, 5, 9)]).tolist() == [3, 9, 5, 9]
    masked = [{"input_ids": [1] * 9, "attention_mask": [1] * n + [0] * (9 - n)} for n in (3, 9, 5)]
    assert lengths_of(masked).tolist() == [3, 9, 5]
    assert lengths_of(datasets.Dataset.from_list(masked)).tolist() == [3, 9, 5]
    # What is padded on the left cannot be cut, and needs all its columns.
    left = [{"input_ids": [1] * 9, "attention_mask": [0] * (9 - n) + [1] * n} for n in (3, 9)]
    assert lengths_of([*left, {"input_ids": [0] * 9, "attention_mask": [0] * 9}]).tolist() == [9, 9, 0]
    assert lengths_of([{"pixels": [1]}]) is None
    assert longest_first(np.array([3, 9, 5, 9])).tolist() == [1, 3, 2, 0]


@pytest.mark.parametrize("count", [1, 7, 8])
def test_sizes_of_batches_are_foretold(count, new_trainer, monkeypatch):
    rows = make_rows("text-classification", count)
    trainer = new_trainer(make_model("text-classification"), rows, group_eval_by_length=True)
    _, shapes = shapes_of(trainer, rows, monkeypatch)
    assert tokens_of_batches(lengths_of(rows), 3) == [rows * columns for rows, columns in shapes]


def test_padding_is_cut_on_the_right_only_and_to_a_multiple_of_the_step():
    def batch(rows):
        mask = torch.zeros(2, 40, dtype=torch.long)
        mask[0, rows[0]], mask[1, rows[1]] = 1, 1
        return {"attention_mask": mask, "input_ids": mask.clone(), "labels": torch.zeros(2)}

    trim = TrimmedPadding(batch, step=16)
    assert {name: tuple(t.shape) for name, t in trim([slice(0, 3), slice(0, 17)]).items()} == {
        "attention_mask": (2, 32),
        "input_ids": (2, 32),
        "labels": (2,),
    }
    assert trim([slice(30, 40), slice(35, 40)])["input_ids"].shape == (2, 40)
    assert trim([slice(0, 0), slice(0, 0)])["input_ids"].shape == (2, 40)


def of_length(length: int, width: int, **further: Any) -> dict[str, Any]:
    padding = width - length
    return {"input_ids": [5] * length + [0] * padding, "attention_mask": [1] * length + [0] * padding, **further}


def stacked(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pads everything to 40, labels with what losses leave out, and stacks it."""
    fill = {"labels": -100}
    return {
        name: torch.tensor([row[name] + [fill.get(name, 0)] * (40 - len(row[name])) for row in rows])
        for name in rows[0]
    }


@pytest.mark.parametrize(
    ("name", "values", "padded", "cut"),
    [
        # As many as there are columns, by chance.
        ("labels", lambda length: [0.0, 1.0] * 20, False, False),
        ("labels", lambda length: [0.0, 1.0] * 20, True, False),
        ("labels", lambda length: [0, 1] * 20, True, False),
        ("labels", lambda length: [0] * 40, True, False),
        ("labels", lambda length: [-100] * 40, False, False),
        ("features", lambda length: [0.5] * 40, False, False),
        ("features", lambda length: [0] * 40, True, False),
        # Of the tokens.
        ("labels", lambda length: [1] * length, False, True),
        ("labels", lambda length: [1] * length + [-100] * (40 - length), True, True),
        ("features", lambda length: [7] * length, False, True),
        ("token_type_ids", lambda length: [0] * length, False, True),
        ("token_type_ids", lambda length: [0] * 40, True, True),
    ],
)
def test_nothing_is_cut_unless_all_that_is_as_wide_is_known_to_be_of_the_tokens(name, values, padded, cut):
    rows = [of_length(n, 40 if padded else n, **{name: values(n)}) for n in (9, 12, 5)]
    batch = TrimmedPadding(stacked, step=16)(rows)
    assert {tensor.shape[1] for tensor in batch.values()} == {16 if cut else 40}


def test_an_input_is_cut_once_it_was_seen_to_follow_at_two_lengths():
    trim = TrimmedPadding(stacked, step=16)
    rows = [of_length(n, n, weights=[1.0] * n) for n in (9, 12)]
    assert trim(rows[:1])["weights"].shape == (1, 40), "one length says nothing"
    assert trim(rows)["weights"].shape == (2, 16)
    assert trim([of_length(9, 9, weights=[1.0] * 8)])["weights"].shape == (1, 40), "and here it does not follow"


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("width", [40, 41])
def test_as_many_labels_as_columns_are_all_kept(jit, width, new_trainer):
    """Multi-label classification: 40 labels, and rows of 40 columns with 31 tokens at most."""
    model = make_bert("BertForSequenceClassification", num_labels=40, problem_type="multi_label_classification")
    generator = torch.Generator().manual_seed(1)
    rows = [
        {**row, "labels": torch.randint(0, 2, (40,), generator=generator).float().tolist()}
        for row in make_rows("text-classification", 6, width)
    ]
    expected = new_trainer(model, rows).predict(rows)
    trainer = new_trainer(model, rows, jit_mode_eval=jit, group_eval_by_length=True)
    seen = trainer.predict(rows)
    assert seen.predictions.shape == seen.label_ids.shape == (6, 40)
    np.testing.assert_array_equal(seen.label_ids, expected.label_ids)
    np.testing.assert_allclose(seen.predictions, expected.predictions, atol=1e-5)
    assert seen.metrics["test_loss"] == pytest.approx(expected.metrics["test_loss"], abs=1e-5)
    assert trainer.jit_receipt is None or trainer.jit_receipt.reason is None


@pytest.mark.parametrize("task", ["question-answering", "token-classification"])
def test_rows_that_are_padded_on_the_left_are_answered_the_same(task, new_trainer, monkeypatch):
    model, names = make_model(task), ("input_ids", "attention_mask", "token_type_ids", "labels")
    rows = [
        {**row, **{name: row[name][length:] + row[name][:length] for name in names if name in row}}
        for row in make_rows(task, 6)
        for length in [sum(row["attention_mask"])]
    ]
    expected = new_trainer(model, rows).predict(rows)
    trainer = new_trainer(model, rows, jit_mode_eval=True, group_eval_by_length=True)
    seen, shapes = shapes_of(trainer, rows, monkeypatch)
    assert {shape[1] for shape in shapes} == {40}
    kept = np.array([row["attention_mask"] for row in rows]).astype(bool)
    one, other = (np.stack(output.predictions[:2]) if task == "question-answering" else output.predictions[None]
                  for output in (seen, expected))  # fmt: skip
    np.testing.assert_allclose(one[:, kept], other[:, kept], atol=1e-5)


def test_nested_arrays_are_put_back_in_order():
    order = np.array([2, 0, 1])
    values = (np.array([30, 10, 20]), {"a": np.array([[3], [1], [2]])}, "text", np.array(7), np.arange(5))
    first, second, *others = restored(values, order)
    assert first.tolist() == [10, 20, 30] and second["a"].tolist() == [[1], [2], [3]]
    assert others[0] == "text" and others[1] == 7 and others[2].tolist() == [0, 1, 2, 3, 4]


def test_it_is_off_unless_asked_for(tmp_path):
    assert JitTrainingArguments(str(tmp_path), use_cpu=True).group_eval_by_length is False
