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

import cpuinfer_helpers as cpu
from sweep import report, trial
from sweep.calls import Call, calls
from sweep.classes import TASKS, Case, all_cases
from sweep.comparing import error_size
from sweep.examples import Examples, Padding
from sweep.sample import SAMPLE, expected
from sweep.subject import Subject
from sweep.tiny import LARGEST, shrink, tiny_config, tiny_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """What came of the sample; in a process of its own, because forking needs one that has started no threads."""
    path = tmp_path_factory.mktemp("sweep") / "results.jsonl"
    command = [sys.executable, str(ROOT / "tools" / "sweep.py"), "--sample", "--output", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, cwd=ROOT)
    assert path.exists(), done.stderr[-3000:]
    return {(row["name"], row["recipe"]): row for row in map(json.loads, path.read_text().splitlines())}


@pytest.mark.parametrize(("name", "recipe"), [(name, recipe) for name, of in SAMPLE.items() for recipe in of])
def test_every_architecture_is_prepared_and_right_or_refused_with_its_reason(results, name, recipe):
    import transformers

    outcome, reason = expected(name, recipe, int(transformers.__version__.split(".")[0]))
    found = results[name, recipe]
    assert found["outcome"] == outcome, found
    assert reason in found.get("reason", "")
    assert found["varies"] and not found["random"] and found["checked"] >= 3, found


def test_no_class_of_the_auto_classes_is_left_out():
    cases = all_cases()
    assert len(set(cases)) == len(cases) > 800 and {case.task for case in cases} == set(TASKS)
    names = [case.name for case in cases]
    assert set(SAMPLE) <= set(names) and all(names.count(name) == 1 for name in SAMPLE)


def test_a_class_is_tried_again_only_where_another_task_gives_it_other_inputs():
    tasks = [case.task for case in all_cases() if case.name == "BartForConditionalGeneration"]
    assert tasks == ["masked language modelling", "sequence to sequence"]


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
        ((torch.ones(2, 3), RuntimeError("shape '[3]' is invalid")), trial.FOREIGN),
        ((cpu.InputError("3 x 5 is another size"),), trial.REFUSED),
        ((torch.ones(2, 3), cpu.InputError("answered before")), trial.FOREIGN),
    ],
    ids=["right", "wrong", "third call", "another shape", "not a number", "foreign", "refused", "refused too late"],
)
def test_wrong_answers_and_foreign_errors_are_noticed(answers, outcome):
    call = Call("one row", {"input_ids": torch.ones(2, 3)})
    problem = trial.differs(_Answers(*answers), call, {"logits": torch.ones(2, 3)})
    assert (problem or {}).get("outcome") == outcome


def test_only_valid_positions_count():
    valid = torch.tensor([[True, False]])
    wanted, seen = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 9.0]])
    assert error_size(wanted, seen, valid) == 0.0
    assert error_size(wanted, seen, None) > 1


@pytest.mark.parametrize("constant", [-1e4, -1e9, torch.finfo(torch.float32).min, float("-inf")])
def test_large_constants_hide_no_error_and_must_be_equal(constant):
    wanted = torch.tensor([[1.0, constant, 0.5], [constant, 2.0, constant]])
    assert error_size(wanted, wanted + 1e-6 * (wanted.abs() < 10)) < 1
    assert error_size(wanted, wanted + 1e-2 * (wanted.abs() < 10)) > 1
    assert error_size(wanted, torch.where(wanted == constant, -3e8, wanted)) == float("inf")


def test_large_answers_that_happen_to_be_equal_are_no_constants():
    wanted = 1000 + torch.arange(400.0).view(20, 20)
    wanted[3, 3] = wanted[9, 9]
    assert error_size(wanted, wanted * (1 + 1e-6)) < 1
    assert error_size(wanted, wanted * (1 + 1e-3)) > 1


def test_a_large_column_or_outlier_hides_no_error_in_the_others():
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randn(50, 4, generator=generator) * torch.tensor([1e6, 1.0, 1.0, 1.0])
    wanted[7, 1] = 3e5
    error = torch.zeros_like(wanted)
    error[:, 1] = 1e-2
    assert error_size(wanted, wanted + error) > 1
    error[:, 1] = 1e-5
    assert error_size(wanted, wanted + error) < 1
    assert error_size(wanted, wanted * (1 + 1e-6)) < 1


