"""What calibration sees, what rounding to 8 bits does, and which recipes keep the answers."""

from __future__ import annotations

import pickle
from collections.abc import Mapping

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.compare import RecipeResult, RecipeScore, RecipeScores
from cpuinfer_helpers.course import int8
from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.interface.inputs import bind_inputs
from cpuinfer_helpers.processes.status import SUCCESSFUL, Kind, Status
from cpuinfer_helpers.recipes import Build, Request
from cpuinfer_helpers.recipes.registry import _registry
from cpuinfer_helpers.tasks import Score
from cpuinfer_helpers.timing.results import Speedup, Timing
from tests.conftest import make_inputs


class Twice(torch.nn.Module):
    """One linear layer that runs twice in a call, another time by keyword, and one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.unused = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2)
        self.layer.weight = torch.nn.Parameter(torch.tensor([[2.0, 0.0], [0.0, -127.0]]))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.layer(values - 1.0)
        return self.layer(input=values)


def values(*numbers: float) -> dict[str, torch.Tensor]:
    return {"values": torch.tensor([numbers])}


@pytest.fixture
def ranges(bert: torch.nn.Module) -> int8.Ranges:
    return int8.observe(bert, [make_inputs(1, length, seed=length) for length in (8, 12, 20, 9)])


# Calibration.


def test_the_range_is_that_of_all_calls_of_a_row_and_holds_zero():
    seen = int8.observe(Twice().eval(), [values(3.0, 5.0), values(2.0, 0.5), values(-4.0, -2.0)])
    assert seen.low["layer"].tolist() == [0.0, -0.5, -5.0]
    assert seen.high["layer"].tolist() == [5.0, 2.0, 0.0]
    assert seen.of("layer") == (-5.0, 5.0)
    assert seen.first(2).of("layer") == (-0.5, 5.0)
    assert "unused" not in seen.low and seen.rows == 3


def test_every_linear_layer_of_a_bert_is_observed_and_the_model_is_left_alone(bert, ranges):
    linear = [name for name, part in bert.named_modules() if isinstance(part, torch.nn.Linear)]
    assert list(ranges.low) == linear
    assert not any(part._forward_pre_hooks for part in bert.modules())


def test_hooks_are_removed_when_a_row_does_not_run(bert):
    beyond_the_vocabulary = {**make_inputs(1), "input_ids": torch.full((1, 12), 10_000)}
    with pytest.raises(IndexError):
        int8.observe(bert, [beyond_the_vocabulary])
    assert not any(part._forward_pre_hooks for part in bert.modules())


def test_the_table_tells_how_much_of_the_range_is_seen_after_some_rows():
    seen = int8.observe(Twice().eval(), [values(1.0, 2.0), values(3.0, 4.0), values(1.0, 1.0)])
    assert [row[0] for row in seen.table().rows] == ["1", "2", "3"]
    assert seen.table().rows[0][1:] == ("0 of 1", "50%", "50%")
    assert seen.table().rows[1][1:] == ("1 of 1", "100%", "100%")


@pytest.mark.parametrize("count", [0, 5])
def test_ranges_of_more_rows_than_there_are_cannot_be_had(ranges, count):
    with pytest.raises(InputError, match="1 to 4"):
        ranges.first(count)


def test_without_rows_or_linear_layers_there_is_nothing_to_observe(bert):
    with pytest.raises(InputError, match="at least one"):
        int8.observe(bert, [])
    with pytest.raises(InputError, match="no linear layer"):
        int8.observe(torch.nn.Identity(), [{"input": torch.ones(1)}])


# Rounding.


def test_values_are_rounded_to_the_nearest_step_and_cut_off():
    # 255 steps of 0.1 from -5.5 to 20: zero is step 55.
    given = torch.tensor([0.0, 0.04, 0.06, -5.5, -9.0, 20.0, 30.0])
    expected = torch.tensor([0.0, 0.0, 0.1, -5.5, -5.5, 20.0, 20.0])
    # A step is 0.1, rounding of FP32 a millionth of that.
    torch.testing.assert_close(int8.rounded(given, -5.5, 20.0), expected, rtol=0, atol=1e-5)


def test_symmetric_rounding_has_no_zero_point_and_wastes_what_is_on_one_side_only():
    # 127 steps of 0.1 to each side.
    given = torch.tensor([0.04, 0.06, 12.7, 20.0, -12.7, -20.0])
    expected = torch.tensor([0.0, 0.1, 12.7, 12.7, -12.7, -12.7])
    torch.testing.assert_close(int8.rounded(given, 0.0, 12.7, symmetric=True), expected, rtol=0, atol=1e-5)
    assert int8.rounded(given.clamp(min=0), 0.0, 12.7).unique().numel() >= 3
    assert int8.rounded(torch.zeros(3), 0.0, 0.0).tolist() == [0.0, 0.0, 0.0]


def test_weights_are_rounded_with_a_scale_for_each_output_or_one_for_all():
    model = Twice().eval()
    model.layer.weight = torch.nn.Parameter(torch.tensor([[0.1, 0.033], [127.0, 0.0]]))
    kept = int8.simulate(model, None).layer.weight
    assert abs(kept[0, 1] - 0.033) < 0.1 / 127 and kept[1, 0] == 127.0
    assert int8.simulate(model, None, per_channel=False).layer.weight[0].tolist() == [0.0, 0.0]


def test_what_calibration_did_not_see_is_cut_off_and_dynamic_ranges_cut_nothing():
    model = Twice().eval()
    seen = int8.observe(model, [values(1.0, 1.0)])
    static, dynamic = int8.simulate(model, seen), int8.simulate(model, None)
    far = values(40.0, 1.0)
    assert static(**far)[0, 0].item() == pytest.approx(2.0, abs=0.02)
    # Half a step of 40 / 255, times the weight 2.
    assert dynamic(**far)[0, 0].item() == pytest.approx(80.0, abs=0.16)


def test_a_simulated_bert_gives_nearly_its_answers_and_the_model_keeps_its_own(bert, ranges):
    given = make_inputs(1, 12, seed=12)
    weights = {name: tensor.clone() for name, tensor in bert.named_parameters()}
    with torch.no_grad():
        expected = bert(**given).start_logits
        seen = int8.simulate(bert, ranges)(**given).start_logits
    error = (seen - expected).abs().max().item()
    # 8 bits: not FP32's answers, and not far from them either (logits here are up to about 0.5).
    assert 1e-5 < error < 0.1
    assert all(torch.equal(tensor, weights[name]) for name, tensor in bert.named_parameters())
    assert not any(isinstance(part, int8.RoundedLinear) for part in bert.modules())


def test_layers_that_calibration_did_not_see_stay_in_fp32():
    model = Twice().eval()
    simulated = int8.simulate(model, int8.observe(model, [values(1.0, 1.0)]))
    assert isinstance(simulated.layer, int8.RoundedLinear)
    assert isinstance(simulated.unused, torch.nn.Linear)


# Recipes with fewer rows.


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A recipe that calibrates on nothing but notes how many rows it is given."""
    given: list[int] = []

    def build(request: Request) -> Build:
        given.append(len(request.calibration))
        return Build(lambda tensors: {"output": tensors["input"]}, runs="nothing")

    monkeypatch.setitem(_registry(), "noting-int8", cpu.Recipe("noting-int8", "notes", build))
    return given


