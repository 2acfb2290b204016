"""The command line, and the second table: the task's metric for each recipe."""

from __future__ import annotations

import pytest

import cpuinfer_helpers as cpu
from cpuinfer_helpers.__main__ import main
from cpuinfer_helpers.commands import compare
from cpuinfer_helpers.compare import RecipeScores
from cpuinfer_helpers.tasks import Task


@pytest.fixture(scope="module")
def task() -> Task:
    return cpu.load_task("text-classification")


@pytest.fixture(scope="module")
def scores(task) -> RecipeScores:
    def refuse(request):
        raise ValueError("not this model")

    recipes = ["eager-bf16", cpu.Recipe("refusing-int8", "for a test", refuse)]
    recipes.append(cpu.Recipe("absent-int8", "for a test", refuse, needs=("no-such-distribution",)))
    return cpu.score_recipes(task, recipes, limit=12, pad_to=48, threads=1)


@pytest.mark.cpu
def test_each_recipe_is_scored_on_the_tasks_own_data(scores, task):
    reference = scores.rows["eager-fp32"].score
    here = task.evaluate(limit=12, pad_to=48)
    assert reference.predictions == here.predictions
    assert reference.metrics == here.metrics
    assert scores.rows["eager-bf16"].score.examples == 12
    assert scores.rows["eager-fp32"].agreement == 100.0
    assert 0 <= scores.rows["eager-bf16"].agreement <= 100


@pytest.mark.cpu
def test_what_cannot_be_scored_has_a_row_that_says_why(scores):
    # Without instructions for INT8 that is said behind it.
    assert str(scores.rows["refusing-int8"].status).startswith("fell back: refusing fails: ValueError: not this model")
    assert str(scores.rows["absent-int8"].status).startswith("lacks: no-such-distribution")
    table = scores.table()
    assert len(table.rows) == 4 and "accuracy" in table.columns
    assert scores.rows["refusing-int8"].score is None


def test_predictions_of_token_classification_arrive_as_they_were():
    task = cpu.load_task("token-classification")
    scores = cpu.score_recipes(task, ["eager-fp32"], limit=3, pad_to=48, threads=1)
    assert scores.rows["eager-fp32"].score.predictions == task.evaluate(limit=3, pad_to=48).predictions


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipes", "no-such"], "there is no recipe 'no-such'"),
        (["--recipes", ","], "names none"),
        (["--batch", "0"], "batch_size 0"),
        (["--threads", "0"], "threads is 0"),
        (["--threads", "1000000000"], "threads is 1000000000; give a whole number of at least 1, and at most"),
        (["--threads", "-2"], "threads is -2"),
        (["--budget", "-3"], "budget_s is -3"),
        (["--price-per-hour", "-1"], "price_per_hour is -1"),
    ],
)
def test_bad_input_ends_with_code_two_and_one_line(words, message, capsys, monkeypatch, task):
    monkeypatch.setattr(compare, "load_task", lambda name: task)
    assert main(["compare", "--task", "text-classification", *words]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    (line,) = written.err.strip().splitlines()
    assert line.startswith("compare: ") and message in line


def test_an_unknown_task_ends_with_code_two(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "--task", "cooking"])
    assert stopped.value.code == 2
    assert "question-answering" in capsys.readouterr().err


def test_the_command_prints_both_tables_and_saves(capsys, tmp_path, monkeypatch, task):
    """With the small trained model in the place of BERT-base, to be quick; all else is as a user has it."""
    from dataclasses import replace

    monkeypatch.setattr(compare, "load_task", lambda name: replace(task, model=task.trained_model))
    path = tmp_path / "here.json"
    words = ["--recipes", "torchscript-fp32", "--length", "32", "--batch", "2", "--threads", "1", "--budget", "0.3"]
    words += ["--price-per-hour", "0.5", "--save", str(path), "--fast"]
    assert main(["compare", "--task", "text-classification", *words]) == 0
    printed = capsys.readouterr().out
    assert "torchscript-fp32  successful" in printed and "per million" in printed and "accuracy" in printed
    assert task.origin in printed
    saved = cpu.Comparison.load(path)
    assert list(saved.rows) == ["eager-fp32", "torchscript-fp32"]
    assert saved.price_per_hour == 0.5 and saved.threads == 1
    # 2 rows that are measured, and 8 further ones on which labels are compared.
    assert saved.reference.labels == 10
