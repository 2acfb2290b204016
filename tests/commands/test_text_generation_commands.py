"""optimize and compare of text generation from a shell, with a folder that holds a Qwen2-like model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import cpuinfer_helpers as cpu
from cpuinfer_helpers.__main__ import main
from cpuinfer_helpers.generation.selection import GenerationComparison
from tests.conftest import write_tokenizer
from tests.generation.models import make_language_model

PROMPT = "the cat sat on the mat"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("my language model")
    make_language_model("qwen2", eos_token_id=None).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPUINFER_CACHE", str(tmp_path / "cache"))


def words(folder: Path, *more: str) -> list[str]:
    return [
        "optimize",
        "--task",
        "text-generation",
        "--model",
        str(folder),
        "--length",
        "12",
        "--new-tokens",
        "4",
        *more,
    ]


def test_a_model_is_optimized_saved_and_written_with(model_folder, tmp_path, capsys):
    saved, result = tmp_path / "saved here", tmp_path / "result.json"
    written = ["--save", str(saved), "--result", str(result), "--price-per-hour", "0.5"]
    assert main(words(model_folder, "--recipes", "torchscript-int8", "--batch", "2", *written)) == 0
    shown = capsys.readouterr().out
    for text in ("Qwen2ForCausalLM", "torchscript-int8", "eager-fp32", f"saved to {saved}", "cost of a million"):
        assert text in shown
    comparison = GenerationComparison.load(result)
    assert list(comparison) == ["eager-fp32", "torchscript-int8"] and comparison.new_tokens == 4
    assert comparison.prompts["input_ids"] == "2 x 12, int64"
    assert cpu.load_optimized(saved).comparison == comparison
    assert main(["generate", "--model", str(saved), "--prompt", PROMPT, "--max-new-tokens", "3"]) == 0
    assert PROMPT in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--metric-examples", "3"], "perplexity is compared in any case"),
        (["--precisions", "fp8"], "precisions holds 'fp8'"),
        (["--new-tokens", "1"], "new_tokens is 1"),
        (["--recipes", "onednn-graph-fp32"], "no recipe 'onednn-graph-fp32' to generate text"),
        (["--price-per-hour", "-1"], "price_per_hour is -1"),
    ],
)
def test_requests_that_cannot_be_met_are_one_line(model_folder, capsys, more, told):
    assert main(words(model_folder, *more)) == 2
    shown = capsys.readouterr().err
    assert told in shown.splitlines()[-1] and "Traceback" not in shown


def test_recipes_are_compared_on_the_tasks_models(monkeypatch, tmp_path, capsys):
    task = cpu.load_task("text-generation")
    # GPT-2's geometry takes minutes; what is told is the same.
    object.__setattr__(task, "model", task.trained_model)
    monkeypatch.setattr("cpuinfer_helpers.commands.compare.load_task", lambda name: task)
    file = tmp_path / "comparison.json"
    asked = ["--recipes", "torchscript-fp16w", "--length", "16", "--new-tokens", "3", "--fast", "--save", str(file)]
    assert main(["compare", "--task", "text-generation", *asked]) == 0
    shown = capsys.readouterr().out
    assert "each token" in shown and "perplexity" in shown and "offline" in shown
    rows = json.loads(file.read_text())["rows"]
    assert len(rows["torchscript-fp16w"]["timing"]["turns"]) == 2
