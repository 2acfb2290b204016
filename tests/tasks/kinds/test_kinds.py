"""Every kind of task: found in its file, loaded with its inputs, prepared and verified."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.commands import optimize
from cpuinfer_helpers.tasks import Task, task_names
from cpuinfer_helpers.tasks.kinds import registry
from cpuinfer_helpers.tasks.kinds.registry import get_kind, kind_names, kinds
from tests.conftest import make_bert, write_tokenizer
from tests.tasks.kinds.tiny import RATE, SIDE, save_tiny

WITHOUT_DATA = (
    "audio-classification",
    "feature-extraction",
    "fill-mask",
    "image-classification",
    "sentence-similarity",
)
SHAPES = {
    "image-classification": {"pixel_values": (2, 3, SIDE, SIDE)},
    "audio-classification": {"input_values": (2, RATE)},
    "text-generation": {"input_ids": (2, 40), "attention_mask": (2, 40)},
}
# Two kinds have models of the same classes.
WITHOUT_HEAD = ("feature-extraction", "sentence-similarity")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each kind."""
    root = tmp_path_factory.mktemp("tiny models")
    return {name: save_tiny(name, root / name) for name in kind_names()}


def test_the_kinds_with_data_come_first() -> None:
    assert task_names() == ("question-answering", "text-classification", "text-generation", "token-classification")
    assert kind_names() == (*task_names(), *WITHOUT_DATA)
    assert [kind.name for kind in kinds()] == list(kind_names())


@pytest.mark.parametrize("name", kind_names())
def test_a_model_of_each_kind_is_loaded_with_its_inputs_and_a_trace_of_it_holds(
    folders: dict[str, Path], name: str
) -> None:
    loaded = cpu.load_model(folders[name], name)
    kind = get_kind(name)
    assert loaded.task == name and not loaded.model.training and loaded.notes == ()
    assert (loaded.tokenizer is None, loaded.processor is None) == (not kind.reads_texts, kind.reads_texts)
    inputs = loaded.inputs(2, 40 if kind.reads_texts else None)
    again = loaded.inputs(2, 40 if kind.reads_texts else None)
    assert all(torch.equal(tensor, again[key]) for key, tensor in inputs.items())
    shapes = {key: tuple(tensor.shape) for key, tensor in inputs.items()}
    assert shapes == SHAPES.get(name, dict.fromkeys(("input_ids", "token_type_ids", "attention_mask"), (2, 40)))
    main = inputs[loaded.model.main_input_name]
    assert len(main.unique()) > 8 and not torch.equal(main[0], main[1])
    prepared = cpu.prepare("torchscript-fp32", loaded.model, inputs)
    assert prepared.prepared, prepared.reason
    with torch.no_grad():
        expected = loaded.model(**inputs)
    for key, tensor in prepared(**inputs).items():
        assert torch.allclose(tensor, expected[key], atol=1e-4)


@pytest.mark.parametrize("name", kind_names())
def test_a_class_that_is_made_for_one_kind_tells_it(folders: dict[str, Path], name: str) -> None:
    if name in WITHOUT_HEAD:
        with pytest.raises(cpu.InputError, match="saved as BertModel, which tells no task"):
            cpu.load_model(folders[name])
    else:
        assert cpu.load_model(folders[name]).task == name


def test_a_class_that_fills_masks_beside_other_things_tells_no_kind() -> None:
    assert get_kind("fill-mask").is_told_by(["BertForMaskedLM"])
    assert not any(kind.is_told_by(["BartForConditionalGeneration"]) for kind in kinds())


def test_one_token_of_each_row_is_masked(folders: dict[str, Path]) -> None:
    loaded = cpu.load_model(folders["fill-mask"], "fill-mask")
    masked = loaded.inputs(3, 20)["input_ids"] == loaded.tokenizer.mask_token_id
    assert masked.sum(dim=1).tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", ["image-classification", "audio-classification"])
def test_without_a_processor_inputs_are_random_numbers_and_that_is_said(tmp_path: Path, name: str) -> None:
    folder = save_tiny(name, tmp_path / "model")
    (folder / "preprocessor_config.json").unlink()
    loaded = cpu.load_model(folder, name)
    assert loaded.processor is None and "so inputs are random numbers" in str(loaded)
    shape = (1, 3, SIDE, SIDE) if name == "image-classification" else (1, 16_000)
    assert [tuple(tensor.shape) for tensor in loaded.inputs().values()] == [shape]