@pytest.mark.parametrize(("rows", "name"), [(1, "noting-1row-int8"), (3, "noting-3rows-int8")])
def test_a_recipe_calibrated_on_fewer_rows_is_given_the_first_ones(recording, rows, name):
    recipe = int8.calibrated_on("noting-int8", rows)
    assert (recipe.name, recipe.precision) == (name, "int8")
    layer = torch.nn.Identity()
    inputs = {"input": torch.ones(1, 2)}
    recipe.build(Request(recipe.name, "int8", layer, bind_inputs(layer, inputs), (inputs,) * 5))
    assert recording == [rows]


def test_it_can_be_sent_to_another_process_and_needs_what_the_recipe_needs():
    recipe = int8.calibrated_on("openvino-int8", 8)
    assert pickle.loads(pickle.dumps(recipe.build)).args == ("openvino-int8", 8)
    assert recipe.needs == cpu.get_recipe("openvino-int8").needs
    with pytest.raises(InputError, match="at least 1"):
        int8.calibrated_on("openvino-int8", 0)


@pytest.mark.skipif(not cpu.get_recipe("openvino-int8").can_run, reason="OpenVINO or NNCF is not installed")
def test_the_receipt_tells_how_many_rows_were_used(bert, bert_inputs):
    rows = [make_inputs(1, 12, seed=seed) for seed in range(4)]
    recipe = int8.calibrated_on("openvino-int8", 2)
    prepared = cpu.prepare(recipe, bert, bert_inputs, calibration=rows, verify=False, on_failure="raise")
    assert "2" in prepared.receipt.evidence["calibration"]


# Whether it is worth it.


