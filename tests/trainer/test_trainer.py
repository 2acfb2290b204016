"""JitTrainer evaluates as Trainer does, by what was asked for, and says what that was."""

from __future__ import annotations

import copy
import logging
import os
import time
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from rows import Locked, make_model, make_rows

from cpuinfer_helpers.errors import InputError, RecipeError
from cpuinfer_helpers.machine.report import machine_report
from cpuinfer_helpers.recipes import get_recipe
from cpuinfer_helpers.trainer import JitTrainer

TASKS = ("question-answering", "text-classification", "token-classification")
# FP32: the same sums in another order. BF16 keeps 8 bits of each number; logits here are below 1.
LARGEST = {"fp32": 1e-5, "bf16": 2e-2}
SMALLEST = {"fp32": 0.0, "bf16": 1e-5}


def arrays(predictions: Any) -> list[np.ndarray]:
    return list(predictions) if isinstance(predictions, tuple) else [predictions]


def stock(model, rows, args, **trainer):
    """Transformers' own Trainer without any of our flags, on a copy of the model."""
    return transformers.Trainer(model=copy.deepcopy(model), args=args(), eval_dataset=rows, **trainer)


def largest_error(one, other) -> float:
    return max(np.abs(a - b).max() for a, b in zip(arrays(one), arrays(other), strict=True))


def state(model) -> dict[str, Any]:
    tensors = {name: (t.dtype, t.data_ptr(), t.clone()) for name, t in model.state_dict().items()}
    parts = {name: (type(part), part.training, dict(vars(part)).keys()) for name, part in model.named_modules()}
    return {"tensors": tensors, "parts": parts, "forward": model.forward.__func__}


# Where oneDNN has no BF16 kernels, TorchScript is the first that carries the request out.
FIRST_IN_BF16 = "onednn-graph-bf16" if get_recipe("onednn-graph-bf16").can_run else "torchscript-bf16"


def same_state(one, other) -> bool:
    tensors = all(
        a[0] == b[0] and a[1] == b[1] and torch.equal(a[2], b[2])
        for a, b in zip(one["tensors"].values(), other["tensors"].values(), strict=True)
    )
    return tensors and one["parts"] == other["parts"] and one["forward"] is other["forward"]


# --- the same as transformers' Trainer


