"""Model families: their sizes and inputs, what is measured of them, and how failures are counted."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.course.families import FAMILIES, Benefit, Family, FamilyComparison, FamilyResult, measuring
from cpuinfer_helpers.interface.outputs import take_apart
from cpuinfer_helpers.processes.status import SUCCESSFUL, Kind, Status
from cpuinfer_helpers.tasks import task_names
from cpuinfer_helpers.timing.results import Timing
from tests.isa import NO_NATIVE_BF16

ROOT = Path(cpu.__file__).parents[1]
IPEX = cpu.get_recipe("ipex-fp32").why_not
# Of a layer with 768 numbers a token: four square matrices, two to 3072 and back, their biases and two norms.
BASE_LAYER = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768


# --- the models and their inputs


@pytest.mark.parametrize("name", FAMILIES)
def test_a_layer_has_the_base_models_size(name):
    one, two = (sum(p.numel() for p in FAMILIES[name].make_model(task_names()[0], n).parameters()) for n in (1, 2))
    # ALBERT's layers share their weights. MobileBERT's: bottleneck 131840 and 67072, attention 98688 + 16768, three
    # small feed-forward blocks of 131968, a larger one of 66048 + 65920; twice as many layers.
    expected = {"albert": 0, "mobilebert": 2 * 842_240}
    assert two - one == expected.get(name, BASE_LAYER)


@pytest.mark.parametrize("name", FAMILIES)
def test_inputs_are_what_the_family_takes(name):
    family = FAMILIES[name]
    model = family.make_model("token-classification", 1)
    inputs = family.make_inputs(model, 2, 32)
    valid = inputs["attention_mask"].bool()
    assert valid.sum(dim=1).tolist() == [28, 28] and valid[:, :28].all()
    assert (inputs["input_ids"] != model.config.pad_token_id).equal(valid)
    assert ("token_type_ids" in inputs) == (getattr(model.config, "type_vocab_size", 0) > 1)
    if "token_type_ids" in inputs:
        assert inputs["token_type_ids"][0].unique().tolist() == [0, 1]
    with torch.no_grad():
        assert model(**inputs).logits.shape == (2, 32, 9)


@pytest.mark.parametrize(
    ("task", "outputs"),
    [
        ("question-answering", {"start_logits": (1, 16), "end_logits": (1, 16)}),
        ("text-classification", {"logits": (1, 2)}),
        ("token-classification", {"logits": (1, 16, 9)}),
    ],
)
def test_the_head_is_that_of_the_task(task, outputs):
    for name in ("bert", "distilbert"):
        model = FAMILIES[name].make_model(task, 1)
        with torch.no_grad():
            answers, _ = take_apart(model(**FAMILIES[name].make_inputs(model, 1, 16)))
        assert {key: tuple(answer.shape) for key, answer in answers.items()} == outputs


def test_weights_come_from_the_seed_and_the_random_state_stays():
    before = torch.get_rng_state()
    first, again, other = (FAMILIES["bert"].make_model(task_names()[0], 1, seed=seed) for seed in (3, 3, 4))
    weights = [model.qa_outputs.weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), before)
    assert not first.training


# --- measured for real


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two families by all that can run here, and what was left behind."""
    temporary = tmp_path_factory.mktemp("temporary")
    # Pickling a model may import this, and it keeps a temporary folder of its own until the process ends.
    importlib.import_module("torch.distributed.nn")
    # Other tests may have started some that stay, such as torch.compile's compilers.
    before = set(psutil.Process().children(recursive=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        found = cpu.compare_families(
            ["bert", "distilbert"], ["token-classification"], layers=1, length=24, threads=1, budget_s=0.1
        )
    left = set(psutil.Process().children(recursive=True)) - before
    return found, list(temporary.iterdir()), left


@pytest.mark.cpu
def test_every_model_is_prepared_verified_and_measured(measured):
    found, _, _ = measured
    backends = ["onednn-graph"] if IPEX else ["ipex", "onednn-graph"]
    assert [(row.family, row.recipe) for row in found.rows] == [
        (family, f"{backend}-{precision}")
        for family in ("BERT", "DistilBERT")
        for precision in ("fp32", "bf16")
        for backend in backends
        if cpu.get_recipe(f"{backend}-{precision}").can_run
    ]
    for row in found.rows:
        assert row.status.successful, row
        assert row.receipt.verified and row.receipt.frozen and row.receipt.threads == 1
        assert row.speedup.paired and row.timing.calls >= 6
        assert row.verdict in ("faster", "slower", "no difference seen")
        # In FP32 the same sums in another order; in BF16 eight bits of each number.
        assert (0 if row.precision == "fp32" else 1e-4) < row.max_error < (1e-4 if row.precision == "fp32" else 0.1)


@pytest.mark.cpu
def test_the_baseline_has_the_recipes_precision(measured):
    found, _, _ = measured
    for row in found.rows:
        assert row.baseline.label == f"eager-{row.precision}"
        assert row.baseline.round_id == row.timing.round_id


@pytest.mark.cpu
def test_bf16_layers_ran_in_bf16(measured):
    found, _, _ = measured
    for row in found.rows:
        expected = {"fp32": "float32", "bf16": "bfloat16"}[row.precision]
        assert max(row.receipt.linear_dtypes, key=row.receipt.linear_dtypes.get) == expected, row.recipe


@pytest.mark.cpu
@pytest.mark.skipif(bool(IPEX), reason=f"needs IPEX: {IPEX}")
def test_kernels_of_ipex_ran_and_only_in_its_own_process(measured):
    found, _, _ = measured
    for row in found.rows:
        assert ("IPEX kernels" in row.receipt.evidence) == row.recipe.startswith("ipex")
    assert "intel_extension_for_pytorch" not in sys.modules


@pytest.mark.cpu
def test_what_cannot_run_here_says_why(measured):
    found, _, _ = measured
    ran = {recipe.rpartition("-")[2] for recipe in found.recipes if recipe not in found.lacking}
    emulated = {"bf16": NO_NATIVE_BF16} if NO_NATIVE_BF16 and "bf16" in ran else {}
    assert found.emulated == emulated
    for recipe in found.recipes:
        reason = cpu.get_recipe(recipe).why_not
        assert found.lacking.get(recipe) == reason
        if reason:
            assert str(found.share_that_benefits(recipe)) == f"not measured: {reason}"
            assert reason in str(found) and recipe not in found.table().columns
        else:
            assert found.share_that_benefits(recipe).models == 2
            assert f"{recipe}: faster in " in str(found)


def test_nothing_is_left_behind(measured):
    _, files, processes = measured
    assert files == [] and processes == set()


class Odd(torch.nn.Module):
    """A tagger that behaves in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.words = torch.nn.Embedding(2048, 32)
        self.labels = torch.nn.Linear(32, 16)

    def forward(self, input_ids, attention_mask):
        if self.way == "raises":
            raise ValueError("no such layer")
        if self.way == "aborts" and torch.jit.is_tracing():
            os.abort()
        shift = float(input_ids.sum()) if self.way == "constant" else 1.0
        return {"logits": self.labels(self.words(input_ids)) + shift}


@dataclass(frozen=True)
class OddFamily(Family):
    def make_model(self, task, layers, *, seed=0):
        return Odd(self.name).eval()

    def make_inputs(self, model, batch_size, length, *, seed=0):
        ids = torch.arange(batch_size * length).view(batch_size, length) + 5
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture(scope="module")
def odd():
    """Families that fail in all ways, then one that works."""
    ways = ("constant", "aborts", "raises", "works")
    with pytest.MonkeyPatch.context() as patch:
        for way in ways:
            patch.setitem(FAMILIES, way, OddFamily(way, way.title()))
        return cpu.compare_families(
            ways, ["token-classification"], backends=["onednn-graph"], precisions=["fp32"], threads=1, budget_s=0.1
        )


def test_each_failure_costs_its_own_row_only(odd):
    constant, aborts, raises, works = odd.rows
    assert str(constant.status).startswith("could not be prepared: it does not give the model's answers on ")
    assert constant.verdict == "could not be prepared" and constant.baseline is not None
    assert str(aborts.status).startswith("crashed: SIGABRT") and aborts.verdict == "crashed"
    assert str(raises.status).startswith("not measured: the eager model does not run: crashed: ")
    assert "no such layer" in raises.status.reason and raises.baseline is None
    assert works.status.successful and works.speedup.paired


def test_models_that_fail_count_as_not_benefiting(odd):
    benefit = odd.share_that_benefits("onednn-graph-fp32")
    assert (benefit.models, benefit.failed) == (4, 3)
    assert len(odd.problems().rows) == 3
    assert "Constant (token-classification), onednn-graph-fp32: could not be prepared" in str(odd)


def test_a_process_that_has_grown_is_replaced(monkeypatch):
    model = Odd("works").eval()
    with measuring._ModelSession(threads=1, timeout_s=60) as session:
        session.take(model, OddFamily("works", "Works").make_inputs(model, 1, 8))
        child = session.load(cpu.get_recipe("eager-fp32"))
        assert session.load(cpu.get_recipe("eager-bf16")) is child
        monkeypatch.setattr(measuring, "_LARGEST_CHILD_BYTES", 1)
        other = session.load(cpu.get_recipe("eager-fp32"))
        assert other is not child and not psutil.pid_exists(child.process_id)
        assert session.ask(other, "prepare", verify=False)["prepared"]


# A shell may have started the tests with interrupts ignored, as it does with commands in the background.
PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
import cpuinfer_helpers as cpu
cpu.compare_families(["bert"], ["question-answering"], backends=["onednn-graph"], precisions=["fp32"], layers=1,
                     length=16, threads=1, budget_s=300, relative_width=1e-9)
"""


def test_an_interrupt_ends_all_processes(tmp_path):
    temporary, log, program = tmp_path / "temporary", tmp_path / "log", tmp_path / "program.py"
    temporary.mkdir()
    program.write_text(PROGRAM, encoding="utf-8")
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, str(program)], stderr=file, env=environment)
    try:
        deadline = time.monotonic() + 90
        children = []
        while len(children) < 2:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            children = psutil.Process(process.pid).children(recursive=True)
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) != 0, log.read_text()
    finally:
        process.kill()
        process.wait()
    assert "KeyboardInterrupt" in log.read_text()
    assert not any(child.is_running() for child in children)
    assert list(temporary.iterdir()) == []


