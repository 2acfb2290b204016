"""A function that is run once in a process of its own: its answer, and each way in which there is none."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import cpuinfer_helpers as cpu
from cpuinfer_helpers.processes.asking import Answer
from cpuinfer_helpers.processes.once import run_once

LENGTHS = "cpuinfer_helpers.compare.mixed:realistic_lengths"


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(psutil.Process().children(recursive=True))
    yield
    assert not set(psutil.Process().children(recursive=True)) - before
    assert not list(tmp_path.iterdir())


def run(question: str, arguments: dict[str, Any], timeout_s: float = 90.0) -> Answer:
    return run_once(question, arguments, name="a trial", timeout_s=timeout_s)


def test_the_answer_is_what_the_function_returns_as_json_has_it() -> None:
    answer = run(LENGTHS, {"count": 4, "longest": 384})
    assert answer.status.successful
    assert answer.value == list(cpu.realistic_lengths(4))


def test_it_finds_the_modules_that_this_process_finds(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path_factory.mktemp("modules"))
    monkeypatch.syspath_prepend(folder)
    assert folder in run("cpuinfer_helpers.processes.child:import_path", {}).value


@pytest.mark.parametrize(
    ("question", "arguments", "status"),
    [
        (LENGTHS, {"count": 0}, "crashed: InputError: realistic_lengths: count 0 must be at least 1"),
        # Nobody's process has this parent, so it ends at once.
        ("cpuinfer_helpers.machine.tied:end_with", {"parent": -1}, "crashed: exit code 1"),
        ("cpuinfer_helpers.machine.paths:given_path", {"path": "x"}, "crashed: TypeError: Object of type PosixPath"),
        (LENGTHS, {"surprise": 1}, "crashed: TypeError: "),
        ("os:getpid", {}, "crashed: InputError: 'os:getpid' cannot be asked"),
    ],
)
def test_what_goes_wrong_is_its_status_and_a_warning(
    question: str, arguments: dict[str, Any], status: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "cpuinfer_helpers"):
        answer = run(question, arguments)
    assert str(answer.status).startswith(status) and answer.value is None
    assert [record.getMessage() for record in caplog.records] == [f"a trial: {answer.status}"]


def test_a_function_that_takes_too_long_is_ended() -> None:
    answer = run(LENGTHS, {"count": 4}, timeout_s=0.1)
    assert str(answer.status) == "timed out: realistic lengths took more than 0.1 s"


def test_where_there_is_no_place_for_its_files_that_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(cpu.ArtifactError, match="no temporary folder can be made"):
        run(LENGTHS, {"count": 4})
