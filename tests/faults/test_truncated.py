"""Files that end too early, at every tenth of their length: refused by name, never a wrong answer."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

import cpuinfer_helpers as cpu
from cpuinfer_helpers.tasks import hub, loading, task_names
from cpuinfer_helpers.tasks.data_files import DATA
from cpuinfer_helpers.tasks.kinds.registry import get_kind
from tests.conftest import make_bert, write_tokenizer

TENTHS = range(10)


def cut(path: Path, tenths: int) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * tenths // 10])


@pytest.mark.parametrize("name", ["manifest.json", "model.torchscript.pt", "probe.safetensors"])
def test_a_saved_trace(saved, tmp_path, name):
    for tenths in TENTHS:
        folder = tmp_path / str(tenths)
        shutil.copytree(saved, folder)
        cut(folder / name, tenths)
        for verify in (True, False):
            with pytest.raises(cpu.ArtifactError) as caught:
                cpu.TracedModel.load(folder, verify=verify)
            assert str(folder / name) in str(caught.value)
            assert ("its sha256 differs" in str(caught.value)) == (name != "manifest.json")


def test_a_saved_comparison(outcome, tmp_path):
    path = tmp_path / "here.json"
    for tenths in TENTHS:
        outcome.comparison.save(path)
        cut(path, tenths)
        with pytest.raises(cpu.ArtifactError) as caught:
            cpu.Comparison.load(path)
        assert str(path) in str(caught.value)


CHECKPOINT_FILES = sorted(path.name for path in (DATA / "checkpoints" / "text-classification").iterdir())


def test_a_shipped_checkpoint(tmp_path):
    shipped = tmp_path / "shipped"
    shutil.copytree(DATA / "checkpoints", shipped)
    sums = shipped / "scores.json"
    for path in [sums, *(shipped / "text-classification" / name for name in CHECKPOINT_FILES)]:
        whole = path.read_bytes()
        for tenths in TENTHS:
            cut(path, tenths)
            with pytest.raises(cpu.ArtifactError, match="install cpuinfer-helpers again") as caught:
                loading.checkpoint_directory("text-classification", shipped)
            assert str(path) in str(caught.value)
        path.write_bytes(whole)
    assert loading.checkpoint_directory("text-classification", shipped).parent == shipped


@pytest.mark.parametrize("name", task_names())
def test_the_shipped_data(tmp_path, name):
    read = get_kind(name).data.read
    path = tmp_path / f"{name}-heldout.json"
    for tenths in TENTHS:
        shutil.copy(DATA / path.name, path)
        assert read(path)
        cut(path, tenths)
        with pytest.raises(cpu.DataError, match=r"heldout\.json is not valid JSON"):
            read(path)


@pytest.fixture
def in_the_hubs_cache(tmp_path, monkeypatch) -> Path:
    """A model as the hub's cache holds it; the hub itself is switched off."""
    from huggingface_hub import constants

    repository = get_kind("question-answering").data.source.model
    stored = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
    folder = stored / "snapshots" / ("0" * 40)
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text("0" * 40)
    make_bert(vocab_size=200, max_position_embeddings=512).save_pretrained(folder)
    write_tokenizer(folder)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_model_in_the_hubs_cache(in_the_hubs_cache, monkeypatch, caplog, name):
    """Offline it cannot be fetched again, so the task comes from the package, and says why."""
    answers = {"text": ["Paris"], "answer_start": [0]}
    row = {"id": "1", "context": "Paris.", "question": "Where?", "answers": answers}
    monkeypatch.setattr(hub, "fetch_rows", lambda *arguments: [row])
    # BERT-base, which an offline task has for timing, takes a second to make and plays no part here.
    monkeypatch.setattr(loading, "_to_time", lambda *arguments: None)
    monkeypatch.setattr(loading, "Task", lambda *parts: parts)
    assert loading.load_task("question-answering")[-1].startswith("hub: ")
    path = in_the_hubs_cache / name
    whole = path.read_bytes()
    for tenths in TENTHS:
        cut(path, tenths)
        with caplog.at_level(logging.WARNING, logger="cpuinfer_helpers"):
            caplog.clear()
            origin = loading.load_task("question-answering")[-1]
        assert origin.startswith("offline: "), tenths
        assert "the cached copy cannot be used" in origin and "going offline" in caplog.text
        path.write_bytes(whole)
