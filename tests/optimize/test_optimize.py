"""The fastest recipe that keeps the answers is chosen, on any machine; everything else is said and why."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from repeating import KINDS, failing, make_inputs, make_model, make_recipes, mean_of_first

import cpuinfer_helpers as cpu
from cpuinfer_helpers.compare.compare import choose_recipes
from cpuinfer_helpers.optimize import search
from cpuinfer_helpers.optimize.search import in_order, metric_holds
from cpuinfer_helpers.processes.status import Kind, Status
from cpuinfer_helpers.recipes import base

# The package holds the function under this name.
optimizing = importlib.import_module("cpuinfer_helpers.optimize.optimize")

EVERY_KIND = tuple(name for name in KINDS if name not in ("hanging-fp32", "ways-fp32"))


@pytest.fixture(scope="module", autouse=True)
def only_what_is_far_slower_is_given_up() -> Iterator[None]:
    """Calls of 0.1 ms may differ by more than a fifth on a busy machine; the slow recipes here do 60 times the work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_CLEARLY_SLOWER", 10.0)
        yield


@pytest.fixture(scope="module")
def optimized() -> cpu.OptimizedModel:
    return cpu.optimize(make_model(), make_inputs(), recipes=make_recipes(*EVERY_KIND), budget_s=90)


@pytest.mark.cpu
def test_the_fastest_is_chosen_and_answers(optimized: cpu.OptimizedModel) -> None:
    assert optimized.recipe == "once-fp32" or optimized.recipe == "coarse-bf16"
    assert optimized.result.speedup.low > 1.0 and optimized.reason is None and not optimized.remembered
    with torch.no_grad():
        expected = make_model()(**make_inputs(5))["logits"]
    # Of BF16's tolerance: 5% of the largest answer.
    assert torch.allclose(optimized(**make_inputs(5))["logits"], expected, atol=0.05 * expected.abs().max().item())


def test_what_was_chosen_is_verified_whole_in_this_process_too(optimized: cpu.OptimizedModel) -> None:
    names = [check.name for check in optimized.receipt.checks]
    assert {"other batch size", "many rows", "redrawn"} <= set(names)
    assert optimized.receipt.verified and optimized.sizes.ranges


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("recipe", "status"),
    [
        ("eager-fp32", "successful"),
        ("once-fp32", "successful"),
        ("coarse-bf16", "successful"),
        ("twice-fp32", "slower: "),
        ("wrong-fp32", "fell back: it does not give the model's answers on 'example'"),
        ("crashing-fp32", "crashed: SIGABRT"),
        ("lacking-fp32", "lacks: no-such-distribution is not installed"),
    ],
)
def test_each_recipe_has_its_row(optimized: cpu.OptimizedModel, recipe: str, status: str) -> None:
    row = optimized.comparison[recipe]
    assert str(row.status).startswith(status)
    assert (row.timing is not None) == (status == "successful")


def test_it_shows_the_choice_and_the_table(optimized: cpu.OptimizedModel) -> None:
    assert str(optimized).startswith(f"Repeating: {optimized.recipe}, ")
    assert "crashed: SIGABRT" in str(optimized) and "crashed: SIGABRT" in optimized.table().as_html()


def test_a_recipe_that_is_right_in_another_way_is_measured_in_that_one() -> None:
    optimized = cpu.optimize(make_model(), make_inputs(), recipes=make_recipes("ways-fp32"), budget_s=60)
    row = optimized.comparison["ways-fp32"]
    assert row.successful and row.receipt.verified and optimized.recipe == "ways-fp32"
    with torch.no_grad():
        torch.testing.assert_close(optimized(**make_inputs())["logits"], make_model()(**make_inputs())["logits"])


def test_rows_are_told_as_they_come(capfd: pytest.CaptureFixture[str]) -> None:
    cpu.optimize(make_model(), make_inputs(), recipes=make_recipes("wrong-fp32"), budget_s=60)
    shown = capfd.readouterr()
    assert "wrong-fp32  fell back" in shown.err and shown.out == ""


def test_the_model_is_left_as_it_was() -> None:
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cpu.optimize(model, make_inputs(), recipes=make_recipes("once-fp32"), budget_s=60)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.training


def test_a_tolerance_of_ones_own_is_kept_to() -> None:
    recipes = make_recipes("coarse-bf16")
    strict = cpu.optimize(make_model(), make_inputs(), tolerance=1e-3, recipes=recipes, budget_s=60)
    assert str(strict.comparison["coarse-bf16"].status).startswith("fell back: it does not give the model's answers")
    assert strict.recipe == "eager-fp32" and "none of 1 recipes could be measured (fell back 1)" in strict.reason


