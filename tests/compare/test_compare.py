"""Recipes side by side, in real child processes. One comparison with every kind of recipe is shared by most tests."""

from __future__ import annotations

import importlib
import logging
import os
import tempfile

import psutil
import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.interface.adapter import named_inputs
from cpuinfer_helpers.processes.memory import private_bytes
from cpuinfer_helpers.recipes import Build

# The package holds the function under this name.
compare_module = importlib.import_module("cpuinfer_helpers.compare.compare")

MIB = 2**20
# As in a notebook cell: a class of __main__, with a global that it needs.
CELL = """
class Tagger(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(50, 16)
        self.inner = torch.nn.Linear(16, 16)
        self.head = torch.nn.Linear(16, 5)

    def forward(self, tokens, attention_mask):
        hidden = torch.tanh(self.inner(self.embed(tokens))) * SCALE * attention_mask[..., None]
        return {"logits": self.head(hidden)}

SCALE = 0.5
"""


def make_tagger() -> torch.nn.Module:
    space = {"torch": torch, "__name__": "__main__"}
    exec(CELL, space)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return space["Tagger"]().eval()


def make_inputs(rows: int = 2) -> dict[str, torch.Tensor]:
    tokens = torch.arange(rows * 6).reshape(rows, 6) % 50
    mask = torch.ones_like(tokens)
    mask[-1, 4:] = 0
    return {"tokens": tokens, "attention_mask": mask}


def recipe(name: str, build, **fields) -> cpu.Recipe:
    return cpu.Recipe(name, "for a test", build, **fields)


def eager_with(change) -> callable:
    """A build that answers as the model does, and then changes the answers."""

    def build(request):
        adapter = named_inputs(request.model, request.inputs)
        return Build(lambda tensors: change(adapter.run_model(tensors)), runs="an eager model with a twist")

    return build