# --- the result


def timing(seconds: float, spread: float = 0.0, label: str = "") -> Timing:
    samples = tuple(seconds * (1 + spread * (-1) ** number) for number in range(8))
    return Timing(label, samples, seconds, 3, True, "budget", 2, "the same rounds")


def result(family: str, ours: float | None, *, status: Status = SUCCESSFUL, spread: float = 0.0) -> FamilyResult:
    own = None if ours is None else timing(ours, spread)
    return FamilyResult(family, "text-classification", "ipex-fp32", status, timing(2.0), own, 0.0)


@pytest.fixture
def made_up() -> FamilyComparison:
    """Two faster, one slower, one whose interval holds 1, one that failed; and a recipe that cannot run."""
    rows = (
        result("A", 1.0),
        result("B", 1.9, spread=0.01),
        result("C", 4.0),
        result("D", 1.9, spread=0.3),
        result("E", None, status=Status(Kind.NOT_PREPARED, "it was not to be")),
    )
    recipes, lacking = ("ipex-fp32", "ipex-bf16"), {"ipex-bf16": "there is none"}
    emulated = {"bf16": "a cap keeps oneDNN from its instructions"}
    return FamilyComparison(rows, recipes, lacking, 2, 128, 1, 2, {"cpu": "a CPU"}, emulated)


