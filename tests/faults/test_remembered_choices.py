"""A remembered choice that came to harm: it is measured anew, or the answers are right all the same."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.compare import RecipeResult
from cpuinfer_helpers.optimize import choices
from cpuinfer_helpers.processes.status import SUCCESSFUL
from cpuinfer_helpers.timing.results import Timing
from tests.faults.harm import Layers, example, largest_file
from tests.faults.test_tampered import Payload, archive, changed, places, plain_pickle
from tests.faults.test_two_at_once import in_two_processes

# The package holds the function under this name.
optimize_module = importlib.import_module("cpuinfer_helpers.optimize.optimize")

RECIPES = ["torchscript-fp32"]


def found() -> cpu.Comparison:
    """What a search finds in which the trace takes half the time."""
    times = {"eager-fp32": 0.002, "torchscript-fp32": 0.001}
    timings = {
        name: Timing(
            label=name,
            samples=tuple(seconds + number * 1e-6 for number in range(6)),
            first_call=seconds,
            warmup_calls=3,
            steady=True,
            stopped_by="interval",
            threads=1,
            round_id="1",
        )
        for name, seconds in times.items()
    }
    reference = timings["eager-fp32"]
    rows = {
        name: RecipeResult(
            name,
            "fp32",
            SUCCESSFUL,
            timing=timing,
            speedup=None if timing is reference else timing.is_faster_than(reference),
            receipt=cpu.prepare(name, Layers().eval(), example()).receipt,
        )
        for name, timing in timings.items()
    }
    environment = {"measured_at": "2026-01-01", "cpu": "a CPU"}
    return cpu.Comparison(rows=rows, model="Layers", inputs={}, batch_size=2, threads=1, environment=environment)


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Counts the searches, which find that the trace is faster."""
    monkeypatch.setenv("CPUINFER_CACHE", str(tmp_path / "cache"))
    comparison, done = found(), []

    def run(self: Any, recipes: Any) -> cpu.Comparison:
        done.append(len(recipes))
        return comparison

    monkeypatch.setattr(optimize_module.Search, "run", run)
    return done


def optimize(**options: Any) -> cpu.OptimizedModel:
    """Whatever has happened to the memory, it gives the model's answers."""
    optimized = cpu.optimize(Layers().eval(), example(), recipes=RECIPES, budget_s=60, **options)
    assert optimized.recipe in ("eager-fp32", "torchscript-fp32") and str(optimized) and optimized.table()
    with torch.no_grad():
        expected = Layers().eval()(**example(3))["logits"]
    # The same FP32 kernels, perhaps in another order of additions.
    torch.testing.assert_close(optimized(**example(3))["logits"], expected, rtol=0, atol=1e-6)
    return optimized


@pytest.fixture
def file(searches: list[int], tmp_path: Path) -> Path:
    assert optimize().recipe == "torchscript-fp32" and optimize().remembered
    (path,) = (tmp_path / "cache" / "choices").iterdir()
    searches.clear()
    return path


