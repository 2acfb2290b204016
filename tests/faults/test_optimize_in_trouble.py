"""Harm in the middle of optimize(): it costs the row of its recipe, and an interrupt leaves nothing behind."""

from __future__ import annotations

import resource
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.optimize import choices, search
from cpuinfer_helpers.processes import candidates
from cpuinfer_helpers.recipes import Build
from tests.faults.harm import MIB, kill_at, recipe, sleep_after_writing, wait_for
from tests.faults.test_interrupts import interrupt
from tests.faults.test_two_at_once import in_two_processes
from tests.optimize.repeating import FEWER, TIMES, make_inputs, make_model

# It ends long before: nothing that is waited for here depends on how fast the machine is.
BUDGET_S = 300.0


def quick(request: Any, before: Callable[[dict[str, torch.Tensor]], None] = lambda tensors: None) -> Build:
    """The answers of :class:`Repeating` in a small part of its time."""
    linear = request.model.linear

    def answer(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        before(tensors)
        for _ in range(FEWER):
            logits = linear(tensors["values"])
        return {"logits": logits}

    return Build(answer, runs="the layer alone")


def too_large(request: Any) -> Build:
    limit = psutil.Process().memory_info().vms + 512 * MIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return Build(lambda tensors: {"logits": torch.ones(2**30)}, runs="more than there is")


def waiting(stage: str, folder: Path) -> cpu.Recipe:
    """A recipe whose process waits in this stage until something ends it."""

    def before(tensors: dict[str, torch.Tensor]) -> None:
        other_batch = len(tensors["values"]) != len(make_inputs()["values"])
        if (stage == "verifying" and other_batch) or (stage == "measuring" and (folder / "now").exists()):
            sleep_after_writing(folder / stage)

    def build(request: Any) -> Build:
        if stage == "preparing":
            sleep_after_writing(folder / stage)
        return quick(request, before)

    return recipe(f"{stage}-fp32", build)


@pytest.fixture(scope="module")
def patch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pytest.MonkeyPatch]:
    """Temporary folders and what is remembered lie where one can look."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("optimize")
        (root / "temporary").mkdir()
        patch.setattr(tempfile, "tempdir", str(root / "temporary"))
        patch.setenv("CPUINFER_CACHE", str(root / "cache"))
        # A tenth of a second for each: what is thirty times faster is seen in that.
        patch.setattr(search, "_MEASURING_SHARE", 0.1 / BUDGET_S)
        yield patch


def at_the_first_round(patch: pytest.MonkeyPatch, do: Callable[[], Any]) -> None:
    rounds = candidates.run_rounds

    def run_rounds(*arguments: Any, **options: Any) -> Any:
        do()
        return rounds(*arguments, **options)

    patch.setattr(candidates, "run_rounds", run_rounds)


class Outcome(NamedTuple):
    optimized: cpu.OptimizedModel
    left: list[psutil.Process]
    files: list[Path]


def optimize(recipes: list[cpu.Recipe]) -> Outcome:
    before = set(psutil.Process().children(recursive=True))
    optimized = cpu.optimize(make_model(), make_inputs(), recipes=recipes, budget_s=BUDGET_S)
    return Outcome(optimized, *left_behind(before))


def left_behind(before: set[psutil.Process]) -> tuple[list[psutil.Process], list[Path]]:
    now = set(psutil.Process().children(recursive=True))
    return [process for process in now - before], list(Path(tempfile.gettempdir()).iterdir())


@pytest.fixture(scope="module")
def outcome(patch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Of four recipes three come to harm, each at another stage."""
    folder = tmp_path_factory.mktemp("markers")
    killers = [threading.Thread(target=kill_at, args=(folder / stage,)) for stage in ("verifying", "measuring")]
    for killer in killers:
        killer.start()
    with pytest.MonkeyPatch.context() as own:
        at_the_first_round(own, (folder / "now").touch)
        recipes = [recipe("too-large-fp32", too_large), waiting("verifying", folder), waiting("measuring", folder)]
        found = optimize([*recipes, recipe("quick-fp32", quick)])
    for killer in killers:
        killer.join()
    return found


