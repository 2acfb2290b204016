"""One question of the reader's own, answered by a task."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from cpuinfer_helpers import InputError
from cpuinfer_helpers.tasks import Task
from cpuinfer_helpers.tasks.kinds.text_classification import LabelledText
from cpuinfer_helpers.tasks.squad.data import Question

CONTEXT = "The cat sat on the mat in the old house. Anna works in the red tower. The dog runs in the garden."


@pytest.fixture
def task(new_bert: Callable[..., torch.nn.Module], tokenizer: Any) -> Task:
    model = new_bert()
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = 512  # windows are of 384 tokens at most; the text is far shorter than the model's 64
    question = Question("q1", "Where did the cat sat?", CONTEXT, ("on the mat",), (CONTEXT.index("on the mat"),))
    return Task("question-answering", model, model, tokenizer, {"validation": [question]}, "offline: test")


def pointing_at(task: Task, words: str) -> Callable[..., dict[str, torch.Tensor]]:
    """A model that finds the tokens of the given words in its input, whatever was asked."""
    wanted = task.tokenizer(words, add_special_tokens=False)["input_ids"]

    def model(input_ids: torch.Tensor, **others: torch.Tensor) -> dict[str, torch.Tensor]:
        start, end = torch.zeros(input_ids.shape), torch.zeros(input_ids.shape)
        for row, ids in enumerate(input_ids.tolist()):
            for place in range(len(ids)):
                if ids[place : place + len(wanted)] == wanted:
                    start[row, place], end[row, place + len(wanted) - 1] = 5.0, 5.0
        return {"start_logits": start, "end_logits": end}

    return model


def test_the_answer_is_the_part_of_the_text_that_the_model_points_at(task: Task) -> None:
    answer = task.answer("Where works Anna?", CONTEXT, model=pointing_at(task, "red tower"))
    assert answer.text == "red tower"
    assert CONTEXT[answer.start : answer.end] == "red tower"
    assert answer.score == 10.0


def test_the_trained_model_answers_unless_another_is_given(task: Task) -> None:
    answer = task.answer(task.dataset[0].question, CONTEXT)
    assert answer.text and answer.text in CONTEXT
    assert answer == task.answer(task.dataset[0].question, CONTEXT, model=task.trained_model)
    assert answer.text == task.evaluate().predictions[0]


@pytest.mark.parametrize(("question", "context"), [("", CONTEXT), ("Where?", " \n")])
def test_empty_texts_are_refused(task: Task, question: str, context: str) -> None:
    with pytest.raises(InputError, match="empty"):
        task.answer(question, context)


def test_other_tasks_do_not_answer(task: Task) -> None:
    texts = {"heldout": [LabelledText(CONTEXT, "good")]}
    classifier = Task("text-classification", task.model, task.model, task.tokenizer, texts, "offline: test")
    with pytest.raises(InputError, match="text-classification"):
        classifier.answer("Where?", CONTEXT)
