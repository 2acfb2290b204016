"""One comparison in which several child processes come to harm, and one saved trace."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

import cpuinfer_helpers as cpu
from cpuinfer_helpers.processes import candidates
from tests.faults.harm import WAIT_S, Layers, example, kill_at, recipes_in_trouble


class Outcome(NamedTuple):
    comparison: cpu.Comparison
    files: list[Path]
    processes: list[psutil.Process]


@pytest.fixture(scope="session")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A comparison in which three of six children come to harm, and what was left when it was over."""
    temporary, markers = tmp_path_factory.mktemp("temporary"), tmp_path_factory.mktemp("markers")

    def run_rounds(children: Any, call_seconds: Any, run: Any, **options: Any) -> Any:
        turns: list[str] = []

        def turn(child: Any, calls: int) -> list[float]:
            turns.append(child.recipe)
            if child.recipe == "killed-measuring-fp32" and turns.count(child.recipe) == 3:
                (markers / "now").touch()
            return run(child, calls)

        return rounds(children, call_seconds, turn, **options)

    killers = [threading.Thread(target=kill_at, args=(markers / name,)) for name in ("preparing", "measuring")]
    rounds = candidates.run_rounds
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(temporary))
        patch.setattr(candidates, "run_rounds", run_rounds)
        before = set(psutil.Process().children(recursive=True))
        for killer in killers:
            killer.start()
        comparison = cpu.compare(
            Layers().eval(),
            example(),
            recipes_in_trouble(markers),
            threads=1,
            budget_s=0.2,
            measure_roofline=False,
            timeout_s=WAIT_S,
        )
        for killer in killers:
            killer.join()
        left = [process for process in psutil.Process().children(recursive=True) if process not in before]
    return Outcome(comparison, list(temporary.iterdir()), left)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved trace of :class:`Layers`, shared: a test must not change it."""
    return cpu.trace_model(Layers().eval(), example()).save(tmp_path_factory.mktemp("trace") / "saved")