@pytest.mark.cpu
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("flags", "precision", "recipe"),
    [
        ({"jit_mode_eval": True}, "fp32", "onednn-graph-fp32"),
        ({"jit_mode_eval": True, "bf16": True}, "bf16", FIRST_IN_BF16),
        ({"jit_mode_eval": True, "bf16_full_eval": True}, "bf16", FIRST_IN_BF16),
        ({"jit_mode_eval": True, "jit_recipe": "torchscript"}, "fp32", "torchscript-fp32"),
    ],
)
def test_predictions_labels_and_loss_are_those_of_trainer(task, flags, precision, recipe, new_args, new_trainer):
    model, rows = make_model(task), make_rows(task)
    before = state(model)
    expected = stock(model, rows, new_args).predict(rows)
    trainer = new_trainer(model, rows, **flags)
    seen = trainer.predict(rows)
    error = largest_error(seen.predictions, expected.predictions)
    assert SMALLEST[precision] <= error <= LARGEST[precision]
    assert all(a.shape == b.shape for a, b in zip(arrays(seen.predictions), arrays(expected.predictions), strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(arrays(seen.label_ids), arrays(expected.label_ids), strict=True))
    assert seen.metrics["test_loss"] == pytest.approx(expected.metrics["test_loss"], abs=LARGEST[precision])
    assert seen.metrics["test_jit_traced"] is True and seen.metrics["test_jit_recipe"] == recipe
    assert "test_jit_reason" not in seen.metrics
    assert same_state(state(model), before)


@pytest.mark.parametrize("task", TASKS)
def test_evaluate_gives_the_metrics_of_trainer(task, new_args, new_trainer):
    model, rows = make_model(task), make_rows(task)
    metric = {"compute_metrics": lambda found: {"sum": float(sum(a.sum() for a in arrays(found.predictions)))}}
    expected = stock(model, rows, new_args, **metric).evaluate()
    seen = new_trainer(model, rows, trainer=metric, jit_mode_eval=True).evaluate()
    assert seen["eval_sum"] == pytest.approx(expected["eval_sum"], rel=1e-4)
    assert seen["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)
    assert expected.keys() - {"eval_model_preparation_time"} <= seen.keys()


def test_without_flags_it_is_trainer(new_args, new_trainer):
    model, rows = make_model(), make_rows("question-answering")
    expected = stock(model, rows, new_args).predict(rows)
    trainer = new_trainer(model.train(), rows)
    seen = trainer.predict(rows)
    assert all(np.array_equal(a, b) for a, b in zip(seen.predictions, expected.predictions, strict=True))
    assert trainer.jit_receipt.runs == "the eager model" and not trainer.jit_receipt.script_module
    assert not any("jit" in name for name in seen.metrics)
    assert model.training, "an evaluation changes the model's mode"


def test_what_another_trainer_asked_for_changes_nothing(new_args, new_trainer):
    model, rows = make_model(), make_rows("question-answering")
    expected = stock(model, rows, new_args).predict(rows)
    stock(model, rows, lambda: new_args(bf16=True))
    trainer = new_trainer(model, rows)
    seen = trainer.predict(rows)
    # Transformers' own Trainer runs BF16 here: accelerate's state is the process's.
    assert all(np.array_equal(a, b) for a, b in zip(seen.predictions, expected.predictions, strict=True))
    assert set(trainer.jit_receipt.linear_dtypes) == {"float32"}


@pytest.mark.parametrize("flags", [{}, {"jit_mode_eval": True}])
def test_nor_does_autocast_around_it(flags, new_args, new_trainer):
    model, rows = make_model(), make_rows("question-answering")
    expected = stock(model, rows, new_args).predict(rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = new_trainer(model, rows, **flags).predict(rows)
    assert largest_error(seen.predictions, expected.predictions) <= LARGEST["fp32"]


@pytest.mark.parametrize("flag", ["bf16", "bf16_full_eval"])
def test_bf16_without_jit_runs_in_bf16_and_leaves_the_model_in_fp32(flag, new_args, new_trainer):
    model, rows = make_model(), make_rows("question-answering")
    before = state(model)
    expected = stock(model, rows, new_args).predict(rows)
    trainer = new_trainer(model, rows, **{flag: True})
    seen = trainer.predict(rows)
    assert 1e-5 < largest_error(seen.predictions, expected.predictions) < LARGEST["bf16"]
    receipt = trainer.jit_receipt
    assert receipt.linear_dtypes.get("bfloat16", 0) >= 13 and receipt.reason is None
    # Autocast's profile has a linear layer twice: as it is called, and with what was cast for it.
    assert ("float32" in receipt.linear_dtypes) == (flag == "bf16")
    runs = "the eager model under BF16 autocast" if flag == "bf16" else "the eager model with BF16 weights"
    assert receipt.runs == (runs if machine_report().bf16_native else f"{runs} (emulated)")
    assert seen.metrics["test_jit_traced"] is False and seen.metrics["test_jit_recipe"] == "eager-bf16"
    assert same_state(state(model), before)


def test_jit_under_bf16_full_eval_runs_linear_layers_in_bf16(new_trainer):
    trainer = new_trainer(make_model(), make_rows("question-answering"), jit_mode_eval=True, bf16_full_eval=True)
    trainer.evaluate()
    assert trainer.jit_receipt.script_module and set(trainer.jit_receipt.linear_dtypes) == {"bfloat16"}


# --- what Trainer offers around an evaluation


def test_preprocessing_of_logits_and_several_outputs(new_args, new_trainer):
    model, rows = make_model("text-classification", output_hidden_states=True), make_rows("text-classification")
    plain = {"compute_metrics": lambda found: {"outputs": len(found.predictions)}}
    first = {
        **plain,
        "preprocess_logits_for_metrics": lambda logits, labels: (logits[0].argmax(-1), logits[1][0][:, 0], labels),
    }
    for settings in (plain, first):
        expected = stock(model, rows, new_args, **settings).predict(rows)
        trainer = new_trainer(model, rows, trainer=settings, jit_mode_eval=True)
        seen = trainer.predict(rows)
        assert trainer.jit_receipt.script_module
        assert seen.metrics["test_outputs"] == expected.metrics["test_outputs"]
        for one, other in zip(*(list(_leaves(found.predictions)) for found in (seen, expected)), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


def _leaves(values):
    if isinstance(values, (tuple, list)):
        for value in values:
            yield from _leaves(value)
    else:
        yield values


def test_prediction_loss_only(new_args, new_trainer):
    model, rows = make_model("token-classification"), make_rows("token-classification")
    expected = stock(model, rows, lambda: new_args(prediction_loss_only=True)).predict(rows)
    seen = new_trainer(model, rows, jit_mode_eval=True, prediction_loss_only=True).predict(rows)
    assert seen.predictions is None and expected.predictions is None
    assert seen.metrics["test_loss"] == pytest.approx(expected.metrics["test_loss"], rel=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_data_of_any_length_and_without_labels(count, new_args, new_trainer):
    model = make_model()
    rows = [
        {name: row[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        for row in make_rows("question-answering", count)
    ]
    expected = stock(model, rows, new_args).predict(rows)
    seen = new_trainer(model, rows, jit_mode_eval=True).predict(rows)
    assert len(seen.predictions[0]) == count and seen.label_ids is None and "test_loss" not in seen.metrics
    assert largest_error(seen.predictions, expected.predictions) < LARGEST["fp32"]


def test_data_with_labels_after_data_without(new_trainer):
    rows = make_rows("text-classification")
    trainer = new_trainer(make_model("text-classification"), rows, jit_mode_eval=True)
    trainer.predict([{name: value for name, value in row.items() if name != "labels"} for row in rows])
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] > 0 and metrics["eval_jit_traced"] is True


def test_callbacks_see_what_ran(new_trainer):
    seen = {}

    class Watching(transformers.TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            seen.update(metrics)

    rows = make_rows("question-answering")
    new_trainer(make_model(), rows, trainer={"callbacks": [Watching()]}, jit_mode_eval=True).evaluate()
    assert seen["eval_jit_traced"] is True and seen["eval_jit_compilation_time"] > 0


def test_label_smoothing_and_a_loss_of_the_users(new_args, new_trainer):
    model, rows = make_model("text-classification"), make_rows("text-classification")
    expected = stock(model, rows, lambda: new_args(label_smoothing_factor=0.1)).evaluate()["eval_loss"]
    seen = new_trainer(model, rows, jit_mode_eval=True, label_smoothing_factor=0.1).evaluate()
    assert seen["eval_loss"] == pytest.approx(expected, rel=1e-5) and seen["eval_jit_traced"] is True

    def halved(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(outputs["logits"], labels) / 2

    loss = {"compute_loss_func": halved}
    expected = stock(model, rows, new_args, **loss).evaluate()["eval_loss"]
    seen = new_trainer(model, rows, trainer=loss, jit_mode_eval=True).evaluate()
    assert seen["eval_loss"] == pytest.approx(expected, rel=1e-5) and seen["eval_jit_traced"] is True


def test_a_users_own_loss_may_ask_the_model_for_its_configuration(new_args):
    rows = make_rows("text-classification")

    class Own(JitTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            labels = inputs.pop("labels")
            outputs = model(inputs["input_ids"], inputs["attention_mask"], token_type_ids=inputs["token_type_ids"])
            logits = outputs.logits.view(-1, model.config.num_labels)
            loss = torch.nn.functional.cross_entropy(logits, labels)
            return (loss, outputs) if return_outputs else loss

    model = make_model("text-classification")
    expected = stock(model, rows, new_args).evaluate()["eval_loss"]
    seen = Own(model=model, args=new_args(jit_mode_eval=True), eval_dataset=rows).evaluate()
    assert seen["eval_loss"] == pytest.approx(expected, rel=1e-5) and seen["eval_jit_traced"] is True


class Tagger(torch.nn.Module):
    """A model that is not from transformers; its loss weighs classes, so that no standard loss is right."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.words, self.tags = torch.nn.Embedding(120, 16), torch.nn.Linear(16, 3)

    def forward(self, input_ids, attention_mask, gold=None, weight=None):
        logits = self.tags(self.words(input_ids) * attention_mask.unsqueeze(-1))
        found = {"logits": logits}
        if gold is not None:
            classes = torch.tensor([1.0, 2.0, 3.0])
            loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), gold, classes, reduction="none")
            found = {"loss": (loss.mean(dim=1) * weight).mean(), **found}
        return found


def test_a_model_from_elsewhere_with_labels_of_other_names(new_args, new_trainer):
    rows = [
        {**{name: row[name] for name in ("input_ids", "attention_mask")}, "gold": row["labels"], "weight": float(i)}
        for i, row in enumerate(make_rows("token-classification"))
    ]
    model, names = Tagger().eval(), ["gold", "weight"]
    expected = stock(model, rows, lambda: new_args(label_names=names)).predict(rows)
    trainer = new_trainer(model, rows, jit_mode_eval=True, label_names=names)
    seen = trainer.predict(rows)
    assert trainer.jit_receipt.script_module, trainer.jit_receipt.reason
    assert seen.metrics["test_loss"] == pytest.approx(expected.metrics["test_loss"], rel=1e-5)
    assert largest_error(seen.predictions, expected.predictions) < LARGEST["fp32"]
    assert largest_error(seen.label_ids, expected.label_ids) == 0


@pytest.mark.parametrize("flags", [{}, {"bf16": True}])
def test_training_and_then_evaluating(flags, new_trainer):
    rows = make_rows("text-classification", 6)
    settings = {"train_dataset": rows}
    trainer = new_trainer(
        make_model("text-classification"),
        rows,
        trainer=settings,
        jit_mode_eval=True,
        eval_strategy="steps",
        eval_steps=2,
        max_steps=4,
        per_device_train_batch_size=3,
        learning_rate=5e-2,
        save_strategy="no",
        **flags,
    )
    first = trainer.evaluate()
    trainer.train()
    during = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    last = trainer.evaluate()
    assert all(entry["eval_jit_traced"] is True for entry in (*during, first, last))
    losses = [entry["eval_loss"] for entry in during]
    assert len({first["eval_loss"], *losses}) >= 3, "an evaluation with the weights of an earlier step"
    trainer.model.eval()
    expected = transformers.Trainer(
        model=trainer.model,
        args=transformers.TrainingArguments(
            str(trainer.args.output_dir), use_cpu=True, report_to=[], disable_tqdm=True, per_device_eval_batch_size=3
        ),
        eval_dataset=rows,
    ).evaluate()["eval_loss"]
    assert last["eval_loss"] == pytest.approx(expected, abs=1e-5 if not flags else 5e-2)


# --- prepared once


def test_it_is_prepared_once_and_again_when_weights_change(new_trainer):
    model, rows = make_model(), make_rows("question-answering")
    trainer = new_trainer(model, rows, jit_mode_eval=True)
    first, second = trainer.evaluate(), trainer.evaluate()
    assert first["eval_jit_compilation_time"] > 0 == second["eval_jit_compilation_time"]
    assert second["eval_jit_traced"] is True and second["eval_loss"] == first["eval_loss"]
    model.qa_outputs.weight.data *= 30  # through .data, as older optimizers do: no version is raised
    third = trainer.evaluate()
    assert third["eval_jit_compilation_time"] > 0 and third["eval_loss"] != first["eval_loss"]
    model.config.output_hidden_states = True
    assert len(trainer.predict(rows).predictions) == 3 and trainer.jit_receipt.script_module


def test_compilation_is_no_part_of_the_runtime(new_trainer, monkeypatch):
    from cpuinfer_helpers.trainer import preparation

    prepare = preparation.prepare_like

    def slow(*args, **kwargs):
        time.sleep(1.0)
        return prepare(*args, **kwargs)

    monkeypatch.setattr(preparation, "prepare_like", slow)
    trainer = new_trainer(make_model(), make_rows("question-answering"), jit_mode_eval=True)
    started = time.perf_counter()
    metrics = trainer.evaluate()
    whole = time.perf_counter() - started
    assert metrics["eval_jit_compilation_time"] > 1.0
    # Both are parts of the whole; the slow second is in one of them only. Metrics are rounded to a ten-thousandth.
    assert metrics["eval_runtime"] + metrics["eval_jit_compilation_time"] <= whole + 0.001


# --- what cannot be done


class Refusing(torch.nn.Module):
    """Runs, and cannot be traced: its output depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.labels = torch.nn.Embedding(120, 8), torch.nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask):
        if torch.jit.is_tracing():
            raise RuntimeError("this model cannot be traced")
        return {"logits": self.labels(self.words(input_ids) * attention_mask.unsqueeze(-1)).sum(dim=1)}


def plain_rows(rows):
    return [{name: row[name] for name in ("input_ids", "attention_mask")} for row in rows]


def test_what_cannot_be_traced_falls_back_with_a_warning_and_the_reason(new_args, new_trainer, caplog):
    model, rows = Refusing().eval(), plain_rows(make_rows("text-classification"))
    expected = stock(model, rows, new_args).predict(rows)
    trainer = new_trainer(model, rows, jit_mode_eval=True)
    with caplog.at_level(logging.WARNING, "cpuinfer_helpers"):
        seen = trainer.predict(rows)
    assert np.array_equal(seen.predictions, expected.predictions)
    assert seen.metrics["test_jit_traced"] is False and seen.metrics["test_jit_recipe"] == "eager-fp32"
    assert "this model cannot be traced" in seen.metrics["test_jit_reason"] == trainer.jit_receipt.reason
    assert "jit_mode_eval asked for, but the eager model evaluates" in caplog.text
    assert "this model cannot be traced" in caplog.text


def test_on_request_that_is_an_error(new_trainer):
    trainer = new_trainer(Refusing().eval(), jit_mode_eval=True, jit_failure="raise")
    with pytest.raises(RecipeError, match="this model cannot be traced"):
        trainer.predict(plain_rows(make_rows("text-classification")))


class RightWhenShort(torch.nn.Module):
    """A trace of short rows is right for short rows only."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.labels = torch.nn.Embedding(120, 8), torch.nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask):
        summed = (self.words(input_ids) * attention_mask.unsqueeze(-1)).sum(dim=1)
        return {"logits": self.labels(summed if input_ids.shape[1] < 50 else summed.abs())}


def test_a_trace_that_is_wrong_only_for_whole_rows_is_not_used(new_args, new_trainer, caplog):
    model, rows = RightWhenShort().eval(), plain_rows(make_rows("text-classification", width=60))
    expected = stock(model, rows, new_args).predict(rows)
    with caplog.at_level(logging.WARNING, "cpuinfer_helpers"):
        seen = new_trainer(model, rows, jit_mode_eval=True).predict(rows)
    assert np.allclose(seen.predictions, expected.predictions, atol=1e-5)
    assert seen.metrics["test_jit_traced"] is False
    assert "does not give the model's answers on 'far longer'" in caplog.text


class LaterFailing(torch.nn.Module):
    """Its trace is right for at most 5 rows and fails for more."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.labels = torch.nn.Embedding(120, 8), torch.nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask):
        if input_ids.dtype == torch.int32:
            raise ValueError("not such rows")
        return {"logits": self.labels(self.words(input_ids) * attention_mask.unsqueeze(-1)).sum(dim=1)}


def test_a_later_batch_on_which_the_trace_fails_is_answered_by_the_eager_model(
    new_args, new_trainer, caplog, monkeypatch
):
    from cpuinfer_helpers.recipes.prepared import PreparedModel

    model, rows = LaterFailing().eval(), plain_rows(make_rows("text-classification"))
    expected = stock(model, rows, new_args).predict(rows)
    call = PreparedModel.__call__

    def failing(self, **inputs):
        if len(inputs["input_ids"]) == 1:  # the last batch
            raise RuntimeError("shape not seen before")
        return call(self, **inputs)

    trainer = new_trainer(model, rows, jit_mode_eval=True)
    trainer.predict(rows[:3])
    monkeypatch.setattr(PreparedModel, "__call__", failing)
    with caplog.at_level(logging.WARNING, "cpuinfer_helpers"):
        seen = trainer.predict(rows)
    assert np.allclose(seen.predictions, expected.predictions, atol=1e-5)
    assert seen.metrics["test_jit_traced"] is False and "shape not seen before" in seen.metrics["test_jit_reason"]
    assert "shape not seen before" in caplog.text


def test_ipex_that_is_missing_is_said_and_replaced(new_trainer, caplog, monkeypatch):
    from cpuinfer_helpers.recipes import base

    missing = base._missing
    monkeypatch.setattr(base, "_missing", lambda need: f"no {need}" if "intel" in need else missing(need))
    rows = make_rows("question-answering")
    trainer = new_trainer(make_model(), rows, jit_mode_eval=True, use_ipex=True)
    with caplog.at_level(logging.WARNING, "cpuinfer_helpers"):
        metrics = trainer.evaluate()
    assert metrics["eval_jit_traced"] is True and metrics["eval_jit_recipe"] == "onednn-graph-fp32"
    assert "ipex-fp32: no intel" in metrics["eval_jit_reason"] and "use_ipex asked for" in caplog.text
    with pytest.raises(RecipeError, match="ipex-fp32: no intel"):
        new_trainer(make_model(), rows, jit_mode_eval=True, use_ipex=True, jit_failure="raise").evaluate()


@pytest.mark.parametrize("flags", [{}, {"bf16": True}, {"jit_mode_eval": True}])
def test_a_model_that_cannot_be_copied_is_evaluated_itself(flags, new_args, new_trainer, caplog):
    model, rows = Locked().train(), make_rows("text-classification")
    settings = {"label_names": ["labels"], "remove_unused_columns": False}
    expected = new_trainer(model.model, rows).predict(rows)
    trainer = new_trainer(model, rows, **settings, **flags)
    with caplog.at_level(logging.WARNING, "cpuinfer_helpers"):
        seen = trainer.predict(rows)
    tolerance = LARGEST["bf16" if flags.get("bf16") else "fp32"]
    assert np.abs(seen.predictions - expected.predictions).max() < tolerance
    assert model.training and seen.metrics["test_loss"] == pytest.approx(expected.metrics["test_loss"], abs=tolerance)
    assert ("cannot be copied" in caplog.text) == ("jit_mode_eval" in flags)
    if "jit_mode_eval" in flags:
        assert "cannot be copied" in trainer.jit_receipt.reason and seen.metrics["test_jit_traced"] is False
        with pytest.raises(RecipeError, match="cannot be copied"):
            new_trainer(model, rows, jit_failure="raise", **settings, **flags).predict(rows)


def test_on_another_device_transformers_evaluates_and_that_is_said(new_trainer, caplog, monkeypatch):
    model = make_model()
    trainer = new_trainer(model, jit_mode_eval=True)
    monkeypatch.setattr(type(trainer.args), "device", torch.device("cuda"))
    with caplog.at_level(logging.WARNING, "cpuinfer_helpers"):
        assert trainer._wrap_model(model, training=False) is model
    assert "nothing is traced on cuda" in caplog.text


def test_contradictions_are_refused(new_args):
    with pytest.raises(InputError, match="nothing uses without jit_mode_eval"):
        new_args(jit_recipe="torchscript")
    with pytest.raises(InputError, match="contradict each other"):
        new_args(jit_mode_eval=True, use_ipex=True, jit_recipe="openvino")


@pytest.mark.skipif(
    not hasattr(transformers.Trainer, "ipex_optimize_model"), reason="this version of transformers knows no IPEX"
)
def test_use_ipex_is_kept_from_accelerate_which_would_change_the_trained_model(new_args):
    assert new_args(jit_mode_eval=True, use_ipex=True).use_ipex
    assert os.environ["ACCELERATE_USE_IPEX"] == "false"


def test_unknown_values_are_refused(new_args):
    with pytest.raises(InputError, match="jit_failure is 'ignore'"):
        new_args(jit_failure="ignore")
    with pytest.raises(InputError, match="there is no recipe 'tensorrt-fp32'"):
        new_args(jit_recipe="tensorrt")


@pytest.mark.parametrize("flag", ["no_cuda", "use_cpu"])
def test_both_names_of_use_cpu_are_taken_without_a_warning(flag, new_args, recwarn):
    args = new_args(**{"use_cpu": False, flag: True})
    assert args.use_cpu and args.device.type == "cpu"
    assert not [warning for warning in recwarn if "no_cuda" in str(warning.message)]


def test_plain_training_arguments_are_taken(tmp_path):
    args = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True)
    assert JitTrainer(model=make_model(), args=args).predict(make_rows("question-answering")).metrics["test_loss"] > 0