def test_a_recording_is_as_long_as_asked(folders: dict[str, Path]) -> None:
    loaded = cpu.load_model(folders["audio-classification"], "audio-classification")
    assert loaded.inputs(1, 700)["input_values"].shape == (1, 700)


@pytest.mark.parametrize("name", WITHOUT_DATA)
def test_a_kind_without_data_is_no_task_to_load(name: str) -> None:
    with pytest.raises(
        cpu.InputError, match=f"no data and no trained model for {name}; choose from question-answering, text-"
    ):
        cpu.load_task(name)


def test_a_task_needs_data(folders: dict[str, Path], tokenizer: Any) -> None:
    model = cpu.load_model(folders["fill-mask"], "fill-mask").model
    with pytest.raises(cpu.InputError, match="no data for fill-mask; choose from question-answering"):
        Task("fill-mask", model, model, tokenizer, {"heldout": ["The cat."]}, "test")


def test_vectors_are_compared_without_a_mask_and_padding_of_the_tokenizer_s(folders: dict[str, Path]) -> None:
    loaded = cpu.load_model(folders["sentence-similarity"], "sentence-similarity")
    expected = loaded.metric(5).wanted
    loaded.tokenizer.pad_token = None
    loaded.tokenizer.model_input_names = ["input_ids", "token_type_ids"]
    assert torch.allclose(loaded.metric(5).wanted, expected, atol=1e-5)


def test_a_model_that_reads_no_texts_is_refused_where_texts_are_needed(tmp_path: Path) -> None:
    folder = save_tiny("image-classification", tmp_path / "model")
    loaded = cpu.load_model(folder, "feature-extraction")
    with pytest.raises(cpu.InputError, match="make the example inputs yourself"):
        loaded.inputs()


@pytest.mark.parametrize("saved", ["BertForMaskedLM", "BertForSequenceClassification"])
def test_features_need_no_pooler_that_was_not_trained(tmp_path: Path, saved: str) -> None:
    """A model for masks is saved without one; its random weights would give random features."""
    make_bert(saved, vocab_size=200).save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    loaded = cpu.load_model(tmp_path / "model", "feature-extraction")
    with torch.no_grad():
        outputs = loaded.model(**loaded.inputs(1, 8))
    assert ("pooler_output" in outputs) == (saved == "BertForSequenceClassification")
    assert outputs["last_hidden_state"].shape == (1, 8, 32)


