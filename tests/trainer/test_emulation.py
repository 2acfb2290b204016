"""An evaluation in emulated BF16 says so before it begins, and what it will take after its first batch."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rows import Locked, make_model, make_rows

from cpuinfer_helpers.machine import report
from cpuinfer_helpers.machine.instructions import CAPS
from cpuinfer_helpers.machine.report import detect_isa
from cpuinfer_helpers.run_qa import QaResult
from cpuinfer_helpers.tasks.data_files import DATA
from cpuinfer_helpers.tasks.loading import checkpoint_directory
from cpuinfer_helpers.trainer import JitTrainer, emulation, stand_in, verify_trainer
from cpuinfer_helpers.trainer.grouping import lengths_of, tokens_of_batches
from cpuinfer_helpers.trainer.preparation import Preparation

ROOT = Path(__file__).parents[2]
NO_BF16, WITH_BF16 = ("AVX2",), ("AVX2", "AVX512", "AVX512_BF16")
FLAGS = ({"bf16": True}, {"bf16_full_eval": True}, {"bf16": True, "jit_mode_eval": True})
TIME = r"about [\d.]+ (s|ms|µs|min|h)"
WARNED = r"BF16 is emulated here: this CPU has no .+\. It is 3 to 34 times slower than FP32; leave --bf16"


def pretend(monkeypatch: pytest.MonkeyPatch, isa: tuple[str, ...]) -> None:
    """Have the report tell of a CPU with these instruction sets; what runs stays what runs here."""
    for name in CAPS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(report, "detect_isa", lambda: isa)


@pytest.fixture
def emulated(monkeypatch):
    pretend(monkeypatch, NO_BF16)


@pytest.fixture
def events(monkeypatch) -> list[str]:
    """What happened, in order: messages about emulation, preparations and batches."""
    seen: list[str] = []

    class Noting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno == logging.WARNING and "emulated" in record.getMessage():
                seen.append(record.getMessage())

    run, step = Preparation.run, JitTrainer.prediction_step
    monkeypatch.setattr(Preparation, "run", lambda self: (seen.append("preparation"), run(self))[1])
    monkeypatch.setattr(JitTrainer, "prediction_step", lambda *given, **k: (seen.append("batch"), step(*given, **k))[1])
    handler, log = Noting(), logging.getLogger("cpuinfer_helpers")
    monkeypatch.setattr(log, "handlers", [*log.handlers, handler])
    return seen


class Metered(torch.nn.Module):
    """Takes by a clock of its own half a second for each row of 32 tokens in FP32, and two in BF16."""

    now = 0.0
    fp32_rows: tuple[int, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.words, self.labels = torch.nn.Embedding(120, 8), torch.nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask):
        bf16 = torch.is_autocast_enabled("cpu")
        Metered.now += (2.0 if bf16 else 0.5) * input_ids.numel() / 32
        if not bf16:
            Metered.fp32_rows += (len(input_ids),)
        return {"logits": self.labels(self.words(input_ids) * attention_mask.unsqueeze(-1)).sum(dim=1)}


@pytest.fixture
def metered(monkeypatch, emulated) -> Metered:
    monkeypatch.setattr(Metered, "now", 0.0)
    monkeypatch.setattr(Metered, "fp32_rows", ())
    monkeypatch.setattr(emulation, "clock", lambda: Metered.now)
    return Metered().eval()


def plain_rows(count: int, width: int = 32) -> list[dict[str, Any]]:
    rows = make_rows("text-classification", count, width)
    return [{name: row[name] for name in ("input_ids", "attention_mask")} for row in rows]


def estimates(events: list[str]) -> list[str]:
    return [event for event in events if event.startswith("about ")]


# --- when it is said


@pytest.mark.parametrize("flags", FLAGS)
def test_it_is_said_before_preparation_and_estimated_before_the_second_batch(flags, emulated, events, new_trainer):
    rows = make_rows("question-answering")
    trainer = new_trainer(make_model(), rows, **flags)
    trainer.predict(rows)
    first, *begun, second, third, fourth = events
    assert re.match(WARNED, first) and begun == ["batch", "preparation"] and third == fourth == "batch"
    told = f"{TIME} for 3 batches in emulated BF16; {TIME} in eager FP32, by the first batch"
    assert re.fullmatch(told, second), second
    name = next(iter(flags))
    assert first.endswith(f"leave --{name} ({name}=True) out to evaluate in FP32")
    del events[:]
    trainer.evaluate()  # with what is prepared already
    assert events[0] == first and re.fullmatch(told, events[2]) and len(events) == 5 == 2 + events.count("batch")


def test_what_ran_is_called_emulated_wherever_it_shows(emulated, new_trainer):
    trainer = new_trainer(make_model(), make_rows("question-answering"), bf16=True)
    metrics = trainer.evaluate()
    receipt = trainer.jit_receipt
    assert metrics["eval_jit_bf16"] == "emulated" and metrics["eval_jit_recipe"] == "eager-bf16"
    assert receipt.runs == "the eager model under BF16 autocast (emulated)"
    assert receipt.evidence["BF16"].startswith("emulated: this CPU has no ")
    assert receipt.evidence["BF16"].endswith("; 3 to 34 times slower than FP32")
    assert "3 batches in emulated BF16" in receipt.evidence["estimate"]
    shown = dict(QaResult("eval", metrics, receipt, 7, 1.0, 0.0).table().rows)
    assert shown["ran"].endswith("(emulated)") and shown["BF16"].startswith("emulated")
    assert shown["estimate"] == receipt.evidence["estimate"]
    verdict = verify_trainer(trainer)
    assert verdict.precision == "BF16, emulated" and verdict.model.endswith("(emulated)")


def test_so_is_what_a_recipe_made(emulated, new_trainer):
    trainer = new_trainer(make_model(), make_rows("question-answering"), bf16=True, jit_mode_eval=True)
    metrics = trainer.evaluate()
    assert trainer.jit_receipt.script_module and trainer.jit_receipt.runs.endswith("(BF16 emulated)")
    assert metrics["eval_jit_bf16"] == "emulated" and metrics["eval_jit_recipe"].endswith("-bf16")


@pytest.mark.parametrize(("isa", "flags"), [(WITH_BF16, FLAGS[0]), (WITH_BF16, FLAGS[2]), (NO_BF16, {})])
def test_where_nothing_is_emulated_nothing_is_said_or_timed(isa, flags, events, new_trainer, monkeypatch):
    pretend(monkeypatch, isa)
    monkeypatch.setattr(emulation, "clock", lambda: pytest.fail("something is timed"))
    trainer = new_trainer(make_model(), make_rows("question-answering"), **flags)
    metrics = trainer.evaluate()
    assert events == ["batch", "preparation", "batch", "batch"] and "eval_jit_bf16" not in metrics
    assert not {"BF16", "estimate"} & trainer.jit_receipt.evidence.keys()
    assert "emulated" not in trainer.jit_receipt.runs


def test_of_processes_that_share_a_machine_one_says_it(emulated, events, new_trainer, monkeypatch):
    trainer = new_trainer(make_model(), make_rows("question-answering"), bf16=True)
    monkeypatch.setattr(trainer, "is_local_process_zero", lambda: False)
    assert trainer.evaluate()["eval_jit_bf16"] == "emulated"
    assert "emulated" not in "".join(events) and "estimate" not in trainer.jit_receipt.evidence


# --- what is estimated


@pytest.mark.parametrize(("count", "told"), [(3, ("1 batch", 6, 1.5)), (9, ("3 batches", 18, 4.5))])
def test_it_scales_with_the_number_of_batches(count, told, metered, events, new_trainer):
    new_trainer(metered, bf16=True).predict(plain_rows(count))
    batches, bf16, fp32 = told
    bf16, fp32 = (machine_text(seconds) for seconds in (bf16, fp32))
    assert estimates(events) == [f"about {bf16} for {batches} in emulated BF16; about {fp32} in eager FP32, "
                                 "by the first batch"]  # fmt: skip


def machine_text(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"


def test_of_a_large_batch_a_part_runs_in_fp32(metered, events, new_trainer):
    new_trainer(metered, bf16=True, per_device_eval_batch_size=40).predict(plain_rows(80))
    (told,) = estimates(events)
    assert told.startswith("about 3 min for 2 batches in emulated BF16; about 40.0 s in eager FP32")
    assert Metered.fp32_rows == (8,)


class Stream(torch.utils.data.IterableDataset):
    """Rows without a length."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