def make_recipes() -> list[cpu.Recipe | str]:
    def abort(request):
        os.write(2, b"a library says why\n")
        os.abort()

    def leave(request):
        raise SystemExit(3)

    def eat(request):
        eaten = []
        while True:
            eaten.append(torch.ones(16 * MIB // 4))

    def refuse(request):
        raise ValueError("this kind of model is not supported")

    def swap(answers):
        # Small enough to pass as BF16; the labels of some tokens change.
        return {"logits": answers["logits"].bfloat16()}

    return [
        "torchscript-fp32",
        recipe("aborting-fp32", abort),
        recipe("leaving-fp32", leave),
        recipe("rounded-bf16", eager_with(swap)),
        recipe("refusing-fp32", refuse),
        recipe("wrong-fp32", eager_with(lambda answers: {"logits": answers["logits"].flip(-1)})),
        recipe("eating-fp32", eat),
        recipe("absent-int8", refuse, needs=("no-such-distribution>=3",)),
    ]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    environment, threads = dict(os.environ), torch.get_num_threads()
    model, before = make_tagger(), torch.get_rng_state()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("cpuinfer_helpers")
    logger.addHandler(handler)
    old, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        comparison = cpu.compare(
            model,
            make_inputs(),
            make_recipes(),
            threads=1,
            budget_s=0.5,
            agreement_inputs=[make_inputs(1), make_inputs(3)],
            price_per_hour=1.0,
            timeout_s=120,
            # Room for this process, the reference, two recipes, and a meal.
            memory_bytes=private_bytes([os.getpid()]) + 1600 * MIB,
        )
    finally:
        tempfile.tempdir = old
        logger.removeHandler(handler)
    left = {
        "files": list(folder.iterdir()),
        "processes": [
            p for p in psutil.Process().children(recursive=True) if "processes.worker" in " ".join(p.cmdline())
        ],
        "environment": dict(os.environ) == environment,
        "threads": torch.get_num_threads() == threads,
        "random state": torch.equal(torch.get_rng_state(), before),
        "model": all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items()),
    }
    return comparison, [record.getMessage() for record in records], left


@pytest.fixture(scope="module")
def comparison(outcome) -> cpu.Comparison:
    return outcome[0]


def test_every_recipe_has_a_row_with_its_status(comparison):
    status = {name: str(row.status) for name, row in comparison.rows.items()}
    assert next(iter(status)) == "eager-fp32" and len(status) == 9
    assert [status.pop(name) for name in ("eager-fp32", "torchscript-fp32", "rounded-bf16")] == ["successful"] * 3
    assert status.pop("aborting-fp32") == "crashed: SIGABRT; it wrote: a library says why"
    assert status.pop("leaving-fp32").startswith("crashed: exit code 3")
    assert status.pop("refusing-fp32") == "fell back: refusing fails: ValueError: this kind of model is not supported"
    assert status.pop("wrong-fp32").startswith("fell back: it does not give the model's answers on 'example'")
    assert status.pop("eating-fp32").startswith("out of memory: ")
    assert status.pop("absent-int8").startswith("lacks: no-such-distribution is not installed")
    assert not status


def test_what_was_measured_is_there_and_consistent(comparison):
    for name in ("eager-fp32", "torchscript-fp32", "rounded-bf16"):
        row = comparison[name]
        assert row.timing.low <= row.timing.median <= row.timing.high
        assert row.timing.calls >= 6
        assert row.timing.threads == comparison.threads == row.receipt.threads == 1
        assert min(row.load_s, row.prepare_s, row.first_call_s, row.warm_up_s) >= 0
        assert row.first_call_s > 0 and row.roofline_percent > 0
        assert 50 * MIB < row.resident_bytes < 4000 * MIB
    assert comparison.flops == 2 * 2 * 6 * 16 * (16 + 5)  # rows x tokens x two layers, a multiply and an add each
    assert comparison.batch_size == 2 and comparison.inputs["tokens"] == "2 x 6, int64"


def test_speedups_are_paired_with_the_reference_of_their_rounds(comparison):
    assert comparison.reference.speedup is None
    for name in ("torchscript-fp32", "rounded-bf16"):
        assert comparison[name].speedup.paired
        assert comparison[name].group is not None


def test_answers_are_compared_on_all_inputs(comparison):
    reference, exact, rounded = (comparison[n] for n in ("eager-fp32", "torchscript-fp32", "rounded-bf16"))
    # Rows of 6, the last one with 4 valid tokens: 10 of the inputs, 4 and 16 of the further ones.
    assert reference.labels == exact.labels == 30
    assert (reference.max_error, reference.label_agreement) == (0.0, 100.0)
    assert exact.max_error < 1e-6 and exact.label_agreement == 100.0
    assert 0 < rounded.max_error < 0.01
    assert rounded.receipt.verified


def test_rows_without_a_measurement_hold_no_times(comparison):
    for name, row in comparison.rows.items():
        if not row.successful:
            assert row.timing is None and row.speedup is None and row.max_error is None, name
    assert comparison["refusing-fp32"].runs == "the eager model"
    assert comparison["torchscript-fp32"].runs == "ScriptModule, frozen"


def test_what_did_not_work_is_logged(outcome):
    _, messages, _ = outcome
    assert any(message.startswith("aborting-fp32: crashed: SIGABRT") for message in messages)
    assert not any(message.startswith("torchscript-fp32") for message in messages)


def test_nothing_is_left_behind_and_the_process_is_as_it_was(outcome):
    _, _, left = outcome
    assert left == {
        "files": [],
        "processes": [],
        "environment": True,
        "threads": True,
        "random state": True,
        "model": True,
    }


def test_a_real_comparison_survives_saving(comparison, tmp_path):
    comparison.save(tmp_path / "here.json")
    loaded = cpu.Comparison.load(tmp_path / "here.json")
    assert loaded == comparison
    assert torch.__version__.startswith(loaded.environment["versions"]["torch"])
    assert loaded.against(comparison).ratio("torchscript-fp32") == 1.0


def test_the_table_and_the_frame_show_all_rows(comparison):
    assert len(comparison.table().rows) == len(comparison.to_frame()) == 9


def test_recipes_that_do_not_fit_at_once_are_measured_in_groups(monkeypatch):
    from cpuinfer_helpers.processes.session import Session

    monkeypatch.setattr(Session, "has_room_for", lambda self, recipe: False)
    names = ["torchscript-fp32", "eager-bf16"]
    found = cpu.compare(make_tagger(), make_inputs(), names, threads=1, budget_s=0.3, measure_roofline=False)
    assert [found[name].group for name in ("eager-fp32", *names)] == [1, 1, 2]
    assert all(found[name].speedup.paired for name in names)
    assert found["eager-bf16"].timing.round_id != found.reference.timing.round_id
    assert "2 groups" in found.table().note
    assert found["eager-bf16"].roofline_percent is None and found.roofline is None


def test_a_reference_that_does_not_run_is_an_error():
    class Broken(torch.nn.Module):
        def forward(self, tokens):
            raise ValueError("no such layer")

    with pytest.raises(cpu.RecipeError, match=r"eager-fp32 does not run: .*no such layer"):
        cpu.compare(Broken().eval(), {"tokens": torch.ones(1, 2)}, ["torchscript-fp32"], threads=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"recipes": ["no-such-recipe"]}, "no recipe 'no-such-recipe'"),
        ({"recipes": "eager-fp32"}, "give a list"),
        ({"recipes": ["eager-bf16", "eager-bf16"]}, "more than once"),
        ({"recipes": [recipe("eager-fp32", None)]}, "which is the reference"),
        ({"recipes": [7]}, "holds a int"),
        ({"threads": 0}, "threads is 0"),
        ({"budget_s": -1}, "budget_s is -1"),
        ({"timeout_s": float("nan")}, "timeout_s is nan"),
        ({"memory_bytes": 0}, "memory_bytes is 0"),
        ({"price_per_hour": 0}, "price_per_hour is 0"),
        ({"agreement_inputs": [{"tokens": torch.ones(1, 2)}]}, r"agreement_inputs\[0\] has tokens, not tokens, att"),
        ({"inputs": {"words": torch.ones(1, 2)}}, "does not take"),
        ({"model": make_tagger().train()}, "training mode"),
    ],
)
def test_a_wrong_argument_is_named_before_anything_is_started(arguments, message, monkeypatch):
    monkeypatch.setattr(compare_module, "Session", None)
    request = {"model": make_tagger(), "inputs": make_inputs(), **arguments}
    with pytest.raises(cpu.InputError, match=message):
        cpu.compare(**request)


def test_what_children_need_lies_in_a_folder_that_is_removed(tmp_path, monkeypatch):
    from cpuinfer_helpers.processes.session import Session

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Session({"model": make_tagger()}, threads=1, timeout_s=60, memory_bytes=None):
        (folder,) = tmp_path.iterdir()
        assert folder.name.startswith("cpuinfer-scratch-") and folder.stat().st_mode & 0o077 == 0
    assert not list(tmp_path.iterdir())