def test_a_checkpoint_that_lacks_more_than_the_pooler_has_no_features(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_tiny("feature-extraction", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(cpu.InputError, match=r"is no feature extraction checkpoint: it has no weights for encoder\.la"):
        cpu.load_model(folder, "feature-extraction")


class Changed(torch.nn.Module):
    """A model whose vectors are turned, scaled, or wrong on padding only."""

    def __init__(self, model: torch.nn.Module, how: str) -> None:
        super().__init__()
        self.model, self.how = model, how

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        vectors = self.model(**inputs)["last_hidden_state"].clone()
        if self.how == "turned":
            vectors = -vectors
        elif self.how == "scaled":
            vectors = 3.0 * vectors
        else:
            vectors[~inputs["attention_mask"].bool()] = 1e3
        return {"last_hidden_state": vectors}


@pytest.mark.parametrize("name", WITHOUT_HEAD)
@pytest.mark.parametrize(("how", "percent"), [("turned", -100.0), ("scaled", 100.0), ("wrong on padding", 100.0)])
def test_vectors_are_compared_by_their_directions(
    folders: dict[str, Path], name: str, how: str, percent: float
) -> None:
    loaded = cpu.load_model(folders[name], name)
    metric = loaded.metric(5)
    assert metric(loaded.model) == pytest.approx(100.0, abs=1e-3)
    assert metric(Changed(loaded.model, how)) == pytest.approx(percent, abs=1e-3)


def test_a_token_s_vector_counts_for_features_and_the_mean_for_similarity(folders: dict[str, Path]) -> None:
    folder = folders["feature-extraction"]
    outputs = {"last_hidden_state": torch.arange(12.0).view(1, 3, 4)}
    inputs = {"attention_mask": torch.tensor([[1, 1, 0]])}
    tokens, text = (get_kind(name).vectors(outputs, inputs) for name in WITHOUT_HEAD)
    assert tokens.tolist() == [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]]
    assert text.tolist() == [[2.0, 3.0, 4.0, 5.0]]
    assert cpu.load_model(folder, "feature-extraction").metric(2).wanted.shape[0] > 2
    assert cpu.load_model(folder, "sentence-similarity").metric(2).wanted.shape[0] == 2


# The windows of questions are longer than this small model takes.
@pytest.mark.parametrize("name", [name for name in kind_names() if name != "question-answering"])
def test_each_kind_has_rows_to_calibrate_with_where_it_reads_texts(folders: dict[str, Path], name: str) -> None:
    loaded = cpu.load_model(folders[name], name)
    rows = loaded.calibration_inputs(5)
    assert len(rows) == (5 if get_kind(name).reads_texts else 0)
    for row in rows:
        with torch.no_grad():
            loaded.model(**row)


def test_kinds_without_vectors_or_data_have_no_metric(folders: dict[str, Path]) -> None:
    with pytest.raises(cpu.InputError, match="no data for fill-mask with this model; give a metric of your own"):
        cpu.load_model(folders["fill-mask"], "fill-mask").metric(3)
    with pytest.raises(cpu.InputError, match="examples is 0"):
        cpu.load_model(folders["feature-extraction"], "feature-extraction").metric(0)


# Scores

LABELS = {"text-classification": ("good", "bad"), "token-classification": ("O", "B-PER", "I-PER")}


def answering(kind: Any, encoded: Any, examples: Any, right: bool) -> list[tuple[torch.Tensor, ...]]:
    """Outputs that say the right answer to each example, or the first label for all."""
    numbers = {label: number for number, label in enumerate(LABELS[kind.name])}
    rows = kind.data.label_numbers(encoded, examples, numbers)
    outputs = []
    for labels in rows:
        wanted = torch.tensor(labels).clamp(min=0) if right else torch.zeros_like(torch.tensor(labels))
        outputs.append((torch.nn.functional.one_hot(wanted, len(numbers)).float(),))
    return outputs


@pytest.mark.parametrize("name", LABELS)
def test_answers_are_read_from_outputs_and_scored(name: str, tokenizer: Any, tmp_path: Path) -> None:
    records = {
        "text-classification": [{"text": "The cat sat.", "label": "bad"}, {"text": "The dog.", "label": "good"}],
        "token-classification": [{"tokens": ["Anna", "Smith", "works"], "tags": ["B-PER", "I-PER", "O"]}],
    }
    (tmp_path / "data.json").write_text(json.dumps(records[name]), encoding="utf-8")
    kind, labels = get_kind(name), dict(enumerate(LABELS[name]))
    examples = kind.data.read(tmp_path / "data.json")
    encoded = kind.data.encode(tokenizer, examples)
    for right, percent in ((True, 100.0), (False, 50.0 if name == "text-classification" else 0.0)):
        outputs = answering(kind, encoded, examples, right)
        answers = kind.data.decode(encoded, examples, outputs, labels)
        assert kind.data.score(examples, answers)[kind.data.metric] == percent
    assert len(encoded.rows) == len(examples)


def test_questions_are_read_from_outputs_and_scored(tokenizer: Any, tmp_path: Path) -> None:
    context = "The cat sat on the mat in the old house."
    answer = {"text": "mat", "answer_start": context.index("mat")}
    record = {"id": "1", "question": "Where sat the cat?", "context": context, "answers": [answer]}
    (tmp_path / "data.json").write_text(json.dumps([record]), encoding="utf-8")
    tokenizer = type(tokenizer).from_pretrained(tokenizer.name_or_path, model_max_length=512)
    kind = get_kind("question-answering")
    questions = kind.data.read(tmp_path / "data.json")
    encoded = kind.data.encode(tokenizer, questions)
    ids = encoded.rows[0]["input_ids"]
    logits = torch.zeros(len(ids))
    logits[ids.index(tokenizer.convert_tokens_to_ids("mat"))] = 5.0
    answers = kind.data.decode(encoded, questions, [(logits, logits)], {})
    assert answers == ["mat"] and kind.data.score(questions, answers) == {"exact_match": 100.0, "f1": 100.0}
    assert kind.data.metric == "f1" and kind.data.label_numbers is None


# A new kind

NEW_KIND = '''
"""Whether a text is long: one file, and nothing else."""

import json
from pathlib import Path

from cpuinfer_helpers.tasks.batches import rows_of
from cpuinfer_helpers.tasks.kinds.base import Encoded, TaskData, TaskKind, accuracy

FILES = {part: Path(__file__).with_name(f"{part}.json") for part in ("train", "heldout")}


def encode(tokenizer, examples):
    return Encoded(rows_of(tokenizer, tokenizer([text for text, _ in examples])))


def decode(encoded, examples, outputs, labels):
    return [labels[int(logits.argmax())] for (logits,) in outputs]


KIND = TaskKind(
    "length-classification",
    "AutoModelForSequenceClassification",
    data=TaskData(
        files=FILES,
        read=lambda path: [tuple(pair) for pair in json.loads(path.read_text())],
        text_of=lambda example: ("", example[0]),
        encode=encode,
        outputs=("logits",),
        decode=decode,
        score=lambda examples, answers: {"share": accuracy([label for _, label in examples], answers)},
        metric="share",
        labels=("short", "long"),
        label_numbers=lambda encoded, examples, numbers: [numbers[label] for _, label in examples],
    ),
    told_by=None,
)
'''
EXAMPLES = [
    ["The cat.", "short"],
    ["The dog sat on the mat in the old house by the river.", "long"],
    ["A dog.", "short"],
]


@pytest.fixture
def new_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder with one module that joins the package's own."""
    (tmp_path / "added_by_a_test.py").write_text(NEW_KIND, encoding="utf-8")
    for part in ("train", "heldout"):
        (tmp_path / f"{part}.json").write_text(json.dumps(EXAMPLES), encoding="utf-8")
    package = sys.modules["cpuinfer_helpers.tasks.kinds"]
    try:
        with monkeypatch.context() as patched:
            patched.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
            registry._registry.cache_clear()
            yield "length-classification"
    finally:
        registry._registry.cache_clear()
        sys.modules.pop("cpuinfer_helpers.tasks.kinds.added_by_a_test", None)


class ByLength(torch.nn.Module):
    """Says ``long`` of rows of more than eight tokens."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **others: Any) -> dict[str, torch.Tensor]:
        longer = (attention_mask.sum(dim=1) > 8).float()
        return {"logits": torch.stack([0.5 - longer, longer - 0.5], dim=1)}


def test_one_file_is_all_that_a_new_kind_needs(new_kind: str, tmp_path: Path) -> None:
    from cpuinfer_helpers.tasks.rows import task_rows

    names = {"id2label": {0: "short", 1: "long"}, "label2id": {"short": 0, "long": 1}}
    make_bert("BertForSequenceClassification", vocab_size=200, **names).save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    loaded = cpu.load_model(tmp_path / "model", new_kind)
    task = loaded.as_task()
    assert isinstance(task, Task) and loaded.inputs(2, 9)["input_ids"].shape == (2, 9)
    score = task.evaluate(ByLength())
    assert score.metrics == {"share": 100.0} and score.predictions == ("short", "long", "short")
    assert task.evaluate().examples == 3 and 0.0 <= loaded.metric(2)(loaded.model) <= 100.0
    assert len(task.calibration_inputs(3)) == 3
    rows = task_rows(task)
    assert [row["labels"] for row in rows.rows] == [0, 1, 0]
    logits = torch.tensor([[2.0, 1.0], [1.0, 2.0], [1.0, 2.0]]).numpy()
    assert rows.score(logits).metrics["share"] == pytest.approx(200 / 3)
    # Whose class it has is told as before.
    assert cpu.load_model(tmp_path / "model").task == "text-classification"


def test_the_command_offers_a_new_kind(new_kind: str) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    optimize.add_arguments(parser)
    assert parser.parse_args(["--task", new_kind, "--model", "m"]).task == new_kind
    with pytest.raises(cpu.InputError, match=f"no trained model for {new_kind}; choose from question-answering"):
        cpu.load_task(new_kind)


def test_no_test_s_kind_is_left() -> None:
    assert "length-classification" not in kind_names()
    with pytest.raises(cpu.InputError, match="unknown task 'length-classification'"):
        get_kind("length-classification")
