"""SQuAD 2.0's scores, by hand."""

from __future__ import annotations

import pytest

from cpuinfer_helpers.tasks.squad.data import Question
from cpuinfer_helpers.tasks.squad.scores import score_squad_v2


def question(name, *answers):
    return Question(name, "?", "the red house and the river", answers, (0,) * len(answers))


QUESTIONS = [question("a", "red house"), question("b"), question("c", "river", "the river"), question("d")]


def test_each_group_has_its_scores():
    scores = score_squad_v2(QUESTIONS, {"a": "the red door", "b": "", "c": "The River!", "d": "river"})
    # a: one of two tokens on either side; b: rightly none; c: the same after normalisation; d: should be none.
    assert scores["exact"] == pytest.approx(50) and scores["f1"] == pytest.approx(100 * (0.5 + 1 + 1 + 0) / 4)
    assert scores["HasAns_exact"] == pytest.approx(50) and scores["HasAns_f1"] == pytest.approx(75)
    assert scores["NoAns_exact"] == scores["NoAns_f1"] == pytest.approx(50)
    assert (scores["total"], scores["HasAns_total"], scores["NoAns_total"]) == (4, 2, 2)


def test_best_scores_are_those_of_the_first_answers_only():
    # Nothing given: 2 of 4. Then a: +0.5, b: as it is, c: +1, d: -1.
    scores = score_squad_v2(QUESTIONS, {"a": "the red door", "b": "", "c": "The River!", "d": "river"})
    assert scores["best_f1"] == pytest.approx(100 * 3.5 / 4) and scores["best_exact"] == pytest.approx(75)
    assert scores["best_f1_thresh"] == scores["best_exact_thresh"] == 0.0


def test_a_group_without_questions_has_no_scores():
    scores = score_squad_v2(QUESTIONS[:1], {"a": "red house"})
    assert scores["exact"] == scores["HasAns_exact"] == scores["best_exact"] == 100
    assert not any(name.startswith("NoAns_") for name in scores)