def test_cut_at_every_tenth_of_its_length(file: Path, searches: list[int], caplog: pytest.LogCaptureFixture) -> None:
    whole = file.read_bytes()
    for tenths in range(10):
        file.write_bytes(whole[: len(whole) * tenths // 10])
        caplog.clear()
        assert not optimize().remembered
        assert str(file) in caplog.text and "measuring anew" in caplog.text
        assert file.read_bytes() == whole and len(searches) == tenths + 1


def test_every_field_in_turn(file: Path, searches: list[int], caplog: pytest.LogCaptureFixture) -> None:
    whole = json.loads(file.read_text())
    # Both rows are read alike, and of a receipt one level shows whether it is checked.
    fields = [path for path in places(whole) if "eager-fp32" not in path and not ("receipt" in path and len(path) > 4)]
    refused = 0
    for number, path in enumerate(fields):
        value = (None, "x")[number % 2]
        file.write_text(json.dumps(changed(whole, path, lambda holder, key, v=value: holder.__setitem__(key, v))))
        refused += not optimize().remembered
        file.write_text(json.dumps(changed(whole, path, lambda holder, key: holder.pop(key))))
        refused += not optimize().remembered
    assert refused == len(searches) > len(fields)


@pytest.mark.parametrize("name", ["no-such-recipe-fp32", "eager-bf16"])
def test_a_recipe_that_was_not_asked_for(file: Path, searches: list[int], name: str) -> None:
    whole = json.loads(file.read_text())
    row = {**whole["rows"].pop("torchscript-fp32"), "recipe": name}
    file.write_text(json.dumps({**whole, "rows": {**whole["rows"], name: row}}))
    assert not optimize().remembered and len(searches) == 1


@pytest.mark.parametrize("put", [plain_pickle, archive])
def test_a_pickle_in_its_place_does_not_run(file: Path, searches: list[int], tmp_path: Path, put: Any) -> None:
    put(Payload(tmp_path / "ran"), file)
    assert not optimize().remembered and len(searches) == 1
    assert not (tmp_path / "ran").exists() and optimize().remembered


@pytest.mark.parametrize("text", ["[" * 100_000, "null", "\ufeff{}"], ids=range(3))
def test_json_that_is_something_else(file: Path, searches: list[int], text: str) -> None:
    file.write_text(text, encoding="utf-8")
    assert not optimize().remembered and len(searches) == 1


@pytest.mark.parametrize("refresh", [False, True])
def test_a_folder_in_its_place(file: Path, caplog: pytest.LogCaptureFixture, refresh: bool) -> None:
    file.unlink()
    file.mkdir()
    assert not optimize(refresh=refresh).remembered
    assert str(file) in caplog.text and "cannot be remembered" in caplog.text


@pytest.mark.parametrize("refresh", [False, True])
def test_a_cache_whose_name_is_impossible(
    searches: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, refresh: bool
) -> None:
    """The system refuses even to look."""
    monkeypatch.setenv("CPUINFER_CACHE", "x" * 5000)
    assert not optimize(refresh=refresh).remembered
    assert "cannot be remembered" in caplog.text and "CPUINFER_CACHE" in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
@pytest.mark.parametrize("refresh", [False, True])
def test_a_cache_that_may_not_be_looked_into(file: Path, caplog: pytest.LogCaptureFixture, refresh: bool) -> None:
    file.parent.chmod(0)
    try:
        assert not optimize(refresh=refresh).remembered
    finally:
        file.parent.chmod(0o755)
    assert "cannot be remembered" in caplog.text


def test_a_full_disk(file: Path, searches: list[int], caplog: pytest.LogCaptureFixture) -> None:
    """What was chosen is used, and told; half a file is not left behind."""
    whole = file.read_bytes()
    for limit in (0, 100, len(whole) - 1):
        file.unlink()
        caplog.clear()
        with largest_file(limit):
            assert optimize().recipe == "torchscript-fp32"
        assert "cannot be remembered" in caplog.text and list(file.parent.iterdir()) == []
        file.write_bytes(whole)


@pytest.mark.apart
def test_two_processes_that_remember_the_same(searches: list[int], tmp_path: Path) -> None:
    comparison, model = found(), Layers().eval()
    folder = tmp_path / "cache" / "choices"

    def remember_often(name: str) -> None:
        for _ in range(100):
            choices.remember(folder / "choice.json", comparison)
            assert choices.recall(folder / "choice.json", model, 1) is not None

    in_two_processes(remember_often)
    assert [path.name for path in folder.iterdir()] == ["choice.json"]


def test_an_interrupt_while_it_is_written(file: Path, searches: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = file.read_bytes()

    def interrupted(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            choices.remember(file, found())
    assert file.read_bytes() == whole and list(file.parent.iterdir()) == [file]