def row(name: str, seconds: float, speedup: float | None) -> RecipeResult:
    samples = (seconds,) * 6
    timing = Timing(name, samples, seconds, 1, True, "calls", 2, "round")
    ratio = Speedup(speedup, speedup, speedup, paired=True) if speedup else None
    return RecipeResult(name, name.rpartition("-")[2], SUCCESSFUL, timing=timing, speedup=ratio)


def test_perplexity_is_lost_where_it_rises():
    times = {"eager-fp32": 0.4, "openvino-int8": 0.1, "onnxruntime-int8": 0.2}
    rows = {name: row(name, seconds, None if name == "eager-fp32" else 2.0) for name, seconds in times.items()}
    comparison = cpu.Comparison(rows, "Toy", {"input_ids": "1 x 8, int64"}, 1, 2, {"cpu": "a CPU"})
    scores = {}
    for name, perplexity in (("eager-fp32", 8.0), ("openvino-int8", 8.5), ("onnxruntime-int8", 7.0)):
        score = Score("text-generation", "heldout", "offline: test", {"perplexity": perplexity}, 10, ((1,),) * 10, 1.0)
        scores[name] = RecipeScore(name, SUCCESSFUL, score, 100.0, "something")
    table = int8.weigh(comparison, RecipeScores(scores, "text-generation", "offline: test"), most_lost=0.1)
    verdicts = {name: (cells[3], cells[-1]) for name, *cells in table.rows}
    assert verdicts["openvino-int8"] == ("8.50", "loses 0.5 points of perplexity")
    assert verdicts["onnxruntime-int8"] == ("7.00", "the fastest that keeps the answers")
    assert verdicts["eager-fp32"][1] == "keeps the answers"


def scored(name: str, f1: float, agreement: float) -> RecipeScore:
    metrics: Mapping[str, float] = {"exact_match": 10.0, "f1": f1}
    score = Score("question-answering", "heldout", "offline: test", metrics, 10, ("a",) * 10, 1.0)
    return RecipeScore(name, SUCCESSFUL, score, agreement, "something")


@pytest.fixture
def verdicts():
    times = {"eager-fp32": (0.4, None), "onednn-graph-bf16": (0.1, 4.0), "ipex-int8": (0.05, 8.0)}
    comparison = cpu.Comparison(
        {
            **{name: row(name, *given) for name, given in times.items()},
            "openvino-int8": row("openvino-int8", 0.06, 6.7),
            "compile-bf16": row("compile-bf16", 0.2, 2.0),
            "onnxruntime-int8": RecipeResult("onnxruntime-int8", "int8", Status(Kind.LACKS, "onnx is not installed")),
        },
        "Toy",
        {"input_ids": "1 x 8, int64"},
        1,
        2,
        {"cpu": "a CPU"},
        price_per_hour=0.36,
    )
    scores = (
        scored("eager-fp32", 80.0, 100.0),
        scored("onednn-graph-bf16", 79.5, 99.0),
        scored("ipex-int8", 79.8, 94.0),
        scored("openvino-int8", 78.0, 96.0),
    )
    together = RecipeScores({score.recipe: score for score in scores}, "question-answering", "offline: test")

    def weigh(**limits: float) -> dict[str, tuple[str, ...]]:
        return {name: cells for name, *cells in int8.weigh(comparison, together, **limits).rows}

    return weigh


def test_the_fastest_that_keeps_the_answers_is_named_and_others_say_what_they_lose(verdicts):
    rows = verdicts(most_lost=1.0, least_same=95.0)
    assert list(rows) == ["ipex-int8", "openvino-int8", "onednn-graph-bf16", "compile-bf16", "eager-fp32"]
    assert rows["ipex-int8"] == ["50 ms", "8.00x", "5", "79.8", "94.0%", "changes 6.0% of the answers"]
    assert rows["openvino-int8"][-1] == "loses 2.0 points of f1"
    assert rows["onednn-graph-bf16"][-1] == "the fastest that keeps the answers"
    assert rows["compile-bf16"][3:] == ["", "", "not scored"]
    assert rows["eager-fp32"][1] == "1.00x" and rows["eager-fp32"][-1] == "keeps the answers"


def test_other_limits_give_another_verdict(verdicts):
    assert verdicts(most_lost=1.0, least_same=90.0)["ipex-int8"][-1] == "the fastest that keeps the answers"
    strict = verdicts(most_lost=0.1, least_same=99.5)
    assert strict["eager-fp32"][-1] == "the fastest that keeps the answers"