@pytest.mark.parametrize("stage", ["verifying", "measuring"])
def test_a_killed_child_costs_its_own_row(outcome: Outcome, stage: str) -> None:
    row = outcome.optimized.comparison[f"{stage}-fp32"]
    assert "ended by SIGKILL" in row.status.reason and row.timing is None and row.speedup is None
    # What was seen before stays.
    assert (row.receipt is not None) == (stage == "measuring")


def test_a_child_without_memory_costs_its_own_row(outcome: Outcome) -> None:
    assert outcome.optimized.comparison["too-large-fp32"].status.kind == "out of memory"


def test_the_rest_goes_on(outcome: Outcome) -> None:
    optimized = outcome.optimized
    assert optimized.recipe == "quick-fp32" and optimized.result.successful and optimized.receipt.verified
    assert optimized.comparison.reference.timing.calls >= 6
    assert TIMES > FEWER and optimized.result.speedup.low > 1
    assert "ended by SIGKILL" in str(optimized)


def test_no_process_and_no_file_is_left(outcome: Outcome) -> None:
    assert outcome.left == [] and outcome.files == []


def test_a_reference_that_is_killed_leaves_the_eager_model(
    patch: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be compared with it then, so nothing is tried, nothing is chosen and nothing is remembered."""
    prepare = candidates.Bench.prepare

    def killed(self: Any, recipe: Any, child: Any, *arguments: Any, **options: Any) -> Any:
        psutil.Process(child.process_id).kill()
        return prepare(self, recipe, child, *arguments, **options)

    monkeypatch.setattr(candidates.Bench, "prepare", killed)
    found = optimize(["torchscript-fp32"])
    rows = found.optimized.comparison.rows
    assert found.optimized.recipe == "eager-fp32" and "could not be measured" in found.optimized.reason
    assert "ended by SIGKILL" in rows["eager-fp32"].status.reason
    assert str(rows["torchscript-fp32"].status).startswith("not tried: the reference was not measured")
    with torch.no_grad():
        assert torch.equal(found.optimized(**make_inputs())["logits"], make_model()(**make_inputs())["logits"])
    assert found.left == [] and found.files == [] and not remembered()


def remembered() -> list[Path]:
    from cpuinfer_helpers.machine.cache import cache_directory

    return list(cache_directory().rglob("*.json"))


@pytest.mark.apart
@pytest.mark.parametrize("stage", ["preparing", "verifying", "measuring"])
def test_an_interrupt(patch: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stage: str) -> None:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)

    def press() -> None:
        wait_for(tmp_path / stage)
        interrupt()

    at_the_first_round(monkeypatch, (tmp_path / "now").touch)
    # Recipes of one's own are never remembered; whether this one would be is to be seen as well.
    monkeypatch.setattr(choices, "list_recipes", lambda: [*cpu.list_recipes(), slow])
    slow = waiting(stage, tmp_path)
    before = set(psutil.Process().children(recursive=True))
    finger = threading.Thread(target=press)
    finger.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            cpu.optimize(make_model(), make_inputs(), recipes=[slow], budget_s=BUDGET_S)
    finally:
        finger.join()
        signal.signal(signal.SIGINT, handler)
    assert not psutil.pid_exists(int((tmp_path / stage).read_text()))
    assert left_behind(before) == ([], []) and not remembered()


@pytest.mark.apart
def test_two_processes_optimize_the_same_model(patch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each ends well, one choice is kept, and the next call uses it."""

    def optimize_here(name: str) -> None:
        torch.set_num_threads(1)
        optimized = cpu.optimize(make_model(), make_inputs(), recipes=[], budget_s=BUDGET_S)
        (tmp_path / name).write_text(f"{optimized.recipe} {optimized.remembered}")

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        in_two_processes(optimize_here)
        assert {(tmp_path / name).read_text() for name in ("one", "two")} == {"eager-fp32 False"}
        assert len(remembered()) == 1
        again = cpu.optimize(make_model(), make_inputs(), recipes=[], budget_s=BUDGET_S)
    finally:
        torch.set_num_threads(threads)
        for path in remembered():
            path.unlink()
    assert again.remembered and list(Path(tempfile.gettempdir()).iterdir()) == []
