"""Checkpoints of others: their code is not run, whoever is asked, and none is taken that lacks the model's tensors."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.tasks.checkpoints import load_config, load_tokenizer, load_weights
from cpuinfer_helpers.tasks.data_files import DATA
from cpuinfer_helpers.tasks.models import load_model
from tests.conftest import make_bert, write_tokenizer

QUESTIONS = DATA / "question-answering-heldout.json"
CLASSIFIER, AUTO = "BertForSequenceClassification", "AutoModelForSequenceClassification"
OWN_CODE = """
from pathlib import Path
Path("ran").touch()
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast
class OwnConfig(BertConfig):
    model_type = "own"
class OwnModel(BertForSequenceClassification):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
AUTO_MAP = {
    "AutoConfig": "own.OwnConfig",
    AUTO: "own.OwnModel",
    "AutoModelForQuestionAnswering": "own.OwnModel",
    "AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"],
}


def change(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sound checkpoint; whoever runs code of its folder gives himself away in the working directory."""
    monkeypatch.chdir(tmp_path)
    make_bert(CLASSIFIER).save_pretrained(tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    (tmp_path / "model" / "own.py").write_text(OWN_CODE)
    return tmp_path / "model"


@pytest.fixture
def yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody, or a script, answers every question with yes."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 100))
    monkeypatch.setattr("builtins.input", lambda *_: "y")


LOADERS: dict[str, Callable[[Path], Any]] = {
    "config": load_config,
    "tokenizer": load_tokenizer,
    "model": lambda folder: load_weights(AUTO, folder),
    "load_model": lambda folder: load_model(folder, "text-classification"),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_a_folders_own_code_does_not_run(folder: Path, yes: None, loader: str) -> None:
    change(folder / "config.json", model_type="own", auto_map=AUTO_MAP, architectures=["OwnModel"])
    change(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=AUTO_MAP)
    with pytest.raises(cpu.InputError, match="needs Python code of its own, which is never run here") as caught:
        LOADERS[loader](folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert not Path("ran").exists()


def test_only_the_tokenizer_has_code(folder: Path, yes: None) -> None:
    change(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=AUTO_MAP)
    try:
        tokenizer = load_model(folder, "text-classification").tokenizer
    except cpu.InputError as error:
        assert "needs Python code of its own" in str(error)
    else:  # transformers 5 reads tokenizer.json with a class of its own
        assert type(tokenizer).__module__.startswith("transformers.")
    assert not Path("ran").exists()


def test_where_the_library_has_the_class_its_own_is_used(folder: Path, yes: None) -> None:
    change(folder / "config.json", auto_map=AUTO_MAP)
    assert type(load_model(folder, "text-classification").model).__module__.startswith("transformers.")
    assert not Path("ran").exists()


def test_run_qa_does_not_run_it_either(folder: Path, yes: None, capsys: pytest.CaptureFixture[str]) -> None:
    from cpuinfer_helpers import run_qa

    change(folder / "config.json", model_type="own", auto_map=AUTO_MAP)
    words = [
        "--model_name_or_path",
        str(folder),
        "--validation_file",
        str(QUESTIONS),
        "--do_eval",
        "--output_dir",
        "out",
    ]
    assert run_qa.main([*words, "--no_cuda", "--report_to", "none"]) == 2
    assert "needs Python code of its own" in capsys.readouterr().err and not Path("ran").exists()


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
@pytest.mark.parametrize("inner", [False, True])
def test_an_attention_that_would_be_fetched(folder: Path, key: str, inner: bool) -> None:
    entry = {key: "owner/kernel"}
    change(folder / "config.json", **({"text_config": {"parts": [entry]}} if inner else entry))
    with pytest.raises(cpu.InputError, match="the attention 'owner/kernel', which this transformers does not have"):
        load_model(folder, "text-classification")


def without(folder: Path, *words: str) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not any(word in name for word in words)}
    assert len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def weights_of(model: torch.nn.Module, folder: Path, scratch: Path) -> None:
    model.save_pretrained(scratch)
    shutil.copy(scratch / "model.safetensors", folder / "model.safetensors")


def other_layers() -> torch.nn.Module:
    import transformers

    config = transformers.DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=32, vocab_size=99)
    return transformers.DistilBertForSequenceClassification(config)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder, _: without(folder, "classifier"), "no weights for classifier.bias, classifier.weight,"),
        (lambda folder, _: without(folder, "layer.1."), "no weights for bert.encoder.layer.1.*, .* and 13 more"),
        (lambda folder, _: without(folder, "query.bias"), "no weights for bert.encoder.layer.0.*query.bias"),
        (lambda folder, new: weights_of(make_bert("BertModel"), folder, new), "no weights for classifier.bias"),
        (lambda folder, new: weights_of(make_bert("BertForMaskedLM"), folder, new), "no weights for bert.pooler"),
        (
            lambda folder, new: weights_of(make_bert(CLASSIFIER, num_labels=5), folder, new),
            "other shapes for classifier.bias, classifier.weight",
        ),
        (lambda folder, new: weights_of(other_layers(), folder, new), "no .* checkpoint|cannot be loaded"),
    ],
)
def test_tensors_that_are_missing_or_of_other_shapes(
    folder: Path, harm: Callable[[Path, Path], None], words: str, tmp_path: Path
) -> None:
    """What is missing would be random, and the answers with it."""
    assert load_model(folder, "text-classification")
    harm(folder, tmp_path / "new")
    with pytest.raises((cpu.InputError, cpu.DataError), match=words) as caught:
        load_model(folder, "text-classification")
    assert str(folder) in str(caught.value)


def test_a_base_model_is_refused_for_every_task(tmp_path: Path) -> None:
    make_bert("BertModel").save_pretrained(tmp_path / "base")
    for task in ("question-answering", "text-classification", "token-classification"):
        with pytest.raises(cpu.InputError, match=r"is no .* checkpoint: it has no weights for"):
            load_model(tmp_path / "base", task)


def test_tensors_that_another_task_needs_do_not_matter(tmp_path: Path) -> None:
    make_bert("BertForPreTraining").save_pretrained(tmp_path / "model")
    loaded = load_weights("AutoModelForMaskedLM", tmp_path / "model")
    assert type(loaded).__name__ == "BertForMaskedLM" and not loaded.training