def test_nothing_faster_leaves_the_eager_model_with_the_reason() -> None:
    optimized = cpu.optimize(make_model(), make_inputs(), recipes=make_recipes("twice-fp32"), budget_s=60)
    assert optimized.recipe == "eager-fp32" and optimized.reason
    assert "stays as it is" in str(optimized)
    with torch.no_grad():
        assert torch.equal(optimized(**make_inputs())["logits"], make_model()(**make_inputs())["logits"])


def test_a_metric_that_drops_drops_the_recipe() -> None:
    # One percent off the logits moves this metric by less than 1%, so only a strict share of it is lost.
    recipes, settings = make_recipes("coarse-bf16", "once-fp32"), {"metric": mean_of_first, "budget_s": 60}
    lenient = cpu.optimize(make_model(), make_inputs(), recipes=recipes, **settings)
    assert lenient.comparison["coarse-bf16"].successful
    strict = cpu.optimize(make_model(), make_inputs(), recipes=recipes, metric_kept=1.0, **settings)
    row = strict.comparison["coarse-bf16"]
    assert str(row.status).startswith("worse: the metric is ")
    assert row.receipt.evidence["metric"] in row.status.reason
    assert strict.recipe == "once-fp32"


@pytest.mark.parametrize(
    ("seen", "wanted", "kept", "holds"),
    [
        (80.0, 80.0, 1.0, True),
        (79.3, 80.0, 0.99, True),
        (79.1, 80.0, 0.99, False),
        (-1.005, -1.0, 0.99, True),
        (-1.02, -1.0, 0.99, False),
        (float("nan"), 80.0, 0.5, False),
        (0.0, 0.0, 0.99, True),
    ],
)
def test_what_a_metric_must_reach(seen: float, wanted: float, kept: float, holds: bool) -> None:
    assert metric_holds(seen, wanted, kept) is holds


def test_a_metric_that_fails_on_the_model_itself_is_the_callers_error() -> None:
    with pytest.raises(cpu.InputError, match=r"metric fails on the model itself.*no data"):
        cpu.optimize(make_model(), make_inputs(), metric=failing, recipes=make_recipes("once-fp32"), budget_s=60)


def test_the_budget_ends_what_takes_longer() -> None:
    started = time.monotonic()
    recipes = make_recipes("hanging-fp32", "once-fp32")
    optimized = cpu.optimize(make_model(), make_inputs(), recipes=recipes, budget_s=30)
    # Well beyond the budget, for busy machines, and far below the thousand seconds that it would hang.
    assert time.monotonic() - started < 100
    assert str(optimized.comparison["hanging-fp32"].status).startswith("timed out: prepare took more than")
    assert str(optimized.comparison["once-fp32"].status).startswith("not tried: the budget of")


def test_measuring_ends_with_the_budget_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_MEASURING_SHARE", 1.0)
    monkeypatch.setattr(search, "_RELATIVE_WIDTH", 0.0)  # never certain enough
    optimized = cpu.optimize(make_model(), make_inputs(), recipes=make_recipes("once-fp32"), budget_s=35)
    assert [row.status.kind for row in optimized.comparison.rows.values()] == ["successful", "successful"]
    assert optimized.recipe == "once-fp32" and optimized.result.timing.stopped_by == "budget"


def test_no_time_at_all_leaves_the_eager_model() -> None:
    optimized = cpu.optimize(make_model(), make_inputs(), recipes=make_recipes("once-fp32"), budget_s=0.2)
    assert optimized.recipe == "eager-fp32" and "could not be measured" in optimized.reason
    assert str(optimized.comparison["once-fp32"].status).startswith("not tried: the reference was not measured")
    assert tuple(optimized(**make_inputs())["logits"].shape) == (3, 4)


