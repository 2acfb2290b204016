"""The sample of the sweep, and the sweep's own parts: it has to notice what it is there for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sweep import report, trial
from sweep.classes import all_cases
from sweep.sample import SAMPLE, expected
from sweep.tiny import LARGEST, shrink, tiny_config, tiny_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What came of the sample; in a process of its own, because forking needs one that has started no threads."""
    path = tmp_path_factory.mktemp("sweep") / "results.jsonl"
    command = [sys.executable, str(ROOT / "tools" / "sweep.py"), "--sample", "--output", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, cwd=ROOT)
    assert path.exists(), done.stderr[-3000:]
    return {row["name"]: row for row in map(json.loads, path.read_text().splitlines())}


@pytest.mark.parametrize("name", SAMPLE)
def test_every_architecture_is_traced_and_right_or_refused_with_its_reason(results, name):
    import transformers

    outcome, reason = expected(name, int(transformers.__version__.split(".")[0]))
    found = results[name]
    assert found["outcome"] == outcome, found
    assert reason in found.get("reason", "")
    assert found["varies"] and found["checked"] >= 2, found


def test_no_class_of_the_auto_classes_is_left_out():
    names = [case.name for case in all_cases()]
    assert len(names) == len(set(names)) > 250
    assert set(SAMPLE) <= set(names) and len(SAMPLE) == 30


class _Answers:
    """Stands for a traced model: gives the answers that it is told to give, call by call."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def __call__(self, **inputs: torch.Tensor) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return {"logits": answer}


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [
        ((torch.ones(2, 3),) * 3, None),
        ((torch.ones(2, 3) * (1 + 1e-3),), trial.WRONG),
        ((torch.ones(2, 3), torch.ones(2, 3), torch.zeros(2, 3)), trial.WRONG),
        ((torch.ones(2, 4),), trial.WRONG),
        ((torch.ones(2, 3), torch.full((2, 3), float("nan"))), trial.WRONG),
        ((torch.ones(2, 3), RuntimeError("shape '[3]' is invalid")), trial.CRASH),
    ],
    ids=["right", "wrong", "wrong on the third call", "another shape", "not a number", "crash"],
)
def test_wrong_answers_and_crashes_are_noticed(answers, outcome):
    call = trial.Call("one row", {"input_ids": torch.ones(2, 3)})
    problem = trial.differs(_Answers(*answers), call, {"logits": torch.ones(2, 3)})
    assert (problem or {}).get("outcome") == outcome


def test_only_valid_positions_count():
    valid = torch.tensor([[True, False]])
    wanted, seen = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 9.0]])
    assert trial.error_size(wanted, seen, valid) == 0.0
    assert trial.error_size(wanted, seen, None) > 1


def test_configurations_shrink_with_what_is_nested_in_them():
    small = shrink({"hidden_size": 768, "vision_config": {"model_type": "vit", "num_hidden_layers": 12}, "name": "x"})
    assert small == {"hidden_size": 32, "vision_config": {"model_type": "vit", "num_hidden_layers": 2}}


def test_a_giant_is_refused_before_it_is_allocated(monkeypatch):
    """Its weights would take 240 GB: only the meta device can hold it."""
    import transformers

    import sweep.overrides

    sizes = {"hidden_size": 65536, "intermediate_size": 4, "num_attention_heads": 4, "num_hidden_layers": 2}
    monkeypatch.setitem(sweep.overrides.OVERRIDES, "BertForQuestionAnswering", sizes)
    assert tiny_config(transformers.BertForQuestionAnswering, "bert").hidden_size == 65536
    with pytest.raises(ValueError, match="parameters even in its tiny form"):
        tiny_model(transformers.BertForQuestionAnswering, "bert")
    assert LARGEST < 65536**2


WORKER = """
import sys, time, os
sys.path[:0] = [{tests!r}, {root!r}]
from sweep import workers
from sweep.classes import Case

def fake(case, folder):
    if case.name == "slow":
        time.sleep(60)
    if case.name == "large":
        held = bytearray(900 * 2**20); held[::4096] = b"x" * len(held[::4096]); time.sleep(60)
    if case.name == "dies":
        os.kill(os.getpid(), 11)
    if case.name == "raises":
        raise RuntimeError("nobody caught this")
    return {{"outcome": "traced and right"}}

workers.trace_and_check, workers.MEGABYTES = fake, 700
cases = [Case(name, "a task", "a family") for name in ("slow", "large", "dies", "raises", "well")]
for result in workers.run_all(cases, workers=2, seconds=5):
    print(result["name"], result["outcome"], result.get("reason", ""), sep="|")
"""


def test_whatever_a_class_does_the_others_get_their_turn():
    code = WORKER.format(tests=str(ROOT / "tests"), root=str(ROOT))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    rows = dict(line.split("|", 1) for line in done.stdout.splitlines())
    assert set(rows) == {"slow", "large", "dies", "raises", "well"}, done.stderr[-2000:]
    assert "not finished after 5 s" in rows["slow"] and "more than 700 MB" in rows["large"]
    assert "signal 11" in rows["dies"] and "nobody caught this" in rows["raises"]
    assert rows["well"].startswith(trial.RIGHT)


def test_a_second_run_goes_on_and_other_code_begins_anew(tmp_path):
    path, here = tmp_path / "results.jsonl", {"torch": "1", "code": "a"}
    report.Results(path, here).add({"name": "BertModel", "outcome": trial.RIGHT})
    with path.open("a") as file:
        file.write('{"name": "half a li')
    assert set(report.Results(path, here).found) == {"BertModel"}
    assert not report.Results(path, {**here, "code": "b"}).found


def test_the_report_counts_and_names():
    rows = [
        {"name": "A", "outcome": trial.RIGHT},
        {"name": "B", "outcome": trial.RIGHT_BY_SHAPE, "how": "on 'shorter' it differs"},
        {"name": "C", "outcome": trial.REFUSED, "reason": "random answers"},
        {"name": "D", "outcome": trial.NO_EAGER, "reason": "needs natten"},
    ]
    numbers = report.summary(rows)
    assert numbers["run in eager"] == 3 and numbers["share traced and right"] == round(2 / 3, 4)
    assert numbers["share with a single trace"] == round(1 / 3, 4)
    text = report.tables(rows, {"transformers": "1", "torch": "2"})
    for cause in ("on 'shorter' it differs", "random answers", "needs natten", "66.7%", "33.3%"):
        assert cause in text