def test_only_what_the_interval_shows_is_counted(made_up):
    benefit = made_up.share_that_benefits("ipex-fp32")
    assert (benefit.faster, benefit.slower, benefit.same, benefit.failed, benefit.models) == (2, 1, 1, 1, 5)
    assert str(benefit) == "faster in 2 of 5 (40%)"
    assert [row.verdict for row in made_up.rows] == [
        "faster",
        "faster",
        "slower",
        "no difference seen",
        "could not be prepared",
    ]


def test_a_recipe_that_cannot_run_has_no_share(made_up):
    benefit = made_up.share_that_benefits("ipex-bf16")
    assert (benefit.models, benefit.percent, str(benefit)) == (0, None, "not measured: there is none")


def test_tables_show_all_models_and_reasons(made_up):
    table = made_up.table()
    assert table.columns == ("family", "task", "eager-fp32", "ipex-fp32")
    assert [row[0] for row in table.rows] == list("ABCDE")
    assert table.rows[0][2:] == ("2.00 s", "2.00x [2.00, 2.00] faster")
    assert "it was not to be" in table.note and "2 layers" in table.title
    assert "BF16 is emulated: a cap keeps oneDNN from its instructions." in table.note.splitlines()
    assert [row[0] for row in made_up.benefits().rows] == ["ipex-fp32", "ipex-bf16"]
    assert [row[0] for row in made_up.problems().rows] == ["E", "all"]
    assert Benefit("ipex-fp32", 1, 0, 0, 0, 2.0).table().rows[0][6:] == ("100%", "2.00x")


