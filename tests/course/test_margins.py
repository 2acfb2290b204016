"""How sure a model is of its answers, and which of them another model changes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from cpuinfer_helpers import InputError
from cpuinfer_helpers.course.margins import AnswerMargins, answer_margins
from cpuinfer_helpers.tasks import Task
from cpuinfer_helpers.tasks.squad.data import Question

CONTEXT = "The cat sat on the mat in the old house. Anna works in the red tower. The dog runs in the garden."
QUESTIONS = {"Where did the cat sat?": "mat", "Where works Anna?": "tower", "Where runs the dog?": "garden"}
WORDS = ("mat", "tower", "garden")


@pytest.fixture
def task(new_bert: Callable[..., torch.nn.Module], tokenizer: Any) -> Task:
    model = new_bert()
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = 512  # windows are of 384 tokens at most; the text is far shorter than the model's 64
    questions = [
        Question(f"q{number}", question, CONTEXT, (answer,), (CONTEXT.index(answer),))
        for number, (question, answer) in enumerate(QUESTIONS.items())
    ]
    return Task("question-answering", model, model, tokenizer, {"validation": questions}, "offline: test")


def scoring(task: Task, scores: dict[str, tuple[float, float, float]]) -> Callable[..., dict[str, torch.Tensor]]:
    """A model that gives each of WORDS a score, chosen by a word of the question; half on its start, half on its end.

    What begins with one of them and ends with another is a candidate too, with half of each score.
    """
    token = {word: task.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in (*WORDS, *scores)}

    def model(input_ids: torch.Tensor, **others: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = torch.full(input_ids.shape, -10.0)
        for row, ids in enumerate(input_ids.tolist()):
            question = ids[: ids.index(task.tokenizer.sep_token_id)]
            (chosen,) = (values for word, values in scores.items() if token[word] in question)
            for word, score in zip(WORDS, chosen, strict=True):
                logits[row, ids.index(token[word], len(question))] = score / 2
        return {"start_logits": logits, "end_logits": logits.clone()}

    return model


@pytest.fixture
def sure(task: Task) -> AnswerMargins:
    """Margins of 3, 0.25 and 1 logits; the second question's answer is wrong."""
    scores = {"cat": (12.0, 6.0, 2.0), "anna": (4.0, 2.0, 4.5), "dog": (8.0, 2.0, 10.0)}
    return answer_margins(task, scoring(task, scores))


def test_the_margin_is_to_the_best_answer_with_another_text(sure: AnswerMargins) -> None:
    assert sure.predictions == ("mat", "garden", "garden")
    assert [row.margin for row in sure.rows] == pytest.approx([3.0, 0.25, 1.0])
    assert [row.runner_up.text[:3] + row.runner_up.text[-6:] for row in sure.rows] == ["mat tower", *["matgarden"] * 2]
    assert sure.rows[0].score_of("garden") == 2.0 and sure.rows[0].score_of("Paris") is None
    assert all(len({c.text for c in row.candidates}) == len(row.candidates) for row in sure.rows)


def test_answers_are_those_of_the_task(task: Task) -> None:
    assert answer_margins(task).predictions == task.evaluate().predictions
    one_by_one = answer_margins(task, batch_size=1, limit=2)
    assert one_by_one.predictions == task.evaluate(limit=2, batch_size=1).predictions
    # Padding is not among the logits, whose rows are as long as the windows.
    for (start, end), (padded, _) in zip(one_by_one.logits, answer_margins(task, limit=2).logits, strict=True):
        assert start.shape == end.shape == padded.shape
        # The same row alone or beside another: FP32 rounding only.
        torch.testing.assert_close(start, padded, rtol=1e-4, atol=1e-5)


def test_changed_answers_come_with_the_least_sure_first(sure: AnswerMargins) -> None:
    assert sure.changed(sure.predictions) == ()
    changed = sure.changed(("tower", "tower", "garden"))
    assert [row.question.id for row in changed] == ["q1", "q0"]


def test_the_table_counts_changes_by_margin(sure: AnswerMargins) -> None:
    table = sure.by_margin({"same": sure.predictions, "other": ("mat", "tower", "mat")})
    assert table.columns == ("margin, in logits", "questions", "changed by same", "changed by other")
    counts = {row[0]: row[1:] for row in table.rows}
    assert counts["0.2 to 0.5"] == ("1", "0", "1")
    assert counts["1 to 2"] == ("1", "0", "1")
    assert counts["2 to 4"] == ("1", "0", "0")
    assert counts["all"] == ("3", "0", "2")
    assert sum(int(row[1]) for row in table.rows[:-1]) == 3
    assert sure.table().columns == ("margin, in logits", "questions")


def test_the_changes_show_both_answers_and_what_became_of_f1(sure: AnswerMargins) -> None:
    rows = sure.changes({"other": ("mat", "tower", "mat")}).rows
    assert rows[0] == ("other", "Where works Anna?", "tower", "garden", "tower", "0.250", "0", "100")
    assert rows[1] == ("other", "Where runs the dog?", "garden", "garden", "mat", "1.000", "100", "0")
    assert len(rows) == 2


def test_a_margin_moves_by_four_times_the_logit_error_at_most(task: Task, sure: AnswerMargins) -> None:
    moved = {"cat": (12.0, 6.0, 2.0), "anna": (4.0, 4.75, 4.5), "dog": (8.0, 2.0, 10.0)}
    other = answer_margins(task, scoring(task, moved))
    # 2.75 more for one answer: half on its start, half on its end.
    assert sure.logit_error(other) == pytest.approx(2.75 / 2)
    assert sure.logit_error(sure) == 0.0
    (changed,) = sure.changed(other.predictions)
    assert changed.best.text == "garden" and changed.margin <= 4 * sure.logit_error(other)


def test_a_single_candidate_has_no_rival(sure: AnswerMargins) -> None:
    alone = type(sure.rows[0])(sure.rows[0].question, sure.rows[0].candidates[:1])
    assert alone.runner_up is None and alone.margin == math.inf
    table = AnswerMargins((alone,), (), "validation").table()
    assert table.rows[-2] == ("4 or more", "1") and table.rows[-1] == ("all", "1")


def test_what_cannot_be_answered_is_refused(task: Task, sure: AnswerMargins) -> None:
    with pytest.raises(InputError, match="train"):
        answer_margins(task, split="train")
    with pytest.raises(InputError, match="batch_size 0"):
        answer_margins(task, batch_size=0)
    with pytest.raises(InputError, match="limit 0"):
        answer_margins(task, limit=0)
    with pytest.raises(InputError, match="3 questions and 1 answers"):
        sure.changed(("mat",))
    object.__setattr__(task, "name", "text-classification")
    with pytest.raises(InputError, match="text-classification"):
        answer_margins(task)
