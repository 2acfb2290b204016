"""What killed processes leave behind is gone at the next start, and what is in use stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import cpuinfer_helpers as cpu
from cpuinfer_helpers.machine import scratch, tied
from cpuinfer_helpers.processes.child import Child
from cpuinfer_helpers.saving.folders import new_artifact, write_text
from tests.conftest import no_temporary_folder

PACKAGE = Path(cpu.__file__).parent
# The package without its own imports, of which PyTorch's takes seconds.
LIGHT = f"""
import sys, time, types
package = types.ModuleType("cpuinfer_helpers")
package.__path__ = [{str(PACKAGE)!r}]
sys.modules["cpuinfer_helpers"] = package
from pathlib import Path
from cpuinfer_helpers.saving import folders
from cpuinfer_helpers.machine import scratch
def wait():
    print("ready", flush=True)
    time.sleep(60)
"""
KINDS = {
    "temporary folder": "with scratch.temporary_folder() as path: (path / 'model.onnx').touch(); wait()",
    "artifact": "with folders.new_artifact(sys.argv[1] + '/model', 'some kind', {}) as path: "
    "(path / 'weights').touch(); wait()",
    "file": "with scratch.unfinished_file(Path(sys.argv[1], 'comparison.json')): wait()",
}


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A place for temporary files and one for what is saved, of this test alone."""
    temporary, saved = tmp_path / "temporary", tmp_path / "saved"
    temporary.mkdir()
    saved.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return temporary, saved


def started(program: str, saved: Path) -> subprocess.Popen:
    child = subprocess.Popen([sys.executable, "-c", LIGHT + program, str(saved)], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    return child


def left(places: tuple[Path, Path]) -> list[str]:
    return sorted(path.name for place in places for path in place.iterdir())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_process_leaves_goes_at_the_next_start_and_not_before(kind, sent, places):
    child = started(KINDS[kind], places[1])
    try:
        held = left(places)
        assert held
        scratch.sweep(places[1])
        assert left(places) == held
    finally:
        child.send_signal(sent)
        child.communicate()
    assert left(places) == held
    scratch.sweep()
    assert left(places) == []


@pytest.mark.parametrize(
    "start",
    [
        lambda saved: write_text(saved / "other.json", "{}"),
        lambda saved: new_artifact(saved / "other", "some kind", {}).__enter__(),
    ],
)
def test_without_a_note_it_goes_when_something_is_saved_beside_it(start, places):
    temporary, saved = places
    child = started(KINDS["artifact"], saved)
    child.kill()
    child.communicate()
    for note in temporary.iterdir():
        note.unlink()
    (abandoned,) = saved.iterdir()
    start(saved)
    assert not abandoned.exists()


def test_nothing_of_others_is_removed(places):
    temporary, saved = places
    theirs = [
        temporary / "cpuinfer-scratch-of-mine",
        temporary / "scratch",
        saved / ".model.0123abcd.part",
        saved / ".model.cpuinfer-xyz.part",
        saved / "precious",
    ]
    for folder in theirs:
        folder.mkdir()
    # A note that names what no note may name, and a link to what is not ours.
    (temporary / "cpuinfer-unfinished-0123456789ab").write_text(str(saved / "precious"))
    (temporary / "cpuinfer-scratch-abcdefgh").symlink_to(saved / "precious")
    scratch.sweep(saved)
    assert all(folder.is_dir() for folder in theirs)


def test_a_file_system_without_locks_keeps_everything(places, monkeypatch):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(scratch.fcntl, "flock", no_locks)
    with scratch.temporary_folder() as folder:
        scratch.sweep()
        assert folder.is_dir()
    assert not folder.exists()


def test_no_usable_place_is_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(cpu.ArtifactError, match="TMPDIR"), scratch.temporary_folder():
        pass
    # What needs none goes on.
    write_text(tmp_path / "text.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["text.json"]


def test_models_are_traced_and_prepared_without_a_temporary_folder(bert, bert_inputs, tmp_path):
    with no_temporary_folder():
        traced = cpu.trace_model(bert, bert_inputs)
        traced.save(tmp_path / "traced")
        assert traced.traced and cpu.TracedModel.load(tmp_path / "traced").traced
        assert cpu.prepare("torchscript-fp32", bert, bert_inputs).prepared
        for name in ("compile-fp32", "onnxruntime-fp32"):
            if cpu.get_recipe(name).can_run:
                reasons = {cpu.prepare(name, bert, bert_inputs).reason for _ in range(2)}
                assert len(reasons) == 1 and "no temporary folder can be made" in reasons.pop()
        for call in (cpu.compare, cpu.optimize):
            with pytest.raises(cpu.ArtifactError, match="no temporary folder can be made"):
                call(bert, bert_inputs)


def test_a_program_ends_with_the_process_that_started_it(tmp_path):
    program = (
        "import subprocess, sys, time; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import tied\n"
        "subprocess.Popen(tied.command('-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'))\n"
        "time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(PACKAGE / "machine")]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while Path("/proc", str(child)).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path("/proc", str(child)).exists()


def test_a_worker_is_tied_before_anything_of_this_package_is_imported(tmp_path, monkeypatch):
    """With a parent that is gone already, it ends by itself, at once: no error about a module that is not there."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    words = tied.command("-m", "no_such_module")
    ended = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (1, "")
    monkeypatch.undo()
    child = Child("eager-fp32", tmp_path / "child", 1)
    try:
        assert child._process.args[1].endswith("machine/tied.py")
    finally:
        child.close()
