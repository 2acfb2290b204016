from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.tasks import data_files, loading, task_names
from cpuinfer_helpers.tasks.kinds.registry import get_kind

# Held-out scores that the small checkpoints must reach, and what guessing would.
TARGETS = {
    "question-answering": ("f1", 70.0),
    "text-classification": ("accuracy", 90.0),
    "token-classification": ("f1", 90.0),
    "text-generation": ("copied", 90.0),
}
# The model that is timed, and the rows of its example inputs: real tokens of each.
TIMED = {"text-generation": ("GPT-2", (32, 20))}


@pytest.fixture(scope="module")
def tasks():
    return {name: cpu.load_task(name) for name in task_names()}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CPUINFER_CACHE", str(tmp_path / "a cache"))
    return tmp_path / "a cache"


@pytest.mark.parametrize("name", task_names())
def test_an_offline_task_is_complete_and_says_where_it_comes_from(tasks, name):
    task = tasks[name]
    base, tokens = TIMED.get(name, ("BERT-base", (384,)))
    assert task.origin.startswith(f"offline: {base} geometry ") and "HF_HUB_OFFLINE" in task.origin
    assert task.model.config.num_hidden_layers == 12 and task.model.config.hidden_size == 768
    assert not any(part.training for part in task.model.modules())
    assert task.trained_model is not task.model
    assert {parameter.dtype for parameter in task.trained_model.parameters()} == {torch.float32}
    assert list(task.datasets) == ["heldout", "prose"] and task.dataset is task.datasets["heldout"]
    assert len(task.datasets["prose"]) >= 30
    shapes = {tuple(tensor.shape) for tensor in task.example_inputs.values()}
    assert shapes == {(len(tokens), max(tokens))}
    assert task.example_inputs["attention_mask"].sum(dim=1).tolist() == list(tokens)
    assert "offline" in str(task)


@pytest.mark.parametrize("name", task_names())
def test_the_small_checkpoint_answers_far_better_than_chance(tasks, name):
    metric, target = TARGETS[name]
    score = tasks[name].evaluate()
    assert score.metrics[metric] >= target
    assert score.examples == len(tasks[name].dataset) == len(score.predictions)
    untrained = type(tasks[name].trained_model)(tasks[name].trained_model.config).eval()
    assert tasks[name].evaluate(untrained, limit=40).metrics[metric] < target - 20


@pytest.mark.parametrize("name", task_names())
def test_the_same_weights_every_time(tasks, name):
    again = cpu.load_task(name)
    first, second = (next(iter(task.model.parameters())) for task in (tasks[name], again))
    assert torch.equal(first, second)


def test_loading_leaves_the_random_state_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    cpu.load_task("text-classification")
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", task_names())
def test_padding_and_batching_change_no_answer(tasks, name):
    task = tasks[name]
    alone = task.evaluate(limit=20, batch_size=1)
    for options in ({"batch_size": 7}, {"batch_size": 8, "pad_to": 384}):
        score = task.evaluate(limit=20, **options)
        assert score.predictions == alone.predictions
        assert score.agreement(alone) == 100.0


@pytest.mark.parametrize("name", task_names())
def test_a_traced_model_gives_the_same_answers(tasks, name):
    task = tasks[name]
    traced = cpu.trace_model(task.trained_model, task.inputs(2, 48))
    assert traced.traced, traced.reason
    assert task.evaluate(traced, limit=30).predictions == task.evaluate(limit=30).predictions


@pytest.mark.parametrize("name", task_names())
@pytest.mark.parametrize(("batch", "length", "tokens"), [(1, 384, None), (3, 128, None), (2, 64, 40), (1, 4, None)])
def test_inputs_have_exactly_the_shape_that_was_asked_for(tasks, name, batch, length, tokens):
    inputs = tasks[name].inputs(batch, length, tokens=tokens)
    assert {tuple(tensor.shape) for tensor in inputs.values()} == {(batch, length)}
    assert inputs["attention_mask"].sum(dim=1).tolist() == [tokens or length] * batch
    padding = slice(0, length - (tokens or length)) if name == "text-generation" else slice(tokens or length, None)
    assert (inputs["input_ids"][:, padding] == tasks[name].tokenizer.pad_token_id).all()
    assert not inputs["attention_mask"][:, padding].any()
    with torch.no_grad():
        tasks[name].trained_model(**inputs)


def test_every_row_may_have_tokens_of_its_own(tasks):
    task = tasks["question-answering"]
    inputs = task.inputs(3, 64, tokens=(64, 9, 30))
    assert inputs["attention_mask"].sum(dim=1).tolist() == [64, 9, 30]
    assert torch.equal(inputs["input_ids"][0], task.inputs(1, 64)["input_ids"][0])
    for wrong in ((64, 9), (64, 9, 65), (64, 9, 3)):
        with pytest.raises(cpu.InputError, match="for every row"):
            task.inputs(3, 64, tokens=wrong)


def test_question_answering_inputs_have_a_question_and_a_context(tasks):
    segments = tasks["question-answering"].inputs(2, 96)["token_type_ids"]
    assert (segments[:, 0] == 0).all() and (segments[:, -1] == 1).all()


def test_bad_requests_are_named(tasks):
    with pytest.raises(cpu.InputError, match="unknown task 'translation'; choose from question-answering"):
        cpu.load_task("translation")
    task = tasks["text-classification"]
    with pytest.raises(cpu.InputError, match="split 'validation' is not part"):
        task.evaluate(split="validation")
    for options in ({"batch_size": 0}, {"limit": 0}):
        with pytest.raises(cpu.InputError, match="at least 1"):
            task.evaluate(**options)
    for arguments in ({"batch_size": 0}, {"length": 2}, {"length": 16, "tokens": 17}):
        with pytest.raises(cpu.InputError, match="cannot be made"):
            task.inputs(**arguments)
    with pytest.raises(cpu.InputError, match="pad_to is 4, but a row has"):
        task.evaluate(limit=3, pad_to=4)
    with pytest.raises(cpu.InputError, match="score the same ones"):
        task.evaluate(limit=3).agreement(task.evaluate(limit=4))


@pytest.fixture
def damaged(tmp_path):
    """The shipped checkpoints with one byte of one of them changed."""
    shipped = tmp_path / "checkpoints"
    shutil.copytree(data_files.DATA / "checkpoints", shipped)
    weights = shipped / "text-classification" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    return shipped


def test_a_damaged_checkpoint_is_an_error_that_says_to_install_again(damaged):
    with pytest.raises(cpu.ArtifactError, match=r"model\.safetensors is damaged: .*install cpuinfer-helpers again"):
        loading.checkpoint_directory("text-classification", damaged)
    assert loading.checkpoint_directory("token-classification", damaged) == damaged / "token-classification"


@pytest.mark.parametrize("name", ["question-answering/config.json", "scores.json"])
def test_a_checkpoint_that_is_not_whole_is_not_used(damaged, name):
    (damaged / name).unlink()
    with pytest.raises(cpu.ArtifactError, match=r"install cpuinfer-helpers again") as caught:
        loading.checkpoint_directory("question-answering", damaged)
    assert str(damaged / name) in str(caught.value)


def test_the_parts_of_a_task_are_those_that_its_kind_has_files_for():
    kind = get_kind("text-classification")
    files = {"train": kind.data.files["train"], "heldout": kind.data.files["heldout"]}
    task = loading._offline(replace(kind, data=replace(kind.data, files=files)), "for a test")
    assert list(task.datasets) == ["heldout"] and task.evaluate(limit=2).examples == 2