class _Router(torch.nn.Module):
    """Answers turn over where two sums that are equal but for rounding change places."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": torch.where(self.weight[0] > self.weight[1] - 1e-9, x, -x)}


@pytest.mark.parametrize(("error", "outcome"), [(-1.0, None), (9.0, trial.WRONG)], ids=["turned over", "wrong"])
def test_what_rounding_turns_over_is_no_error(error, outcome):
    """Of copies whose weights differ in the last bits, some answer with the other sign; none is nine times as large."""
    x = torch.full((2, 3), 2.0)
    subject = Subject(_Router(), {"x": x}, (), varies=True, random=False)
    problem = trial.differs(_Answers(*[error * x] * 3), Call("one row", {"x": x}), {"logits": x}, subject)
    assert (problem or {}).get("outcome") == outcome
    assert bool(subject.by_rounding) == (outcome is None)


def _examples(name: str, family: str, task: str) -> Examples:
    case = Case(name, task, family)
    return Examples(tiny_model(case.model_class(), family), task)


def test_lengths_of_encoder_and_decoder_vary_apart_and_together():
    examples = _examples("T5ForConditionalGeneration", "t5", "sequence to sequence")
    sizes = {(call.inputs["input_ids"].shape[1], call.inputs["decoder_input_ids"].shape[1]) for call in calls(examples)}
    lengths, decoder_lengths = zip(*sizes, strict=True)
    own = examples.size
    assert own in sizes and (own[0], 1) in sizes and (19, 19) in sizes
    assert sum(length == own[0] for length in lengths) > 3 and sum(length == own[1] for length in decoder_lengths) > 2


def test_choices_and_length_vary_apart_and_together():
    examples = _examples("BertForMultipleChoice", "bert", "multiple choice")
    sizes = {tuple(call.inputs["input_ids"].shape[1:]) for call in calls(examples)}
    assert {(3, 24), (5, 24), (3, 41), (5, 5)} <= sizes


def test_padding_of_choices_is_of_each_choice():
    examples = _examples("BertForMultipleChoice", "bert", "multiple choice")
    inputs = examples.make(2, (2, 10), Padding((0.5, 1.0), junk=3))
    assert inputs["attention_mask"].sum(-1).tolist() == [[5, 10], [5, 10]]
    assert inputs["input_ids"][0, 0, 5:].min() > 0


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

def misbehave(name):
    if name == "slow":
        time.sleep(60)
    if name == "large":
        held = bytearray(900 * 2**20); held[::4096] = b"x" * len(held[::4096]); time.sleep(60)
    if name == "dies":
        os.kill(os.getpid(), 11)
    if name == "raises":
        raise RuntimeError("nobody caught this")

class Subject:
    @staticmethod
    def of(case):
        misbehave(case.family)
        return case

def fake(case, recipe, folder):
    if recipe == "trace":
        misbehave(case.name)
    return {{"outcome": "right"}}

workers.Subject, workers.prepare_and_check, workers.MEGABYTES = Subject, fake, 700
cases = [Case(name, "a task", "a family") for name in ("slow", "large", "dies", "raises", "well")]
cases += [Case(f"{{name}} in eager", "a task", name) for name in ("slow", "dies", "raises")]
for result in workers.run_all([(case, ("trace", "other")) for case in cases], workers=3, seconds=5):
    print(f"{{result['name']}}, {{result['recipe']}}", result["outcome"], result.get("reason", ""), sep="|")
"""


def test_whatever_a_class_does_the_others_get_their_turn():
    code = WORKER.format(tests=str(ROOT / "tests"), root=str(ROOT))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    rows = dict(line.split("|", 1) for line in done.stdout.splitlines())
    assert len(rows) == 16, done.stderr[-2000:]
    assert "not finished after 5 s" in rows["slow, trace"] and "more than 700 MB" in rows["large, trace"]
    assert "signal 11" in rows["dies, trace"] and "nobody caught this" in rows["raises, trace"]
    assert all(rows[f"{name}, other"].startswith(trial.RIGHT) for name in ("slow", "large", "dies", "raises", "well"))
    assert rows["well, trace"].startswith(trial.RIGHT)
    for recipe in ("trace", "other"):
        assert "not finished after 5 s" in rows[f"slow in eager, {recipe}"]
        assert "signal 11" in rows[f"dies in eager, {recipe}"]
        assert rows[f"raises in eager, {recipe}"] == f"{trial.NO_EAGER}|RuntimeError: nobody caught this"


def _row(name: str, recipe: str, outcome: str, **further: str) -> dict[str, Any]:
    return {"name": name, "task": "embeddings", "recipe": recipe, "outcome": outcome, **further}


def test_a_second_run_goes_on_and_other_code_begins_anew(tmp_path):
    path, here = tmp_path / "results.jsonl", {"torch": "1", "code": "a"}
    report.Results(path, here).add(_row("BertModel", trial.TRACE, trial.RIGHT))
    with path.open("a") as file:
        file.write('{"name": "half a li')
    assert set(report.Results(path, here).found) == {("BertModel", "embeddings", trial.TRACE)}
    assert not report.Results(path, {**here, "code": "b"}).found


def test_the_report_counts_and_names():
    rows = [
        _row("A", trial.TRACE, trial.RIGHT),
        _row("B", trial.TRACE, trial.RIGHT_BY_SHAPE, how="on 'shorter' it differs"),
        _row("C", trial.TRACE, trial.REFUSED, reason="random answers"),
        _row("D", trial.TRACE, trial.NO_EAGER, reason="needs natten"),
        _row("A", "openvino-fp32", trial.OWN_SIZE, reason="24 tokens only"),
    ]
    numbers = report.summary(rows)
    traced, converted = numbers[trial.TRACE], numbers["openvino-fp32"]
    assert traced["run in eager"] == 3 and traced["share prepared"] == round(2 / 3, 4)
    assert traced["share with a single trace"] == round(1 / 3, 4)
    assert (converted["share prepared"], converted["share right at every size"]) == (1.0, 0.0)
    assert traced["tasks"]["embeddings"]["outcomes"][trial.REFUSED] == 1
    text = report.tables(rows, {"transformers": "1", "torch": "2"})
    for cause in ("on 'shorter' it differs", "random answers", "needs natten", "66.7%", "33.3%", "24 tokens only"):
        assert cause in text
