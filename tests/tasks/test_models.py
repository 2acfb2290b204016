"""Models of the user's own: from a folder or a task, with their task found and inputs that they take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.tasks import task_names
from cpuinfer_helpers.tasks.loading import checkpoint_directory


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no-hub-cache"))


def save_tiny(kind: str, folder: Path) -> Path:
    """A tiny model of one of the other kinds, as ``save_pretrained`` writes it."""
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    if kind == "image-classification":
        model = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=16, patch_size=8, **sizes))
    elif kind == "audio-classification":
        convolutions = {"conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3)}
        positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer"}
        config = transformers.Wav2Vec2Config(**sizes, **convolutions, **positions)
        model = transformers.Wav2Vec2ForSequenceClassification(config)
    else:
        model = transformers.BertModel(transformers.BertConfig(vocab_size=32, **sizes))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("task", task_names())
def test_the_task_is_found_in_the_configuration(task: str) -> None:
    loaded = cpu.load_model(checkpoint_directory(task))
    assert loaded.task == task and loaded.tokenizer is not None
    inputs = loaded.inputs(2, 24)
    assert all(tensor.shape == (2, 24) and tensor.dtype == torch.int64 for tensor in inputs.values())
    with torch.no_grad():
        outputs = [output for output in loaded.model(**inputs).values() if isinstance(output, torch.Tensor)]
    assert outputs and all(torch.isfinite(output).all() for output in outputs)


@pytest.mark.parametrize("task", ["image-classification", "audio-classification"])
def test_the_task_of_images_and_audio_is_found_too(task: str, tmp_path: Path) -> None:
    loaded = cpu.load_model(str(save_tiny(task, tmp_path / "model")))
    assert loaded.task == task
    with torch.no_grad():
        assert loaded.model(**loaded.inputs(2)).logits.shape[0] == 2


def test_a_class_of_no_task_is_refused_and_so_is_a_task_that_it_has_no_head_for(tmp_path: Path) -> None:
    folder = save_tiny("none", tmp_path / "model")
    with pytest.raises(cpu.InputError, match="saved as BertModel, which tells no task; give task, one of question-ans"):
        cpu.load_model(folder)
    with pytest.raises(cpu.InputError, match=r"no weights for classifier\.bias, classifier\.weight"):
        cpu.load_model(folder, "token-classification")


def test_a_configuration_without_a_class_is_refused(tmp_path: Path) -> None:
    folder = save_tiny("none", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    del config["architectures"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(cpu.InputError, match="its configuration names no class"):
        cpu.load_model(folder)


def test_a_task_s_name_stands_for_the_model_that_is_timed_there() -> None:
    loaded = cpu.load_model("token-classification")
    assert loaded.task == "token-classification" and loaded.origin.startswith("offline: ")
    assert loaded.model.config.hidden_size == 768 and not loaded.model.training
    assert loaded.inputs(1, 16)["input_ids"].shape == (1, 16)


def test_a_task_s_name_and_another_task_contradict_each_other() -> None:
    with pytest.raises(cpu.InputError, match="leave one of the two out"):
        cpu.load_model("question-answering", "text-classification")


@pytest.mark.parametrize("name", ["", None, 3])
def test_what_is_no_name_is_refused(name) -> None:
    with pytest.raises(cpu.InputError, match=r"give a (folder, or owner and name|path)"):
        cpu.load_model(name)


@pytest.mark.parametrize("name", ["./no-such-folder", "~/no/such/folder", "a/b/c"])
def test_a_folder_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(cpu.InputError, match="is no folder here"):
        cpu.load_model(name)


def test_a_name_that_the_hub_would_know_says_that_the_hub_is_away() -> None:
    with pytest.raises(cpu.DataError, match=r"owner/name cannot be loaded: .*HF_HUB_OFFLINE is set"):
        cpu.load_model("owner/name")


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(cpu.InputError, match="unknown task 'translation'"):
        cpu.load_model("owner/name", "translation")
