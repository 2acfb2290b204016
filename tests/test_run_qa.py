"""The guide's command line: its files, its scores, and one clear line for what cannot be done."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers import run_qa
from cpuinfer_helpers.receipts import Receipt
from cpuinfer_helpers.saving.plain import read
from cpuinfer_helpers.tasks.data_files import DATA
from cpuinfer_helpers.tasks.loading import checkpoint_directory
from cpuinfer_helpers.tasks.squad.data import read_squad
from cpuinfer_helpers.trainer import JitTrainer, JitTrainingArguments

CHECKPOINT = str(checkpoint_directory("question-answering"))
HELDOUT = str(DATA / "question-answering-heldout.json")
LIMIT = 12
ROOT = Path(cpu.__file__).parents[1]


@pytest.fixture
def command(tmp_path, new_accelerate_state, capsys):
    """Runs the command on a few questions; returns exit code, folder and what was printed."""

    def run(*words: str, file: str = HELDOUT, model: str = CHECKPOINT, limit: int = LIMIT, folder: str = "out") -> Any:
        out = tmp_path / folder
        given = ["--model_name_or_path", model, "--validation_file", file, "--do_eval", "--max_seq_length", "384"]
        given += ["--doc_stride", "128", "--output_dir", str(out), "--no_cuda", "--report_to", "none"]
        code = run_qa.main([*given, "--max_eval_samples", str(limit), "--disable_tqdm", "true", *words])
        return code, out, capsys.readouterr()

    return run


def load(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def test_plain_evaluation_has_upstreams_files_and_the_tasks_scores(command):
    code, out, printed = command()
    assert code == 0
    assert {path.name for path in out.iterdir()} == {
        "all_results.json", "eval_results.json", "eval_predictions.json", "eval_nbest_predictions.json",
        "eval_receipt.json",
    }  # fmt: skip
    results = load(out, "eval_results.json")
    score = cpu.load_task("question-answering").evaluate(limit=LIMIT)
    assert list(load(out, "eval_predictions.json").values()) == list(score.predictions)
    assert results["eval_f1"] == pytest.approx(score.metrics["f1"], abs=1e-4)
    assert results["eval_exact_match"] == pytest.approx(score.metrics["exact_match"], abs=1e-4)
    assert results["eval_samples"] >= LIMIT and results.keys() >= {"eval_runtime", "eval_samples_per_second"}
    assert load(out, "all_results.json") == results
    best = load(out, "eval_nbest_predictions.json")
    for name, text in load(out, "eval_predictions.json").items():
        assert best[name][0]["text"] == text and best[name][0].keys() == {
            "text", "start_logit", "end_logit", "probability"
        }  # fmt: skip
        assert sum(record["probability"] for record in best[name]) == pytest.approx(1, abs=1e-5)
    assert not load(out, "eval_receipt.json")["script_module"]
    assert "questions per second" in printed.out and f"{results['eval_f1']:.2f}" in printed.out


@pytest.mark.parametrize("grouped", [True, False])
def test_with_jit_answers_are_the_same_and_the_receipt_lies_beside_them(command, grouped):
    _, plain, _ = command(folder="plain")
    words = () if grouped else ("--pad_to_max_length", "true")
    code, out, printed = command("--jit_mode_eval", *words)
    assert code == 0
    assert load(out, "eval_predictions.json") == load(plain, "eval_predictions.json")
    results = load(out, "eval_results.json")
    assert results["eval_f1"] == load(plain, "eval_results.json")["eval_f1"]
    assert results["eval_jit_traced"] is True and results["eval_jit_compilation_time"] > 0
    receipt = read(Receipt, load(out, "eval_receipt.json"), "receipt", older=True)
    assert receipt.script_module and receipt.verified and receipt.requested["jit_mode_eval"]
    assert "ScriptModule" in printed.out and "compilation" in printed.out


def test_bf16_with_jit_runs_in_bf16(command):
    code, out, _ = command("--jit_mode_eval", "--bf16_full_eval")
    assert code == 0 and set(load(out, "eval_receipt.json")["linear_dtypes"]) == {"bfloat16"}


def test_logits_are_those_of_the_model(command, monkeypatch):
    """What is padded to 384 and batched by 8 is what the model gives for one row."""
    seen = {}
    predict = JitTrainer.predict

    def noted(self, rows, **settings):
        output = predict(self, rows, **settings)
        seen.update(rows=rows, output=output.predictions)
        return output

    monkeypatch.setattr(JitTrainer, "predict", noted)
    command()
    model = cpu.load_task("question-answering").trained_model
    for number, row in enumerate(seen["rows"]):
        with torch.no_grad():
            expected = model(**{name: torch.tensor([values]) for name, values in row.items()})
        length = len(row["input_ids"])
        assert seen["output"][0].shape[1] == 384
        np.testing.assert_allclose(seen["output"][0][number][:length], expected.start_logits[0], atol=1e-4)


def test_squad_2_has_null_odds_and_its_scores(command, tmp_path):
    questions = [vars(question) for question in read_squad(HELDOUT)[:6]]
    flat = [
        {
            **{name: q[name] for name in ("id", "question", "context")},
            "answers": {"text": list(q["answers"]), "answer_start": list(q["answer_starts"])},
        }
        for q in questions
    ]
    flat[0]["answers"] = {"text": [], "answer_start": []}
    file = tmp_path / "v2.json"
    file.write_text(json.dumps({"data": flat}))
    code, out, printed = command("--version_2_with_negative", file=str(file))
    results = load(out, "eval_results.json")
    assert code == 0 and results["eval_NoAns_total"] == 1 and results["eval_HasAns_total"] == 5
    assert load(out, "eval_null_odds.json").keys() == {record["id"] for record in flat}
    words = ("--version_2_with_negative", "--null_score_diff_threshold", "-100")
    _, never, _ = command(*words, file=str(file), folder="never")
    assert set(load(never, "eval_predictions.json").values()) == {""}
    assert load(never, "eval_results.json")["eval_NoAns_exact"] == 100
    code, _, printed = command(file=str(file), folder="one")
    assert code == 0 and "exact_match" in printed.out


def test_prediction_of_questions_without_answers(command, tmp_path):
    flat = [{"id": q.id, "question": q.question, "context": q.context} for q in read_squad(HELDOUT)[:5]]
    file = tmp_path / "test.json"
    file.write_text(json.dumps({"data": flat}))
    code, out, _ = command("--do_predict", "--test_file", str(file), "--max_predict_samples", "3")
    assert code == 0
    assert list(load(out, "predict_predictions.json")) == [record["id"] for record in flat[:3]]
    expected = load(out, "eval_predictions.json")
    assert all(expected[name] == text for name, text in load(out, "predict_predictions.json").items())
    results = load(out, "predict_results.json")
    assert "predict_f1" not in results and results["predict_runtime"] > 0
    assert load(out, "all_results.json").keys() == results.keys() | load(out, "eval_results.json").keys()


def test_options_may_come_from_one_json_file(command, tmp_path, capsys):
    _, out, _ = command()
    file = tmp_path / "options.json"
    options = {
        "model_name_or_path": CHECKPOINT, "validation_file": HELDOUT, "do_eval": True, "no_cuda": True,
        "output_dir": str(tmp_path / "again"), "max_eval_samples": LIMIT, "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip
    file.write_text(json.dumps(options))
    assert run_qa.main([str(file)]) == 0
    assert load(tmp_path / "again", "eval_predictions.json") == load(out, "eval_predictions.json")
    file.write_text(json.dumps({**options, "nonsense": 1}))
    assert run_qa.main([str(file)]) == 2 and "nonsense" in capsys.readouterr().err
    file.write_text("[1]")
    assert run_qa.main([str(file)]) == 2 and "holds a list; give an object" in capsys.readouterr().err


# --- one clear line and exit code 2


def refused(code: int, printed: Any) -> str:
    lines = [line for line in printed.err.splitlines() if line.startswith("run_qa: ")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in printed.err, printed.err
    return lines[0]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "nothing.json cannot be read: No such file"),
        ('{"data": [', "is not valid JSON"),
        ('{"data": []}', "holds no question"),
        ('{"data": [{"id": "7", "context": "a b"}]}', "record 0 (7) has no 'question'"),
        (
            '{"data": [{"id": "7", "context": "a b", "question": "c?", '
            '"answers": {"text": ["z"], "answer_start": [0]}}]}',
            "record 0 (7): the answer 'z' is not at answer_start 0",
        ),
    ],
)
def test_bad_data(content, told, command, tmp_path):
    file = tmp_path / "nothing.json"
    if content is not None:
        file.write_text(content)
    code, out, printed = command(file=str(file))
    assert told in refused(code, printed)
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--nonsense", "3"], "--nonsense is no option"),
        (["--max_seq_length", "five"], "invalid int value: 'five'"),
        (["--max_seq_length", "4000"], "max_seq_length 4000 is more than the"),
        (["--doc_stride", "380"], "which must be more than doc_stride 380"),
        (["--n_best_size", "0"], "--n_best_size is 0; give at least 1"),
        (["--do_train"], "--do_train: this command evaluates"),
        (["--do_predict"], "give --dataset_name or --test_file"),
        (["--jit_mode_eval", "--jit_recipe", "nothing"], "there is no recipe 'nothing-fp32'"),
        (["--output_dir", "/proc/nowhere"], "--output_dir /proc/nowhere cannot be written"),
    ],
)
def test_bad_options(words, told, command):
    code, _, printed = command(*words)
    assert told in refused(code, printed)


def test_a_checkpoint_with_another_head_or_without_weights(command, tmp_path):
    other = str(checkpoint_directory("text-classification"))
    code, _, printed = command(model=other)
    assert "is no question answering checkpoint: it has no weights for qa_outputs" in refused(code, printed)
    shutil.copytree(CHECKPOINT, tmp_path / "half")
    (tmp_path / "half" / "model.safetensors").unlink()
    code, _, printed = command(model=str(tmp_path / "half"))
    assert "half cannot be loaded: OSError" in refused(code, printed)
    code, _, printed = command(model=str(tmp_path / "none"))
    assert "none cannot be loaded" in refused(code, printed)


def test_a_data_set_that_cannot_be_fetched(tmp_path, capsys):
    words = ["--model_name_or_path", CHECKPOINT, "--dataset_name", "squad", "--do_eval", "--output_dir", str(tmp_path)]
    code = run_qa.main(words)
    told = refused(code, capsys.readouterr())
    assert "--dataset_name squad, part 'validation', cannot be loaded: HF_HUB_OFFLINE is set" in told
    assert "--validation_file" in told


def test_a_killed_run_leaves_no_half_written_file(tmp_path):
    out = tmp_path / "out"
    words = ["--model_name_or_path", CHECKPOINT, "--validation_file", HELDOUT, "--do_eval", "--output_dir", str(out)]
    code = (
        "import json, os, signal\n"
        "from cpuinfer_helpers.saving import folders; from cpuinfer_helpers import run_qa\n"
        "from pathlib import Path\n"
        "write = Path.write_text\n"
        "def half(self, text, **settings):\n"
        "    if 'nbest' in self.name:\n"
        "        write(self, text[: len(text) // 2], **settings)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return write(self, text, **settings)\n"
        "Path.write_text = half\n"
        f"run_qa.main({[*words, '--max_eval_samples', '4', '--report_to', 'none', '--use_cpu']!r})\n"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()[-2000:]
    for path in out.glob("*.json"):
        json.loads(path.read_text())
    assert (out / "eval_predictions.json").is_file() and not (out / "eval_nbest_predictions.json").exists()


def test_an_interrupt_ends_it_with_one_line(tmp_path):
    words = ["--model_name_or_path", CHECKPOINT, "--validation_file", HELDOUT, "--do_eval", "--use_cpu"]
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from cpuinfer_helpers import run_qa\n"
        "from cpuinfer_helpers.trainer import JitTrainer\n"
        "JitTrainer.predict = lambda *given, **more: os.kill(os.getpid(), signal.SIGINT)\n"
        f"sys.exit(run_qa.main({[*words, '--output_dir', str(tmp_path / 'out'), '--report_to', 'none']!r}))\n"
    )
    started = time.monotonic()
    child = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert child.returncode == 130 and "run_qa: interrupted" in child.stderr, (time.monotonic() - started, child.stderr)
    assert "Traceback" not in child.stderr and not list((tmp_path / "out").iterdir())


def test_a_tokenizer_that_pads_on_the_left_changes_no_answer(command, tmp_path):
    _, plain, _ = command(folder="plain")
    shutil.copytree(CHECKPOINT, tmp_path / "left")
    file = tmp_path / "left" / "tokenizer_config.json"
    settings = {"padding_side": "left", "truncation_side": "left"}
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    code, out, printed = command(model=str(tmp_path / "left"))
    assert code == 0, printed.err
    assert load(out, "eval_predictions.json") == load(plain, "eval_predictions.json")


@pytest.mark.parametrize(
    "words",
    [
        "--seed -1", "--per_device_eval_batch_size 0", "--per_device_eval_batch_size -3", "--dataloader_drop_last true",
        "--deepspeed x", "--report_to nope", "--fsdp full_shard", "--dataloader_num_workers -1", "--max_seq_length 0",
        "--doc_stride 384", "--eval_use_gather_object true", "--eval_do_concat_batches false", "--fp16 true",
        "--eval_accumulation_steps 0", "--prediction_loss_only true", "--past_index 0", "--torch_compile true",
        "--null_score_diff_threshold nan", "--dataloader_num_workers 1000000",
    ],
)  # fmt: skip
def test_options_that_make_no_sense_for_an_evaluation(words, command):
    code, _, printed = command(*words.split())
    assert refused(code, printed)


OPTIONS = [option.name for option in dataclasses.fields(JitTrainingArguments) if option.init]
# What a command line and a file of options may say by mistake, whatever the option is.
WORDS = {"of another type": "nonsense", "negative": "-1", "zero": "0", "empty": "", "no number": "nan", "huge": "1e400"}
VALUES = [[1], ["a"], {"a": 1}, "nonsense", -1, 0, 1, 2, 0.5, "", math.nan, math.inf, None, True, False, 10**30]


@pytest.fixture
def taken(monkeypatch, capfd, tmp_path):
    """Whether the command takes these words, as far as the model; what it refuses must be told in one line."""

    class TakenError(Exception):
        pass

    def load(*_: Any) -> Any:
        raise TakenError

    monkeypatch.setattr(run_qa, "_load", load)
    monkeypatch.setattr(run_qa, "_questions", lambda *_: [])
    monkeypatch.setattr(run_qa, "_writable", lambda folder: tmp_path)

    def run(words: list[str]) -> bool:
        try:
            code = run_qa.main(words)
        except TakenError:
            return True
        printed = capfd.readouterr()
        lines = [line for line in printed.err.splitlines() if line.startswith("run_qa: ")]
        assert code == 2 and len(lines) == 1 and "Traceback" not in printed.err, (words, code, printed.err)
        assert len(lines[0]) > len("run_qa: ") and not printed.out, (words, lines)
        return False

    return run


@pytest.mark.usefixtures("new_accelerate_state")
@pytest.mark.parametrize("word", WORDS.values(), ids=WORDS)
def test_every_option_with_nonsense_is_refused_in_one_line_or_does_no_harm(word, taken, tmp_path, monkeypatch, capfd):
    """What it takes, it then runs with, all at once: options of training, for one, do nothing in an evaluation."""
    needed = {"model_name_or_path": CHECKPOINT, "validation_file": HELDOUT, "do_eval": "true", "output_dir": tmp_path}
    others = {"use_cpu": "true", "report_to": "none", "disable_tqdm": "true", "max_eval_samples": "1"}
    given = {**needed, **others}

    def words_of(options: dict[str, Any]) -> list[str]:
        return [f"--{name}={value}" for name, value in options.items()]

    assert taken(words_of(given))
    harmless = {name: word for name in OPTIONS if taken(words_of({**given, name: word}))}
    refused = set(OPTIONS) - harmless.keys()
    assert "per_device_eval_batch_size" in refused
    monkeypatch.undo()
    # What is reported to is looked up by the Trainer; the others must stay for a run to be had.
    code = run_qa.main(words_of({**given, **harmless, **needed, "report_to": "none"}))
    assert code == 0, capfd.readouterr().err


def test_every_option_of_a_file_with_a_value_of_another_type(taken, tmp_path):
    options = {
        "model_name_or_path": CHECKPOINT, "validation_file": HELDOUT, "do_eval": True, "output_dir": str(tmp_path),
        "use_cpu": True, "report_to": "none",
    }  # fmt: skip
    file = tmp_path / "options.json"

    def takes(**changed: Any) -> bool:
        file.write_text(json.dumps({**options, **changed}))
        return taken([str(file)])

    assert takes()
    streams = [os.fstat(number)[:3] for number in range(3)]
    for name in OPTIONS:
        found = {repr(value): takes(**{name: value}) for value in VALUES}
        assert not found["[1]"] and sum(found.values()) < len(VALUES) - 3, (name, found)
    assert [os.fstat(number)[:3] for number in range(3)] == streams, "a number was taken for a file descriptor"
    for name in ("seed", "per_device_eval_batch_size", "bf16", "output_dir", "log_level", "deepspeed"):
        assert not takes(**{name: {"a": [1]}}) and not takes(**{name: 0.5})


@pytest.mark.parametrize("content", ["[" * 100_000, json.dumps([{
    "id": "1", "question": "who \ud800?", "context": "a b", "answers": {"text": ["a"], "answer_start": [0]},
}])], ids=["deep", "surrogate"])  # fmt: skip
def test_files_that_no_reader_takes(content, command, tmp_path):
    (tmp_path / "data.json").write_text(content)
    code, _, printed = command(file=str(tmp_path / "data.json"))
    assert refused(code, printed)


@pytest.mark.parametrize("stream", [None, "closed"])
def test_without_standard_error_the_exit_code_tells(stream, monkeypatch):
    if stream:
        stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    assert run_qa.main(["--nonsense"]) == 2
