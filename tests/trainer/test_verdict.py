"""verify_trainer tells what a Trainer really did, and changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from rows import make_model, make_rows

from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.machine.report import machine_report
from cpuinfer_helpers.trainer import verify_trainer

pytestmark = pytest.mark.usefixtures("new_accelerate_state")
OLD = hasattr(transformers.Trainer, "torch_jit_model_eval")
BF16 = "BF16" if machine_report().bf16_native else "BF16, emulated"


def stock(model, rows, tmp_path, **flags):
    settings = {name: value for name, value in flags.items() if OLD or name not in ("jit_mode_eval", "use_ipex")}
    args = transformers.TrainingArguments(
        str(tmp_path / "out"), use_cpu=True, report_to=[], disable_tqdm=True, per_device_eval_batch_size=3, **settings
    )
    for name in flags.keys() - settings.keys():
        setattr(args, name, True)
    return transformers.Trainer(model=model, args=args, eval_dataset=rows)


class Untraceable(torch.nn.Module):
    def __init__(self, bert):
        super().__init__()
        self.bert = bert

    def forward(self, input_ids, attention_mask, token_type_ids):
        if torch.jit.is_tracing():
            raise ValueError("no way to trace this")
        return self.bert(input_ids=input_ids, attention_mask=attention_mask)


@pytest.mark.skipif(not OLD, reason="this version of transformers has no such flag")
def test_a_stock_trainer_that_traces(tmp_path):
    verdict = verify_trainer(stock(make_model(), make_rows("question-answering"), tmp_path, jit_mode_eval=True))
    assert verdict.traced and verdict.as_requested and verdict.jit_mode_eval == "done"
    assert verdict.model in ("TopLevelTracedModule", "RecursiveScriptModule") and verdict.linear_dtypes


@pytest.mark.skipif(not OLD, reason="this version of transformers has no such flag")
def test_a_stock_trainer_that_falls_back(tmp_path):
    model = Untraceable(make_model())
    rows = [{k: v for k, v in row.items() if "positions" not in k} for row in make_rows("question-answering")]
    verdict = verify_trainer(stock(model, rows, tmp_path, jit_mode_eval=True))
    assert not verdict.traced and not verdict.as_requested and verdict.jit_mode_eval == "fell back"
    assert verdict.reason == "no way to trace this" and "no way to trace this" in str(verdict)


@pytest.mark.cpu
@pytest.mark.skipif(not OLD, reason="this version of transformers has no such flag")
def test_a_stock_trainer_that_says_bf16_and_runs_fp32(tmp_path):
    verdict = verify_trainer(
        stock(make_model(), make_rows("question-answering"), tmp_path, jit_mode_eval=True, bf16_full_eval=True)
    )
    assert verdict.traced and set(verdict.linear_dtypes) == {"float32"}
    assert verdict.precision == "FP32, though BF16 was asked for" and not verdict.as_requested


@pytest.mark.skipif(OLD, reason="this version of transformers has the flag")
def test_a_stock_trainer_that_ignores_its_flags(tmp_path):
    trainer = stock(make_model(), make_rows("question-answering"), tmp_path, jit_mode_eval=True, use_ipex=True)
    verdict = verify_trainer(trainer)
    assert verdict.jit_mode_eval == verdict.use_ipex == "ignored"
    assert not verdict.as_requested and verdict.model == "BertForQuestionAnswering" and verdict.reason is None


def test_a_stock_trainer_without_flags(tmp_path):
    verdict = verify_trainer(stock(make_model(), make_rows("question-answering"), tmp_path))
    assert verdict.jit_mode_eval == verdict.use_ipex == "not requested" and verdict.as_requested
    assert verdict.precision == "FP32" and verdict.model == "BertForQuestionAnswering"


@pytest.mark.cpu
def test_a_jit_trainer(new_trainer):
    verdict = verify_trainer(new_trainer(make_model(), make_rows("question-answering"), jit_mode_eval=True, bf16=True))
    assert verdict.traced and verdict.as_requested and verdict.precision == BF16
    untraceable = Untraceable(make_model())
    rows = [{k: v for k, v in row.items() if "positions" not in k} for row in make_rows("question-answering")]
    verdict = verify_trainer(new_trainer(untraceable, rows, jit_mode_eval=True))
    assert verdict.jit_mode_eval == "fell back" and "no way to trace this" in verdict.reason


def test_the_trainer_and_its_model_stay_as_they_were(tmp_path):
    model, called = make_model().train(), []

    class Watching(transformers.TrainerCallback):
        def on_prediction_step(self, *args, **kwargs):
            called.append(args)

    trainer = stock(model, make_rows("question-answering"), tmp_path, bf16_full_eval=True)
    trainer.add_callback(Watching())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = {name: copy.copy(value) for name, value in vars(trainer).items() if isinstance(value, (str, int))}
    verdict = verify_trainer(trainer)
    assert verdict.precision == BF16
    assert all(t.dtype == torch.float32 and torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert model.training and trainer.model is model and not called and not trainer.accelerator._models
    assert {name: vars(trainer)[name] for name in attributes} == attributes
    assert "prediction_step" not in vars(trainer)


def test_without_a_batch_there_is_no_verdict(tmp_path):
    trainer = stock(make_model(), None, tmp_path)
    with pytest.raises(InputError, match="no batch to evaluate"):
        verify_trainer(trainer)
    with pytest.raises(InputError, match="no batch to evaluate"):
        verify_trainer(trainer, [])
    with pytest.raises(InputError, match="cannot evaluate its first batch"):
        verify_trainer(trainer, [{"pixels": [1.0]}])
