"""A disk that is full: what was saved before stays whole, nothing half-written is left, and the message helps."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import cpuinfer_helpers as cpu
from cpuinfer_helpers import run_qa
from cpuinfer_helpers.processes.session import Session
from cpuinfer_helpers.tasks.data_files import DATA
from tests.conftest import seen_in_child
from tests.faults.harm import Layers, example, largest_file

# In a process of its own, because TorchScript ends the process if it meets the full disk itself.
SAVE = """
import errno, json, sys
from pathlib import Path
import torch
import cpuinfer_helpers as cpu
from tests.faults.harm import Layers, example, largest_file

how, folder = sys.argv[1], Path(sys.argv[2])
old = cpu.trace_model(Layers().eval(), example())
old.save(folder / "model")
module = folder / "model" / "model.torchscript.pt"
size = module.stat().st_size

def outcome(model):
    try:
        model.save(folder / "model")
    except cpu.ArtifactError as error:
        told = str(error)
    else:
        told = "saved"
    loaded = cpu.TracedModel.load(folder / "model")
    same = torch.equal(loaded(**example())["logits"], old(**example())["logits"])
    return {"told": told, "files": [path.name for path in folder.iterdir()], "same": same}

seen = []
if how == "limit":
    new = cpu.trace_model(Layers(seed=1).eval(), example())
    for limit in (0, 100, size // 2, size - 1):
        with largest_file(limit):
            seen.append(outcome(new))
else:
    large = torch.nn.Sequential(torch.nn.Linear(16, 4000), torch.nn.Linear(4000, 64)).eval()
    seen.append(outcome(cpu.trace_model(large, {"input": torch.ones(1, 16)})))
print("SEEN", json.dumps(seen))
"""
MOUNTED = 'mount -t tmpfs -o size=400k none "$3" && exec "$0" -c "$1" "$2" "$3"'


def check_saving(seen: list[dict], folder: Path, reason: str) -> None:
    for outcome in seen:
        assert outcome["told"].startswith(f"{folder / 'model'} cannot be written: ") and reason in outcome["told"]
        assert "make room there or give another folder" in outcome["told"]
        assert outcome["files"] == ["model"] and outcome["same"]


def test_a_trace_does_not_fit(tmp_path):
    seen = seen_in_child("-c", SAVE, "limit", str(tmp_path))
    assert len(seen) == 4
    check_saving(seen, tmp_path, "File too large")


def may_mount() -> bool:
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    command = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs none /tmp"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not may_mount(), reason="mounting a small file system is not allowed here")
def test_a_trace_does_not_fit_on_a_small_file_system(tmp_path, monkeypatch):
    folder = tmp_path / "disk"
    folder.mkdir()
    monkeypatch.setattr(sys, "executable", "unshare")
    words = ("-rm", "sh", "-c", MOUNTED, seen_python(), SAVE, "mount", str(folder))
    check_saving(seen_in_child(*words), folder, "No space left on device")


def seen_python() -> str:
    return str(Path(sys.prefix) / "bin" / "python")


def test_a_comparison_does_not_fit(outcome, tmp_path):
    path = tmp_path / "results" / "here.json"
    outcome.comparison.save(path)
    before = path.read_bytes()
    for limit in (0, 100, len(before) - 1):
        with largest_file(limit), pytest.raises(cpu.ArtifactError) as caught:
            outcome.comparison.save(path)
        assert str(path) in str(caught.value) and "make room there" in str(caught.value)
        assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    outcome.comparison.save(path)


def test_the_models_parcel_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with largest_file(2000), pytest.raises(cpu.ArtifactError) as caught:
        cpu.compare(Layers().eval(), example(), ["torchscript-fp32"], threads=1)
    told = str(caught.value)
    assert str(tmp_path) in told and "make room there or set TMPDIR" in told and "too large" in told
    assert list(tmp_path.iterdir()) == []


def test_there_is_no_temporary_folder_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(cpu.ArtifactError, match=r"gone.*make room or set TMPDIR"):
        cpu.compare(Layers().eval(), example(), ["torchscript-fp32"], threads=1)


def test_a_recipe_that_does_not_fit_costs_its_own_row(tmp_path, monkeypatch):
    """The model's parcel found room; then something else filled the disk."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    start = Session.start

    def start_without_room(self, recipe):
        with largest_file(0 if recipe.name == "large-fp32" else 2**30):
            return start(self, recipe)

    monkeypatch.setattr(Session, "start", start_without_room)
    recipes = [cpu.Recipe("large-fp32", "for a test", lambda request: None)]
    found = cpu.compare(Layers().eval(), example(), recipes, threads=1, budget_s=0.2, measure_roofline=False)
    status = str(found["large-fp32"].status)
    assert status.startswith("crashed: its process cannot be started: ") and "make room" in status
    assert found.reference.successful
    assert list(tmp_path.iterdir()) == []


def test_results_of_an_evaluation_do_not_fit(tmp_path, new_accelerate_state, monkeypatch, capsys):
    words = ["--model_name_or_path", str(DATA / "checkpoints" / "question-answering"), "--do_eval", "--no_cuda"]
    words += ["--validation_file", str(DATA / "question-answering-heldout.json"), "--max_eval_samples", "2"]
    words += ["--output_dir", str(tmp_path), "--report_to", "none", "--disable_tqdm", "true", "--doc_stride", "64"]
    assert run_qa.main(words) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_text = run_qa.write_text

    def write_on_a_full_disk(path, text):
        with largest_file(600):
            write_text(path, text)

    monkeypatch.setattr(run_qa, "write_text", write_on_a_full_disk)
    capsys.readouterr()
    assert run_qa.main(words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("run_qa: ")]
    assert str(tmp_path / "eval_nbest_predictions.json") in line
    assert "make room there or give another --output_dir" in line
    # Minutes of computing are not lost with the files.
    assert "f1 " in line and "exact_match " in line
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert after["eval_nbest_predictions.json"] == before["eval_nbest_predictions.json"]
    for content in after.values():
        json.loads(content)
