"""What was chosen is remembered for the same machine, versions and shapes, and verified before it is used again."""

from __future__ import annotations

import functools
import importlib
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from repeating import make_inputs, make_model, make_recipes

import cpuinfer_helpers as cpu
from cpuinfer_helpers.compare import RecipeResult
from cpuinfer_helpers.optimize import choices
from cpuinfer_helpers.processes.status import SUCCESSFUL, Kind, Status
from cpuinfer_helpers.recipes import get_recipe
from cpuinfer_helpers.timing.results import Timing
from tests.conftest import make_bert
from tests.conftest import make_inputs as make_tokens

# The package holds the function under this name.
optimize_module = importlib.import_module("cpuinfer_helpers.optimize.optimize")

RECIPES = ["torchscript-fp32"]
SETTINGS = {"tolerance": None}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CPUINFER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "choices"


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Counts the searches; what was remembered needs none."""
    done: list[str] = []
    run = optimize_module.Search.run

    def counted(self, recipes):
        done.append(type(self.model).__name__)
        return run(self, recipes)

    monkeypatch.setattr(optimize_module.Search, "run", counted)
    return done


def optimize(model: torch.nn.Module, **options) -> cpu.OptimizedModel:
    return cpu.optimize(model, make_inputs(), recipes=RECIPES, budget_s=60, **options)


def test_the_second_call_remembers_and_refresh_forgets(searches: list[str], cache: Path) -> None:
    first = optimize(make_model())
    assert len(list(cache.iterdir())) == 1 and not first.remembered
    second = optimize(make_model())
    assert second.remembered and second.recipe == first.recipe and len(searches) == 1
    assert second.comparison.environment["measured_at"] == first.comparison.environment["measured_at"]
    third = optimize(make_model(), refresh=True)
    assert not third.remembered and len(searches) == 2
    # Other weights of the same shape: the choice is verified on them, not measured again.
    other = optimize(make_model(seed=1))
    assert other.remembered and len(searches) == 2
    with torch.no_grad():
        expected = make_model(seed=1)(**make_inputs())["logits"]
    # Sums of the same 300 terms in the same order; a fused kernel may round otherwise.
    assert torch.allclose(other(**make_inputs())["logits"], expected, atol=1e-5)


def test_a_choice_that_does_not_hold_for_other_weights_is_measured_anew(
    searches: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = optimize(make_model())
    if first.recipe == "eager-fp32":
        pytest.skip("nothing was faster here, so there is nothing to fail")
    prepare, calls = optimize_module.prepare, []

    def failing(*arguments, **options):
        calls.append(options.get("verify", True))
        if len(calls) == 1:
            raise cpu.RecipeError("it differs")
        return prepare(*arguments, **options)

    monkeypatch.setattr(optimize_module, "prepare", failing)
    with caplog.at_level(logging.WARNING, "cpuinfer_helpers"):
        again = optimize(make_model())
    assert calls[0] is True, "what is remembered must be verified"
    assert not again.remembered and len(searches) == 2
    assert "does not hold for this model, measuring anew: it differs" in caplog.text


@pytest.mark.parametrize("tenth", range(10))
def test_a_file_cut_off_anywhere_is_not_used(tenth: int, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = cache / "choice.json"
    comparison = _comparison()
    comparison.save(file)
    assert choices.recall(file, make_model(), 60) is not None
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * tenth // 10])
    with caplog.at_level(logging.WARNING, "cpuinfer_helpers"):
        assert choices.recall(file, make_model(), 60) is None
    assert str(file) in caplog.text and "measuring anew" in caplog.text


def test_a_choice_of_another_model_is_not_used(cache: Path) -> None:
    file = cache / "choice.json"
    _comparison().save(file)
    assert choices.recall(file, torch.nn.Linear(2, 2), 60) is None


@pytest.mark.parametrize(("budget_s", "used"), [(60, True), (61, False), (10, True)])
def test_what_a_smaller_budget_cut_short_is_measured_again(cache: Path, budget_s: float, used: bool) -> None:
    file = cache / "choice.json"
    _comparison(status=Status(Kind.NOT_TRIED, "the budget of 60 s is used up"), budget_s=60).save(file)
    assert (choices.recall(file, make_model(), budget_s) is not None) is used


def test_a_cache_that_cannot_be_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("")
    monkeypatch.setenv("CPUINFER_CACHE", str(blocked))
    with caplog.at_level(logging.WARNING, "cpuinfer_helpers"):
        optimized = optimize(make_model())
    assert optimized.recipe in ("eager-fp32", "torchscript-fp32")
    assert "cannot be remembered" in caplog.text and "CPUINFER_CACHE" in caplog.text


def first_metric(model: Callable[..., Any]) -> float:
    return 1.0 + 0 * len(model(**make_inputs()))


def metric_of(constant: float) -> Callable[..., float]:
    return lambda model: constant


class Counting:
    """A metric with a number of its own."""

    def __init__(self, number: float) -> None:
        self.number = number

    def __call__(self, model: Callable[..., Any]) -> float:
        return self.number


class Other(Counting):
    def __call__(self, model: Callable[..., Any]) -> float:
        return self.number + 1


def plus(model: Callable[..., Any], number: float = 1.0) -> float:
    return number


ROWS = [{"values": torch.ones(3, 8)}]
DECIDING = {
    "nothing": {},
    "a function": {"metric": first_metric},
    "a lambda": {"metric": lambda model: 1.0},
    "another constant": {"metric": lambda model: 1.5},
    "what it closed over": {"metric": metric_of(1.0)},
    "something else that it closed over": {"metric": metric_of(2.0)},
    "a partial": {"metric": functools.partial(plus, number=1.0)},
    "another partial": {"metric": functools.partial(plus, number=2.0)},
    "an object": {"metric": Counting(1.0)},
    "an object with another number": {"metric": Counting(2.0)},
    "an object of another class": {"metric": Other(1.0)},
    "a method": {"metric": Counting(1.0).__call__},
    "a name": {"metric": first_metric, "metric_name": "mine"},
    "another name": {"metric": first_metric, "metric_name": "mine, mended"},
    "another share": {"metric": first_metric, "metric_kept": 0.5},
    "calibration": {"calibration": ROWS},
    "other calibration": {"calibration": [{"values": torch.zeros(3, 8)}]},
    "agreement": {"agreement_inputs": ROWS},
    "other agreement": {"agreement_inputs": ROWS * 2},
    "tolerance": {"tolerance": 0.5},
}


def test_everything_that_decides_is_part_of_what_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request has a file of its own, the same every time."""
    files: list[Path] = []
    known = choices.choice_file
    monkeypatch.setattr(choices, "choice_file", lambda *given: files.append(known(*given)) or files[-1])
    monkeypatch.setattr(choices, "recall", _stop)

    def file_for(**options: Any) -> Path:
        with pytest.raises(_Stopped):
            optimize(make_model(), **options)
        return files[-1]

    found = {name: file_for(**options) for name, options in DECIDING.items()}
    assert None not in found.values() and len(set(found.values())) == len(DECIDING)
    for name, options in DECIDING.items():
        assert file_for(**options) == found[name]
    # The same code made elsewhere, or another one under the same name, is the same.
    assert file_for(metric=metric_of(1.0)) == found["what it closed over"]
    assert file_for(metric=Counting(1.0)) == found["an object"]
    assert file_for(metric=plus, metric_name="mine") == found["a name"]