def test_the_frame_and_the_plot_hold_the_numbers(made_up):
    frame = made_up.to_frame()
    assert len(frame) == 5 and frame.loc[0, "speedup"] == 2.0 and frame.loc[4, "verdict"] == "could not be prepared"
    assert len(made_up.plot("ipex-fp32").axes[0].patches) == 4


def test_rows_are_found_by_name(made_up):
    assert made_up.row("C", "text-classification", "ipex-fp32").speedup.ratio == 0.5
    with pytest.raises(cpu.InputError, match="there is no row for 'C', 'none'"):
        made_up.row("C", "none", "ipex-fp32")
    for view in (made_up.share_that_benefits, made_up.plot):
        with pytest.raises(cpu.InputError, match="'compile-fp32' was not compared; choose from ipex-fp32, ipex-bf16"):
            view("compile-fp32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"families": ["gpt"]}, "families names 'gpt'; choose from bert, "),
        ({"families": "bert"}, "families is 'bert'; give a list"),
        ({"families": []}, r"families is \[\]; give a list"),
        ({"tasks": ["chat"]}, "tasks names 'chat'"),
        # These families are of encoders.
        ({"tasks": ["text-generation"]}, "names 'text-generation'; choose from question-answering, text-cl"),
        ({"precisions": ["int8"]}, "precisions names 'int8'"),
        ({"backends": ["none"]}, "no recipe 'none-fp32'"),
        ({"backends": ["eager"]}, r"backends is \['eager'\]"),
        ({"layers": 0}, "layers is 0"),
        ({"length": 1.5}, "length is 1.5"),
        ({"length": 513}, "length is 513; the models take no more than 512 tokens"),
        ({"batch_size": True}, "batch_size is True"),
        ({"threads": -1}, "threads is -1"),
        ({"budget_s": 0}, "budget_s is 0"),
        ({"timeout_s": float("inf")}, "timeout_s is inf"),
    ],
)
def test_a_wrong_argument_is_named_before_anything_is_started(arguments, message, monkeypatch):
    monkeypatch.setattr(measuring, "_ModelSession", None)
    with pytest.raises(cpu.InputError, match=message):
        cpu.compare_families(**arguments)