def test_without_a_number_of_batches_it_is_for_each(metered, events, new_trainer):
    new_trainer(metered, bf16=True).predict(Stream(plain_rows(9)))
    told = "about 6.00 s for each batch in emulated BF16; about 1.50 s in eager FP32, by the first batch"
    assert estimates(events) == [told]


@pytest.mark.parametrize("grouped", [True, False])
def test_batches_of_other_lengths_are_estimated_by_their_tokens(grouped, metered, events, new_trainer):
    rows = plain_rows(12, width=48)
    new_trainer(metered, bf16=True, group_eval_by_length=grouped).predict(rows)
    (told,) = estimates(events)
    tokens = tokens_of_batches(lengths_of(rows), 3)
    assert tokens[-1] < tokens[0] == 3 * 48
    whole = 2.0 * (sum(tokens) if grouped else 12 * 48) / 32
    assert told.startswith(f"about {machine_text(whole)} for 4 batches in emulated BF16; about ")
    assert told.endswith("by the first batch and the tokens of the others" if grouped else "by the first batch")


@pytest.mark.parametrize(
    ("durations", "first", "expected"),
    [([0.5, 0.2, 0.3, 0.1], None, 0.2), ([3.0, 1.0], None, 3.0), ([0.25, 0.5], 0.5, 0.25), ([0.5], 1.5, 1.5)],
)
def test_a_short_call_is_repeated_and_a_long_one_is_not(durations, first, expected, monkeypatch):
    now = 0.0
    left = list(durations)

    def call() -> None:
        nonlocal now
        now += left.pop(0)

    monkeypatch.setattr(emulation, "clock", lambda: now)
    assert emulation.shortest(call, first) == pytest.approx(expected)


