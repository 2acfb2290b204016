"""A task's data as rows for a Trainer, and its predictions as a score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.tasks.kinds import text_classification, token_classification
from cpuinfer_helpers.tasks.kinds.text_classification import encode_texts
from cpuinfer_helpers.tasks.kinds.token_classification import encode_sentences
from cpuinfer_helpers.tasks.squad import windows as qa
from cpuinfer_helpers.tasks.squad.answers import find_answers
from cpuinfer_helpers.tasks.task import Example, Score, Task

# What cross-entropy leaves out.
_NO_LABEL = -100


@dataclass(frozen=True)
class TaskRows:
    """Encoded rows with labels, and how predictions are scored; made by :func:`task_rows`.

    Attributes
    ----------
    rows
        What a Trainer evaluates: lists of token ids, not padded, and ``labels`` except for question answering.
    split, origin, task
        As in a :class:`~cpuinfer_helpers.tasks.Score`.
    examples
        The questions, texts or sentences.
    read
        Turns a Trainer's predictions into answers and metrics.
    """

    rows: list[dict[str, Any]]
    task: str
    split: str
    origin: str
    examples: Sequence[Example]
    read: Callable[[Any], tuple[list[Any], dict[str, float]]]

    def score(self, predictions: Any, seconds: float = 0.0) -> Score:
        """Score what ``trainer.predict(rows).predictions`` holds.

        Parameters
        ----------
        predictions
            Logits, an array or a tuple of arrays, a row each.
        seconds
            How long it took, for the score.
        """
        logits = predictions if isinstance(predictions, tuple) else (predictions,)
        answers, metrics = self.read(logits)
        return Score(self.task, self.split, self.origin, metrics, len(self.examples), tuple(answers), seconds)

    def compute_metrics(self, evaluated: Any) -> dict[str, float]:
        """The metrics, for ``Trainer(compute_metrics=...)``; a Trainer calls it only for rows with labels."""
        return dict(self.score(evaluated.predictions).metrics)


def task_rows(task: Task, *, split: str | None = None, limit: int | None = None) -> TaskRows:
    """A task's data as rows for a Trainer, encoded as :meth:`Task.evaluate` does.

    Parameters
    ----------
    task
        Any of the three.
    split
        Which part of the data; the default one unless given.
    limit
        Only so many examples, the first ones.

    Returns
    -------
    TaskRows

    Raises
    ------
    InputError
        For an unknown split.
    """
    split = split or next(iter(task.datasets))
    if split not in task.datasets:
        raise InputError(f"split {split!r} is not part of this task; choose from {', '.join(task.datasets)}")
    examples = list(task.datasets[split])[:limit]
    rows, read = _MAKERS[task.name](task, examples)
    return TaskRows(rows, task.name, split, task.origin, examples, read)


def _question_rows(task: Task, questions: list[Any]) -> tuple[list[dict[str, Any]], Any]:
    windows = qa.prepare_windows(questions, task.tokenizer)

    def read(logits: tuple[np.ndarray, ...]) -> tuple[list[Any], dict[str, float]]:
        texts = find_answers(questions, windows, *logits[:2]).texts
        answers = [texts[question.id] for question in questions]
        return answers, qa.score_answers(questions, answers)

    return [dict(window.inputs) for window in windows], read


def _text_rows(task: Task, texts: list[Any]) -> tuple[list[dict[str, Any]], Any]:
    encoded = encode_texts(task.tokenizer, texts)
    names = task.trained_model.config.id2label
    numbers = {label: int(number) for number, label in names.items()}
    rows = [{**_inputs(task, encoded, i), "labels": numbers[text.label]} for i, text in enumerate(texts)]

    def read(logits: tuple[np.ndarray, ...]) -> tuple[list[Any], dict[str, float]]:
        labels = [names[number] for number in logits[0].argmax(axis=-1).tolist()]
        return labels, {"accuracy": text_classification.accuracy([text.label for text in texts], labels)}

    return rows, read


def _sentence_rows(task: Task, sentences: list[Any]) -> tuple[list[dict[str, Any]], Any]:
    encoded = encode_sentences(task.tokenizer, sentences)
    names = task.trained_model.config.id2label
    firsts = [token_classification.first_tokens(encoded, i) for i in range(len(sentences))]
    rows = []
    for i, sentence in enumerate(sentences):
        row = _inputs(task, encoded, i)
        rows.append({**row, "labels": _tag_numbers(names, sentence, firsts[i], len(row["input_ids"]))})

    def read(logits: tuple[np.ndarray, ...]) -> tuple[list[Any], dict[str, float]]:
        best = logits[0].argmax(axis=-1)
        predicted = [_tags(names, sentences[i], firsts[i], best[i]) for i in range(len(sentences))]
        return predicted, token_classification.entity_f1([sentence.tags for sentence in sentences], predicted)

    return rows, read


def _tag_numbers(names: Mapping[int, str], sentence: Any, first: Mapping[int, int], length: int) -> list[int]:
    """The number of each word's tag at its first token; other tokens have none."""
    numbers = {label: int(number) for number, label in names.items()}
    labels = [_NO_LABEL] * length
    for word, position in first.items():
        labels[position] = numbers[sentence.tags[word]]
    return labels


def _tags(names: Mapping[int, str], sentence: Any, first: Mapping[int, int], best: np.ndarray) -> tuple[str, ...]:
    tags = ["O"] * len(sentence.words)
    for word, position in first.items():
        tags[word] = names[int(best[position])]
    return tuple(tags)


def _inputs(task: Task, encoded: Any, row: int) -> dict[str, Any]:
    return {name: encoded[name][row] for name in task.tokenizer.model_input_names}


_MAKERS = {
    "question-answering": _question_rows,
    "text-classification": _text_rows,
    "token-classification": _sentence_rows,
}
