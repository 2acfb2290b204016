from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

import cpuinfer_helpers as cpu
from cpuinfer_helpers.compare import RecipeResult
from cpuinfer_helpers.processes.status import SUCCESSFUL, Kind, Status
from cpuinfer_helpers.receipts import Check, Receipt
from cpuinfer_helpers.timing.results import Roofline, Timing

COURSE_DATA = Path(__file__).parents[2] / "notebooks" / "data"


def timing(name: str, seconds: float, round_id: str = "1") -> Timing:
    samples = tuple(seconds * (1 + 0.001 * n) for n in range(8))
    return Timing(name, samples, 2 * seconds, 9, True, "interval", 2, round_id)


def result(name: str, seconds: float | None, **fields) -> RecipeResult:
    row = RecipeResult(name, name.rpartition("-")[2], SUCCESSFUL, prepare_s=1.0, warm_up_s=0.5, **fields)
    if seconds is None:
        return replace(row, status=Status(Kind.CRASHED, "SIGSEGV"))
    measured = timing(name, seconds)
    speedup = None if name == "eager-fp32" else measured.is_faster_than(timing("eager-fp32", 0.1))
    return replace(row, timing=measured, speedup=speedup)


@pytest.fixture
def comparison() -> cpu.Comparison:
    check = Check("example", "1 x 8", False, math.inf, 1e-4, "differs")
    receipt = Receipt({"recipe": "fast-fp32"}, True, frozen=True, graph_nodes={"aten::linear": 3}, checks=(check,))
    rows = [
        result("eager-fp32", 0.1, max_error=0.0, resident_bytes=10**9),
        result("same-fp32", 0.1),
        result("fast-fp32", 0.05, receipt=receipt, max_error=math.inf, label_agreement=99.96, labels=2500),
        result("fast-bf16", 0.025),
        result("broken-int8", None),
        RecipeResult("absent-int8", "int8", Status(Kind.LACKS, "nothing is installed")),
    ]
    return cpu.Comparison(
        rows={row.recipe: row for row in rows},
        model="Toy",
        inputs={"input_ids": "4 x 8, int64"},
        batch_size=4,
        threads=2,
        environment={"cpu": "a CPU", "versions": {"torch": "2.8.0"}},
        roofline=Roofline({"fp32": 1e11}, {"fp32": "k"}, {"fp32": True}, (("fp32", "k", 1e11),), 2),
        flops=10**9,
        price_per_hour=0.36,
    )


def test_best_is_the_fastest_of_those_seen_to_be_faster(comparison):
    assert comparison.best().recipe == "fast-bf16"
    assert comparison.best("fp32").recipe == "fast-fp32"
    assert comparison.best("bf16").recipe == "fast-bf16"


def test_best_is_the_reference_where_none_is_seen_to_be_faster(comparison):
    rows = {name: comparison.rows[name] for name in ("eager-fp32", "same-fp32")}
    assert replace(comparison, rows=rows).best().recipe == "eager-fp32"


def test_best_names_what_cannot_be_chosen(comparison):
    with pytest.raises(cpu.InputError, match="no recipe of precision 'int8' was successful"):
        comparison.best("int8")
    with pytest.raises(cpu.InputError, match="'fp8' is unknown"):
        comparison.best("fp8")


def test_preparation_pays_after_its_cost_divided_by_the_gain(comparison):
    # 1.5 s over a gain of 0.05 s a call; the samples rise by 0.7%, so does the gain.
    assert comparison["fast-fp32"].calls_to_pay in (29, 30)
    assert comparison["same-fp32"].calls_to_pay is None
    assert comparison["eager-fp32"].calls_to_pay is None


