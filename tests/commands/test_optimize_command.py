"""python -m cpuinfer_helpers optimize: what it prints, what it writes, and what it says to wrong requests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.__main__ import main
from cpuinfer_helpers.commands import optimize
from cpuinfer_helpers.optimize import search
from tests.conftest import make_bert, make_inputs, write_tokenizer
from tests.tasks.kinds.tiny import save_tiny


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("my model")
    make_bert("BertForSequenceClassification", vocab_size=200).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPUINFER_CACHE", str(tmp_path / "cache"))


def words(folder: Path, *more: str, task: str = "text-classification") -> list[str]:
    return ["optimize", "--model", str(folder), "--task", task, *more]


def test_a_model_is_optimized_saved_and_told(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, result = tmp_path / "saved here", tmp_path / "result.json"
    asked = ["--recipes", "torchscript-fp32", "--length", "16", "--batch", "2", "--budget", "60"]
    written = ["--save", str(saved), "--result", str(result), "--price-per-hour", "0.5"]
    assert main(words(model_folder, *asked, *written)) == 0
    shown = capsys.readouterr().out
    for text in ("BertForSequenceClassification", "torchscript-fp32", "eager-fp32", f"saved to {saved}", "million"):
        assert text in shown
    comparison = cpu.Comparison.load(result)
    assert set(comparison.rows) == {"eager-fp32", "torchscript-fp32"} and comparison.batch_size == 2
    assert comparison.inputs["input_ids"] == "2 x 16, int64"
    loaded, model = cpu.load_optimized(saved), make_bert("BertForSequenceClassification", vocab_size=200)
    inputs = make_inputs(3, 9)
    with torch.no_grad():
        expected = model(**inputs).logits
    # FP32 kernels that add in another order.
    assert torch.allclose(loaded(**inputs).logits, expected, atol=1e-5)
    assert loaded.comparison == comparison


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--model", "no such folder/at/all"], "is no folder here, and no name on the hub"),
        (["--model", "./nowhere"], "./nowhere is no folder here"),
        (["--budget", "-1"], "budget_s is -1"),
        (["--budget", "nan"], "budget_s is nan"),
        (["--tolerance", "-0.5"], "tolerance is -0.5"),
        (["--batch", "0"], "batch_size 0"),
        (["--length", "0"], "length 0"),
        (["--length", "-3"], "length -3"),
        (["--metric-examples", "-1"], "--metric-examples is -1"),
        (["--precisions", ","], "--precisions ',' names none"),
        (["--precisions", "fp16"], "precisions holds 'fp16'"),
        (["--recipes", "quantum-fp32"], "quantum-fp32"),
        (["--recipes", ""], "--recipes '' names none"),
        (["--price-per-hour", "-1"], "price_per_hour is -1"),
        (["--price-per-hour", "0"], "price_per_hour is 0"),
    ],
)
def test_a_wrong_request_ends_with_one_line(
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    told: str,
) -> None:
    """Before anything is measured."""

    def measured(*arguments: object, **options: object) -> None:
        raise AssertionError("it was measured first")

    monkeypatch.setattr(search.Search, "run", measured)
    assert main(words(model_folder, *more)) == 2
    shown = capsys.readouterr().err
    # Transformers shows its progress while it loads a model.
    (line,) = [line for line in shown.splitlines() if line.startswith("optimize: ")]
    assert told in line and "Traceback" not in shown


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--task", "translation"], "invalid choice: 'translation'"),
        (["--budget", "long"], "invalid float value: 'long'"),
        (["--batch", "1.5"], "invalid int value: '1.5'"),
    ],
)
def test_words_that_are_no_such_values(
    model_folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], told: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words(model_folder, *more))
    assert caught.value.code == 2 and told in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["not a model", "cut"])
def test_a_folder_that_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    folder = tmp_path / "folder"
    if damage == "cut":
        make_bert("BertForSequenceClassification").save_pretrained(folder)
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        folder.mkdir()
        (folder / "thesis.txt").write_text("mine")
    assert main(words(folder)) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("optimize: ")]
    assert len(told) == 1 and f"{folder} cannot be loaded for text-classification" in told[0]


def test_a_folder_of_something_else_is_refused_before_anything_is_measured(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("mine")
    monkeypatch.setattr(optimize, "optimize", lambda *arguments, **options: pytest.fail("it was measured first"))
    assert main(words(model_folder, "--save", str(tmp_path / "thesis"))) == 2
    assert str(tmp_path / "thesis") in capsys.readouterr().err


def test_an_interrupt_ends_with_130(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(optimize, "optimize", interrupted)
    assert main(words(model_folder, "--save", str(tmp_path / "saved"))) == 130
    assert "interrupted" in capsys.readouterr().err and not (tmp_path / "saved").exists()


def test_the_metric_of_the_task_and_rows_to_calibrate_with(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}

    class Stop(Exception):
        pass

    def noted(model: torch.nn.Module, inputs: object, **options: object) -> None:
        given.update(options)
        given["score"] = options["metric"](model)
        raise Stop

    monkeypatch.setattr(optimize, "optimize", noted)
    with pytest.raises(Stop):
        main(words(model_folder, "--metric-examples", "2", "--precisions", "int8,fp32", "--length", "16", "--refresh"))
    assert given["precisions"] == ["int8", "fp32"] and given["refresh"] is True and 0 <= given["score"] <= 100
    assert given["calibration"] and all(row["input_ids"].shape[1] <= 64 for row in given["calibration"])


def test_a_model_without_a_head_keeps_the_directions_of_its_vectors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, result = save_tiny("feature-extraction", tmp_path / "model"), tmp_path / "result.json"
    asked = ["--recipes", "torchscript-fp32", "--length", "16", "--metric-examples", "3", "--budget", "60"]
    assert main(words(folder, *asked, "--result", str(result), task="feature-extraction")) == 0
    assert "BertModel" in capsys.readouterr().out
    rows = cpu.Comparison.load(result).rows
    assert set(rows) == {"eager-fp32", "torchscript-fp32"}
    assert all(float(row.receipt.evidence["metric"]) == pytest.approx(100.0, abs=1e-3) for row in rows.values())


@pytest.mark.parametrize("task", ["audio-classification", "fill-mask", "image-classification", "sentence-similarity"])
def test_each_kind_of_task_gives_the_inputs_and_rows_that_its_model_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    given: dict[str, object] = {}

    def noted(model: torch.nn.Module, inputs: dict[str, torch.Tensor], **options: object) -> object:
        given.update(options)
        with torch.no_grad():
            given["rows"] = [model(**some)[0].shape[0] for some in (inputs, *options["calibration"])]
        return "optimized"

    monkeypatch.setattr(optimize, "optimize", noted)
    folder = save_tiny(task, tmp_path / "model")
    assert main(words(folder, "--precisions", "int8", "--batch", "2", task=task)) == 0
    reads_texts = task in ("fill-mask", "sentence-similarity")
    assert given["rows"] == [2, *[1] * (32 if reads_texts else 0)] and given["metric"] is None