class _Stopped(Exception):
    pass


def _stop(*_: object) -> None:
    raise _Stopped


def test_a_metric_that_holds_what_cannot_be_seen(
    monkeypatch: pytest.MonkeyPatch, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(optimize_module.Search, "run", lambda self, recipes: _comparison(timed=True))
    numbers = (number for number in (1.0, 1.0, 1.0))
    metric = lambda model: next(numbers)  # noqa: E731  as people write it in notebooks
    assert not optimize(make_model(), metric=metric).remembered and not cache.exists()
    assert "not all of metric can be seen; give metric_name" in caplog.text
    optimize(make_model(), metric=metric, metric_name="mine")
    assert optimize(make_model(), metric=metric, metric_name="mine").remembered


@pytest.mark.parametrize("name", ["", 7])
def test_a_name_that_is_none(name: object) -> None:
    with pytest.raises(cpu.InputError, match="metric_name is"):
        optimize(make_model(), metric=first_metric, metric_name=name)
    with pytest.raises(cpu.InputError, match="metric_name is 'mine'"):
        optimize(make_model(), metric_name="mine")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_no_number_on_the_model_itself(value: float, cache: Path) -> None:
    with pytest.raises(cpu.InputError, match=f"metric is {value} for the model itself"):
        optimize(make_model(), metric=metric_of(value))
    assert not cache.exists()


@pytest.mark.parametrize("metric", [metric_of(math.nan), metric_of(None), metric_of("x"), lambda model: 1 / 0])
def test_a_metric_that_fails_when_a_choice_is_remembered(
    metric: Any, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(optimize_module.Search, "run", lambda self, recipes: _comparison(timed=True))
    optimize(make_model(), metric=first_metric, metric_name="mine")
    with pytest.raises(cpu.InputError, match="metric"):
        optimize(make_model(), metric=metric, metric_name="mine")


def test_a_choice_for_which_a_recipe_timed_out_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = _comparison(status=Status(Kind.TIMED_OUT, "prepare took more than 60 s"))
    monkeypatch.setattr(optimize_module.Search, "run", lambda self, recipes: found)
    assert not optimize(make_model()).remembered and not optimize(make_model()).remembered
    assert not cache.exists() and "torchscript-fp32 timed out" in caplog.text and "budget_s" in caplog.text
    # Nor is one used that an earlier version kept.
    found.save(cache / "choice.json")
    assert choices.recall(cache / "choice.json", make_model(), 60) is None


def file_of(
    model: torch.nn.Module | None = None, inputs=None, recipes=("torchscript-fp32",), settings=SETTINGS
) -> Path:
    model = make_bert() if model is None else model
    return choices.choice_file(model, inputs or make_tokens(), [get_recipe(name) for name in recipes], settings)


def test_the_name_depends_on_everything_that_decides_about_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    same = [file_of(), file_of(make_bert(seed=1))]
    others = [
        file_of(make_bert(attention="eager")),
        file_of(make_bert(num_hidden_layers=1)),
        file_of(make_bert(hidden_act="relu")),
        file_of(make_bert("BertForTokenClassification")),
        file_of(inputs=make_tokens(2, 13)),
        file_of(inputs={**make_tokens(), "output_hidden_states": True}),
        file_of(recipes=("torchscript-bf16",)),
        file_of(settings={"tolerance": 0.1}),
    ]
    monkeypatch.setattr(choices, "installed_versions", lambda: {"torch": "0"})
    others.append(file_of())
    assert len(set(same)) == 1
    assert len({*same, *others}) == 1 + len(others)


def test_where_a_configuration_came_from_makes_no_difference() -> None:
    model = make_bert()
    before = file_of(model)
    model.config._name_or_path = "elsewhere"
    assert file_of(model) == before


def test_with_a_recipe_of_ones_own_nothing_is_kept() -> None:
    assert choices.choice_file(make_model(), make_inputs(), make_recipes("once-fp32"), SETTINGS) is None


def _timing(label: str, seconds: float) -> Timing:
    samples = tuple(seconds + number * 1e-6 for number in range(6))
    return Timing(label, samples, seconds, warmup_calls=3, steady=True, stopped_by="interval", threads=1, round_id="1")


MUCH_SLOWER = Status(Kind.SLOWER, "much")


def _comparison(status: Status = MUCH_SLOWER, budget_s: float = 60, *, timed: bool = False) -> cpu.Comparison:
    """With times, the trace is twice as fast."""
    reference, trace = _timing("eager-fp32", 0.002), _timing("torchscript-fp32", 0.001)
    rows = {
        "eager-fp32": RecipeResult("eager-fp32", "fp32", SUCCESSFUL, timing=reference),
        "torchscript-fp32": RecipeResult("torchscript-fp32", "fp32", status),
    }
    if timed:
        receipt = cpu.prepare("torchscript-fp32", make_model(), make_inputs()).receipt
        faster = {"timing": trace, "speedup": trace.is_faster_than(reference), "receipt": receipt}
        rows["torchscript-fp32"] = RecipeResult("torchscript-fp32", "fp32", SUCCESSFUL, **faster)
    return cpu.Comparison(
        rows=rows,
        model="Repeating",
        inputs={"values": "3 x 8, float32"},
        batch_size=3,
        threads=1,
        environment={"budget_s": budget_s, "measured_at": "2026-01-01"},
    )


def test_the_file_is_json_that_a_comparison_can_be_read_from(cache: Path) -> None:
    _comparison().save(cache / "choice.json")
    assert json.loads((cache / "choice.json").read_text())["kind"] == "cpuinfer comparison"