def test_cost_counts_rows_of_the_batch(comparison):
    cost = comparison.cost()
    (eager,) = [row for row in cost.rows if row[0] == "eager-fp32"]
    # 0.10035 s for 4 rows: 25088 s for a million, at 0.0001 a second.
    assert eager[3] == "2.51"
    assert [row[0] for row in cost.rows] == ["eager-fp32", "same-fp32", "fast-fp32", "fast-bf16"]
    assert comparison.cost(3.6).rows[0][3] == "25.1"
    for wrong in (0, -1, math.inf, "1"):
        with pytest.raises(cpu.InputError, match="price_per_hour"):
            comparison.cost(wrong)
    with pytest.raises(cpu.InputError, match="missing"):
        replace(comparison, price_per_hour=None).cost()


def test_the_table_shows_every_row_and_rounds_no_agreement_up(comparison):
    table = comparison.table()
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(rows) == list(comparison.rows)
    assert rows["fast-fp32"]["same labels"] == "99.9% of 2500"
    assert rows["fast-fp32"]["verdict"] == "faster"
    assert rows["same-fp32"]["verdict"] == "no difference seen"
    assert rows["broken-int8"]["median"] == ""
    assert "per million" in table.columns
    assert "per million" not in replace(comparison, price_per_hour=None).table().columns


def test_the_frame_holds_numbers(comparison):
    frame = comparison.to_frame()
    assert list(frame.index) == list(comparison.rows)
    assert frame.loc["fast-fp32", "median_s"] == comparison["fast-fp32"].timing.median
    assert frame.loc["same-fp32", "speedup"] == pytest.approx(1.0)  # not faster, and still a number
    for column in ("median_s", "speedup", "max_error", "resident_bytes", "cost_per_million", "prepare_s"):
        assert frame[column].dtype.kind == "f", column
    assert math.isnan(frame.loc["broken-int8", "median_s"])


def test_the_plot_has_a_bar_for_each_that_was_measured(comparison):
    figure = comparison.plot()
    assert len(figure.axes[0].patches) == 4
    assert figure.axes[0].patches[0].get_width() == pytest.approx(100, rel=0.01)  # milliseconds


def test_what_was_saved_is_what_is_loaded(comparison, tmp_path):
    path = tmp_path / "results" / "here.json"
    comparison.save(path)
    assert cpu.Comparison.load(path) == comparison
    data = json.loads(path.read_text())
    assert data["environment"]["cpu"] == "a CPU"
    # As people read it, and as it was in every format so far.
    assert data["rows"]["absent-int8"]["status"] == "lacks: nothing is installed"
    assert [file.name for file in path.parent.iterdir()] == ["here.json"]


def test_a_file_of_the_first_format_is_read_and_set_beside_others(comparison, tmp_path):
    path = tmp_path / "earlier.json"
    comparison.save(path)
    data = json.loads(path.read_text())
    data["format_version"] = 1
    del data["parameters"]
    path.write_text(json.dumps(data))
    earlier = cpu.Comparison.load(path)
    assert earlier == replace(comparison, parameters=None)
    assert replace(comparison, parameters=5).against(earlier).ratio("eager-fp32") == 1.0


@pytest.mark.parametrize("path", sorted(COURSE_DATA.glob("*.json")), ids=lambda path: path.stem)
def test_the_courses_own_files_are_read_to_the_last_status(path):
    stored = {name: row["status"] for name, row in json.loads(path.read_text())["rows"].items()}
    read = cpu.Comparison.load(path).rows
    assert {name: str(row.status) for name, row in read.items()} == stored
    assert sum(row.successful for row in read.values()) > 1