def test_times_read_well():
    seconds = (0.25, 12, 89, 90, 42 * 60, 90 * 60, 30 * 3600)
    told = ["250 ms", "12.0 s", "89.0 s", "2 min", "42 min", "1.5 h", "30.0 h"]
    assert [emulation._duration(one) for one in seconds] == told


# --- what goes wrong


def test_a_model_that_fails_in_fp32_is_evaluated_all_the_same(metered, events, new_trainer, monkeypatch):
    def failing(self, input_ids, attention_mask):
        if not torch.is_autocast_enabled("cpu"):
            raise ValueError("only in BF16")
        return forward(self, input_ids, attention_mask)

    forward = Metered.forward
    monkeypatch.setattr(Metered, "forward", failing)
    output = new_trainer(metered, bf16=True).predict(plain_rows(9))
    assert len(output.predictions) == 9
    told = "about 18.0 s for 3 batches in emulated BF16, by the first batch; not known for eager FP32, which fails: "
    assert estimates(events) == [f"{told}ValueError: only in BF16"]


def test_a_model_that_cannot_be_copied(emulated, events, new_trainer):
    model, rows = Locked().train(), make_rows("text-classification")
    settings = {"label_names": ["labels"], "remove_unused_columns": False}
    trainer = new_trainer(model, rows, bf16=True, **settings)
    trainer.predict(rows)
    assert re.match(f"{TIME} for 3 batches in emulated BF16; {TIME} in eager FP32", estimates(events)[0])
    assert model.training and model.model.training
    assert trainer.jit_receipt.runs == "the model itself under BF16 autocast (emulated)"


def test_what_is_run_for_the_estimate_is_no_part_of_the_runtime(emulated, new_trainer, monkeypatch):
    monkeypatch.setattr(stand_in, "seconds_in_fp32", lambda *given: time.sleep(1.0) or 1.0)
    trainer = new_trainer(make_model(), make_rows("question-answering"), bf16=True)
    trainer.evaluate()
    started = time.perf_counter()
    metrics = trainer.evaluate()
    whole = time.perf_counter() - started
    assert metrics["eval_jit_compilation_time"] > 1.0
    assert metrics["eval_runtime"] + metrics["eval_jit_compilation_time"] <= whole + 0.001


# --- as a user sees it


@pytest.mark.skipif("AVX2" not in detect_isa(), reason="the variables cap instruction sets of x86 CPUs")
def test_run_qa_says_it_on_standard_error_on_a_cpu_held_back_to_avx2(tmp_path):
    caps = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OV_CPU_MAX_ISA": "AVX2"}
    words = ["--model_name_or_path", str(checkpoint_directory("question-answering")), "--do_eval", "--use_cpu"]
    words += ["--validation_file", str(DATA / "question-answering-heldout.json"), "--max_eval_samples", "3"]
    words += ["--max_seq_length", "64", "--doc_stride", "16", "--per_device_eval_batch_size", "2", "--bf16"]
    child = subprocess.run(
        [sys.executable, "-m", "cpuinfer_helpers.run_qa", *words, "--output_dir", str(tmp_path), "--report_to", "none"],
        env={**os.environ, "PYTHONPATH": str(ROOT), **caps}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-3000:]
    why = "ONEDNN_MAX_CPU_ISA=AVX2 keeps oneDNN from|this CPU has no"
    first = re.search(rf"^BF16 is emulated here: ({why}) .+; leave --bf16 ", child.stderr, re.MULTILINE)
    told = rf"^{TIME} for (\d+) batches in emulated BF16; {TIME} in eager FP32, by the first batch$"
    second = re.search(told, child.stderr, re.MULTILINE)
    assert first and second and first.start() < second.start(), child.stderr
    results = json.loads((tmp_path / "eval_results.json").read_text())
    assert int(second[2]) == -(-results["eval_samples"] // 2) > 1 and results["eval_jit_bf16"] == "emulated"
    evidence = json.loads((tmp_path / "eval_receipt.json").read_text())["evidence"]
    assert evidence["BF16"].startswith("emulated: ") and evidence["estimate"] == second[0]
    assert "under BF16 autocast (emulated)" in child.stdout and "in emulated BF16" in child.stdout
