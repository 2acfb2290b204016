"""A model of the user's own: from a folder or the hub, with inputs of the right shape, or a clear reason why not."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.tasks.models import load_model
from tests.conftest import make_bert, seen_in_child, write_tokenizer
from tests.tasks.test_hub import Hub

CLASSES = {
    "question-answering": "BertForQuestionAnswering",
    "text-classification": "BertForSequenceClassification",
    "token-classification": "BertForTokenClassification",
}
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small model for each task, as save_pretrained writes it."""
    import transformers

    root = tmp_path_factory.mktemp("models of my own")
    for task, name in CLASSES.items():
        make_bert(name, vocab_size=200).save_pretrained(root / task)
        write_tokenizer(root / task)
    image = transformers.ViTConfig(image_size=32, patch_size=8, **SMALL)
    transformers.ViTForImageClassification(image).save_pretrained(root / "image-classification")
    audio = transformers.Wav2Vec2Config(
        vocab_size=32,
        conv_dim=(8, 8),
        conv_kernel=(10, 3),
        conv_stride=(5, 2),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=8,
        **SMALL,
    )
    transformers.Wav2Vec2ForSequenceClassification(audio).save_pretrained(root / "audio-classification")
    return {task: root / task for task in SHAPES}


SHAPES = {
    "question-answering": ((1, 62), (3, 20)),
    "text-classification": ((1, 62), (3, 20)),
    "token-classification": ((1, 62), (3, 20)),
    "image-classification": ((1, 3, 32, 32), (3, 3, 32, 32)),
    "audio-classification": ((1, 16_000), (3, 20)),
}


@pytest.mark.parametrize("task", SHAPES)
def test_each_task_has_inputs_that_its_model_takes(folders: dict[str, Path], task: str) -> None:
    loaded = load_model(str(folders[task]), task)
    assert not loaded.model.training and loaded.model.dtype == torch.float32
    assert loaded.origin == str(folders[task]) and type(loaded.model).__name__ in str(loaded)
    # As long as the model takes, and as asked.
    longest, asked = SHAPES[task]
    for inputs, shape in ((loaded.inputs(), longest), (loaded.inputs(3, 200 if "audio" in task else 20), asked)):
        shape = (3, 200) if shape == (3, 20) and "audio" in task else shape
        main = inputs[loaded.model.main_input_name]
        assert tuple(main.shape) == shape
        assert torch.equal(main, loaded.inputs(*shape[:2])[loaded.model.main_input_name])
        with torch.no_grad():
            assert loaded.model(**inputs)[0].shape[0] == shape[0]
    assert (loaded.tokenizer is None) == (task not in CLASSES)


@pytest.mark.parametrize("task", CLASSES)
def test_the_tasks_own_texts_and_metric(folders: dict[str, Path], task: str) -> None:
    loaded = load_model(str(folders[task]), task)
    inputs = loaded.inputs(2, 30)
    assert inputs["attention_mask"].all() and len(inputs["input_ids"].unique()) > 10
    if task == "question-answering":
        return  # its windows are longer than this small model takes
    score = loaded.as_task().evaluate(limit=2)
    assert score.examples == 2 and score.metrics


def test_without_a_tokenizer_inputs_are_random_tokens(tmp_path: Path) -> None:
    make_bert("BertForSequenceClassification").save_pretrained(tmp_path / "bare")
    loaded = load_model(str(tmp_path / "bare"), "text-classification")
    ids = loaded.inputs(2, 9)["input_ids"]
    assert loaded.tokenizer is None and "No tokenizer" in str(loaded)
    assert tuple(ids.shape) == (2, 9) and ids.max() < 120 and torch.equal(ids, loaded.inputs(2, 9)["input_ids"])
    with pytest.raises(cpu.InputError, match="no data for text-classification"):
        loaded.as_task()


@pytest.mark.parametrize("task", ["image-classification", "audio-classification"])
def test_images_and_audio_have_no_data(folders: dict[str, Path], task: str) -> None:
    with pytest.raises(cpu.InputError, match=f"no data for {task}"):
        load_model(str(folders[task]), task).as_task()


def test_inputs_that_the_model_does_not_take_are_left_out(tmp_path: Path) -> None:
    import transformers

    config = transformers.DistilBertConfig(vocab_size=200, dim=16, n_layers=1, n_heads=2, hidden_dim=32)
    transformers.DistilBertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    inputs = load_model(str(tmp_path / "model"), "text-classification").inputs(2, 12)
    assert set(inputs) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("sizes", [(0, 5), (1, 0), (-1, None)])
def test_sizes_that_cannot_be(folders: dict[str, Path], sizes: tuple[int, int | None]) -> None:
    with pytest.raises(cpu.InputError, match="must be at least 1"):
        load_model(str(folders["text-classification"]), "text-classification").inputs(*sizes)


@pytest.mark.parametrize(
    ("name", "task", "words"),
    [
        ("anything", "translation", "unknown task 'translation'; choose from question-answering"),
        ("", "text-classification", "name_or_path is ''"),
        ("./nowhere", "text-classification", "./nowhere is no folder here"),
        ("/no/such/folder", "text-classification", "is no folder here, and no name on the hub"),
        ("a/b/c", "text-classification", "is no folder here"),
    ],
)
def test_names_that_are_none(name: str, task: str, words: str) -> None:
    with pytest.raises(cpu.InputError) as caught:
        load_model(name, task)
    assert words in str(caught.value)


def test_a_folder_that_holds_no_model(tmp_path: Path, folders: dict[str, Path]) -> None:
    (tmp_path / "thesis").mkdir()
    with pytest.raises(cpu.DataError, match="thesis cannot be loaded for text-classification"):
        load_model(str(tmp_path / "thesis"), "text-classification")
    with pytest.raises(cpu.DataError, match="cannot be loaded for image-classification"):
        load_model(str(folders["text-classification"]), "image-classification")


def test_the_hub_is_switched_off() -> None:
    with pytest.raises(cpu.DataError, match="owner/model cannot be loaded for text-classification"):
        load_model("owner/model", "text-classification")


FROM_HUB = """
import json
import cpuinfer_helpers as cpu
from cpuinfer_helpers.tasks.models import load_model

loaded = load_model("owner/model", "text-classification")
seen = {"origin": loaded.origin, "shape": list(loaded.inputs(2, 12)["input_ids"].shape)}
seen["weights"] = sum(parameter.double().sum().item() for parameter in loaded.model.parameters())
try:
    load_model("owner/missing", "text-classification")
except cpu.DataError as error:
    seen["missing"] = str(error)
print("SEEN", json.dumps(seen))
"""


def test_a_name_on_the_hub(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["text-classification"]
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    environment = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "http_proxy", "HTTP_PROXY"), "")
    home = {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub")}
    with Hub({"models/owner/model": files}) as server:
        seen = seen_in_child("-c", FROM_HUB, **environment, **home, HF_ENDPOINT=server.endpoint)
    model = load_model(str(folder), "text-classification").model
    assert seen["origin"] == "hub: owner/model" and seen["shape"] == [2, 12]
    assert seen["weights"] == pytest.approx(sum(p.double().sum().item() for p in model.parameters()))
    assert seen["missing"].startswith("owner/missing cannot be loaded for text-classification")
    stored = next((tmp_path / "hub").rglob("model.safetensors"))
    assert hashlib.sha256(stored.read_bytes()).hexdigest() == hashlib.sha256(files["model.safetensors"]).hexdigest()