@pytest.mark.parametrize(
    ("way", "reason"), [("raises", "no room"), ("answers wrongly", "it does not give the model's answers on 'example")]
)
def test_what_fails_only_in_this_process_gives_way_to_the_next(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, way: str, reason: str
) -> None:

    tried = []

    def failing_first(recipe, *arguments, **options):
        tried.append(recipe.name)
        if len(tried) == 1 and way == "raises":
            raise cpu.RecipeError("no room")
        if len(tried) == 1:
            recipe = replace(recipe, build=KINDS["wrong-fp32"]["build"])
        return cpu.prepare(recipe, *arguments, **options)

    monkeypatch.setattr(optimizing, "prepare", failing_first)
    with caplog.at_level(logging.WARNING, "cpuinfer_helpers"):
        optimized = cpu.optimize(
            make_model(), make_inputs(), recipes=make_recipes("once-fp32", "coarse-bf16"), budget_s=60
        )
    assert len(set(tried)) == 2 and optimized.recipe == tried[1]
    failed = optimized.comparison[tried[0]].status
    assert failed.kind == "fell back" and failed.reason.startswith(f"in the process that asked for it: {reason}")
    assert f"{tried[0]} fails in this process: {reason}" in caplog.text


def test_only_recipes_of_the_precisions_are_tried() -> None:
    optimized = cpu.optimize(
        make_model(), make_inputs(), precisions=("bf16",), recipes=make_recipes("once-fp32", "coarse-bf16"), budget_s=60
    )
    assert set(optimized.comparison.rows) == {"eager-fp32", "coarse-bf16"}


@pytest.fixture
def cpu_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have recipes see a CPU with these instruction sets, which nothing holds back."""

    def set_to(*isa: str) -> None:
        seen = replace(cpu.machine_report(), architecture="x86_64", isa=isa, isa_caps={})
        monkeypatch.setattr(base, "machine_report", lambda: seen)

    return set_to


def test_what_is_emulated_is_left_out_unless_it_is_named(cpu_with: Callable[..., None], monkeypatch) -> None:
    cpu_with("AVX2")
    monkeypatch.setattr(optimizing, "choose_recipes", lambda recipes: choose_recipes(recipes or make_recipes(*both)))
    both = ("coarse-bf16", "once-fp32")
    found = cpu.optimize(make_model(), make_inputs(), budget_s=60)
    assert found.recipe == "once-fp32"
    status = str(found.comparison["coarse-bf16"].status)
    assert status == "lacks: " + make_recipes("coarse-bf16")[0].emulation
    assert "this CPU has no AVX512_BF16 or AMX_BF16" in status
    named = cpu.optimize(make_model(), make_inputs(), recipes=make_recipes("coarse-bf16"), budget_s=60)
    assert named.comparison["coarse-bf16"].successful


def test_recipes_are_tried_in_the_order_of_what_they_take_to_prepare(cpu_with: Callable[..., None]) -> None:
    cpu_with("AVX2", "AVX512", "AVX512_BF16")
    order = [recipe.name for recipe in in_order([*cpu.list_recipes()])]
    assert order[0] == "eager-fp32"
    assert order.index("torchscript-fp32") < order.index("openvino-fp32") < order.index("compile-fp32")
    assert order.index("onednn-graph-bf16") < order.index("onednn-graph-fp32")
    assert max(order.index(name) for name in order if name.endswith("-fp32")) < len(order)
    assert sorted(order) == sorted(cpu.list_recipes().names)
    cpu_with("AVX2")
    order = [recipe.precision for recipe in in_order([*cpu.list_recipes()])]
    assert "bf16" not in order[: -order.count("bf16")], "what is emulated comes last"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"precisions": "fp32"}, "precisions is 'fp32'"),
        ({"precisions": ()}, "precisions is ()"),
        ({"precisions": ("fp16",)}, "precisions holds 'fp16'"),
        ({"tolerance": -1.0}, "tolerance is -1.0"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
        ({"metric": 3}, "metric is a int"),
        ({"metric_kept": True}, "metric_kept is True"),
        ({"budget_s": 0}, "budget_s is 0"),
        ({"recipes": ["no-such-recipe"]}, "no-such-recipe"),
    ],
)
def test_arguments_that_cannot_be_used(arguments: dict, words: str) -> None:
    with pytest.raises(cpu.InputError) as caught:
        cpu.optimize(make_model(), make_inputs(), **arguments)
    assert words in str(caught.value)


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(cpu.InputError, match="training mode"):
        cpu.optimize(make_model().train(), make_inputs())


def test_a_comparison_without_a_reference_has_no_choice(optimized: cpu.OptimizedModel) -> None:
    rows = {**optimized.comparison.rows}
    late = Status(Kind.TIMED_OUT, "run took more than 1 s")
    rows["eager-fp32"] = replace(rows["eager-fp32"], timing=None, status=late)
    from cpuinfer_helpers.optimize.optimize import why_eager

    assert "could not be measured (timed out" in why_eager(replace(optimized.comparison, rows=rows))