def change(path: tuple, value):
    def apply(data):
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change(("kind",), "something"), "is not a comparison"),
        (change(("format_version",), 99), "has format 99"),
        (change(("threads",), "two"), r"comparison\.threads should be int"),
        (change(("rows", "eager-fp32", "timing", "samples"), [1, "x"]), r"samples\[1\] should be a number"),
        (change(("rows", "eager-fp32", "timing", "samples"), []), "not positive"),
        (change(("rows", "eager-fp32", "recipe"), "other"), "is of other"),
        (change(("rows", "eager-fp32", "surprise"), 1), "surprise should be a known field"),
        (lambda data: data["rows"].pop("eager-fp32"), "no row for eager-fp32"),
        (lambda data: data.pop("model"), r"comparison\.model should be there"),
        (change(("batch_size",), 0), "batch_size is 0"),
        (change(("rows", "broken-int8", "status"), "ran away"), "a status is 'ran away', and should begin with one of"),
        (change(("rows", "broken-int8", "status"), {"kind": "lacks"}), "a status is {'kind': 'lacks'}"),
        (lambda data: data["rows"]["broken-int8"].pop("status"), r"broken-int8\.status should be there"),
        (change(("rows", "broken-int8"), "lacks"), r"rows\.broken-int8 should be an object"),
        (change(("rows",), ["lacks"]), r"comparison\.rows should be an object"),
    ],
)
def test_a_damaged_file_is_refused_with_the_place(comparison, tmp_path, damage, message):
    path = tmp_path / "here.json"
    comparison.save(path)
    data = json.loads(path.read_text())
    damage(data)
    path.write_text(json.dumps(data))
    with pytest.raises(cpu.ArtifactError, match=message):
        cpu.Comparison.load(path)


def test_a_file_that_is_no_json_or_missing_is_refused(tmp_path):
    path = tmp_path / "here.json"
    with pytest.raises(cpu.ArtifactError, match="cannot be read"):
        cpu.Comparison.load(path)
    path.write_text("{")
    with pytest.raises(cpu.ArtifactError, match="cannot be read"):
        cpu.Comparison.load(path)


def test_two_machines_side_by_side(comparison):
    slower = {name: replace(row, timing=timing(name, 0.2)) for name, row in comparison.rows.items() if row.timing}
    there = replace(comparison, rows=slower, environment={"cpu": "another"})
    both = comparison.against(there)
    assert both.ratio("fast-fp32") == pytest.approx(4.0)
    assert both.ratio("absent-int8") is None
    rows = {row[0]: row for row in both.table().rows}
    assert rows["fast-fp32"][3] == "4.00"
    assert rows["absent-int8"][1:3] == ("lacks", "not compared")
    assert "a CPU" in both.table().note and "another" in both.table().note


def test_what_a_million_costs_on_two_machines(comparison):
    slower = {name: replace(row, timing=timing(name, 0.2)) for name, row in comparison.rows.items() if row.timing}
    both = comparison.against(replace(comparison, rows=slower))
    rows = {row[0]: row[1:] for row in both.cost(1.8, 0.9).table().rows}
    here, there = comparison["fast-fp32"].timing.median, slower["fast-fp32"].timing.median
    # A million times the seconds of one row of the batch, at the price of a second.
    costs = [1e6 * here / comparison.batch_size * 1.8 / 3600, 1e6 * there / comparison.batch_size * 0.9 / 3600]
    assert rows["fast-fp32"] == (*(f"{cost:.3g}" for cost in costs), "2.00")
    assert "absent-int8" not in rows
    for prices in ((1.0, 0.0), (1.0, None)):
        with pytest.raises(cpu.InputError, match="price"):
            both.cost(*prices)


def test_other_inputs_cannot_be_set_side_by_side(comparison):
    with pytest.raises(cpu.InputError, match="inputs is"):
        comparison.against(replace(comparison, inputs={"input_ids": "1 x 8, int64"}))


def test_models_of_one_class_and_two_sizes_cannot_be_set_side_by_side(comparison):
    small, large = replace(comparison, parameters=1_000), replace(comparison, parameters=2_000)
    assert small.against(small).ratio("fast-fp32") == 1.0
    with pytest.raises(cpu.InputError, match="parameters is 1000 here, 2000 there"):
        small.against(large)


def test_a_recipe_that_was_not_compared_is_named(comparison):
    with pytest.raises(cpu.InputError, match="'fastest' was not compared"):
        comparison["fastest"]
