"""A task: a model, its tokenizer, its data, and how right its answers are."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cpuinfer_helpers.display import Displayed, Table, format_seconds, shorten
from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.tasks.kinds import text_classification
from cpuinfer_helpers.tasks.kinds.base import Model, Run, padded, padded_batches, rows_of
from cpuinfer_helpers.tasks.kinds.question_answering import answer_questions, find_answers
from cpuinfer_helpers.tasks.kinds.text_classification import LabelledText, classify_texts, encode_texts
from cpuinfer_helpers.tasks.kinds.token_classification import TaggedSentence, encode_sentences, tag_sentences
from cpuinfer_helpers.tasks.squad import windows
from cpuinfer_helpers.tasks.squad.data import Question

Example = Question | LabelledText | TaggedSentence


@dataclass(frozen=True, repr=False)
class Score(Displayed):
    """How right a model's answers are on a part of a task's data.

    Attributes
    ----------
    task, split, origin
        What was scored, on which part of the data, and where model and data come from.
    metrics
        By name, in percent: ``exact_match`` and ``f1``, or ``accuracy``, or ``precision``, ``recall`` and ``f1``.
    examples
        Number of questions, texts or sentences.
    predictions
        The model's answer to each: a text, a label, or a tuple of tags.
    seconds
        Time for tokenising, running and scoring.
    """

    task: str
    split: str
    origin: str
    metrics: Mapping[str, float]
    examples: int
    predictions: tuple[Any, ...]
    seconds: float

    def table(self) -> Table:
        """The metrics in one row."""
        columns = ("task", "data", "examples", *self.metrics, "time")
        row = (
            self.task,
            self.split,
            str(self.examples),
            *(f"{value:.1f}" for value in self.metrics.values()),
            format_seconds(self.seconds),
        )
        return Table(columns=columns, rows=(row,), note=self.origin, numeric=("examples", *self.metrics, "time"))

    def agreement(self, other: Score) -> float:
        """Share of equal predictions of two scores on the same examples, in percent."""
        if len(self.predictions) != len(other.predictions):
            raise InputError(f"the scores are of {self.examples} and {other.examples} examples; score the same ones")
        return text_classification.accuracy(self.predictions, other.predictions)


@dataclass(frozen=True, repr=False)
class Task(Displayed):
    """A model with its tokenizer, its data and its metric; made by :func:`load_task`.

    Attributes
    ----------
    name
        ``question-answering``, ``text-classification`` or ``token-classification``.
    model
        The model to measure and trace, in evaluation mode. From the hub it is trained; offline it has BERT-base
        geometry and fixed random weights, so that its times are real and its answers are not.
    trained_model
        The model whose answers mean something: ``model`` itself from the hub, a small trained checkpoint offline.
    tokenizer
        Fast tokenizer of both.
    datasets
        Examples by the name of the part, the default one first.
    origin
        ``hub: ...`` or ``offline: ...``, with the reason.
    """

    name: str
    model: torch.nn.Module
    trained_model: torch.nn.Module
    tokenizer: Any
    datasets: Mapping[str, Sequence[Example]]
    origin: str
    example_inputs: dict[str, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "example_inputs", self.inputs())

    @property
    def dataset(self) -> Sequence[Example]:
        """The default part of the data."""
        return next(iter(self.datasets.values()))

    def inputs(
        self,
        batch_size: int = 1,
        length: int = windows.MAX_SEQ_LENGTH,
        *,
        tokens: int | Sequence[int] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Inputs of an exact shape, made of the task's own texts.

        Parameters
        ----------
        batch_size
            Rows; each begins at another example.
        length
            Columns.
        tokens
            Tokens of each row that are real, one number for all rows or one for each; the rest is padding. All of them
            unless given.

        Returns
        -------
        dict of str to Tensor
            int64 tensors of shape (``batch_size``, ``length``) by the model's argument names.

        Raises
        ------
        InputError
            If a size is not positive, ``tokens`` is more than ``length``, or there are not as many as rows.
        """
        tokens = length if tokens is None else tokens
        counts = [tokens] * batch_size if isinstance(tokens, int) else list(tokens)
        fits = len(counts) == batch_size and all(4 <= count <= length for count in counts)
        if batch_size < 1 or length < 4 or not fits:
            raise InputError(
                f"inputs: batch_size {batch_size}, length {length}, tokens {tokens} cannot be made; "
                "batch_size must be at least 1, and 4 <= tokens <= length, for every row"
            )
        rows = [self._row_of(row, count) for row, count in enumerate(counts)]
        return padded(self.tokenizer, rows, length)

    def calibration_inputs(
        self, count: int = 32, *, length: int | None = None, batch_size: int = 1
    ) -> list[dict[str, torch.Tensor]]:
        """Inputs to calibrate a quantised model with: rows of the training part, none of which is ever scored.

        Parameters
        ----------
        count
            Rows, taken evenly over the training part that this package ships; all of them if it has fewer.
        length
            Pad every row to this length; to the longest row of its batch unless given.
        batch_size
            Rows in a batch; the last batch may be smaller.

        Returns
        -------
        list of dict of str to Tensor
            One dictionary a batch: int64 tensors of shape (rows, length) by the model's argument names, encoded as
            :meth:`evaluate` does. The same every time.

        Raises
        ------
        InputError
            If a size is not positive, or ``length`` is less than the longest row.
        """
        if count < 1 or batch_size < 1:
            raise InputError(f"calibration_inputs: count {count} and batch_size {batch_size} must be at least 1")
        # That module loads tasks; it knows where their data is.
        from cpuinfer_helpers.tasks.loading import read_examples

        chosen = _spread(read_examples(self.name, "train"), count)
        # A question may have several windows.
        rows = _spread(_encoded_rows(self.tokenizer, chosen), count)
        return list(padded_batches(self.tokenizer, rows, batch_size, length, "length"))

    def evaluate(
        self,
        model: Model | None = None,
        *,
        split: str | None = None,
        limit: int | None = None,
        batch_size: int = 8,
        pad_to: int | None = None,
    ) -> Score:
        """Run a model over the task's data and score its answers.

        Parameters
        ----------
        model
            Called with keyword inputs; ``trained_model`` unless given. Give a traced version of it to compare.
        split
            Which part of the data; the default one unless given.
        limit
            Only so many examples, the first ones.
        batch_size
            Rows in a batch; the last batch may be smaller.
        pad_to
            Pad every batch to this length, as the guide's ``run_qa`` does with 384; to its own longest row unless
            given.

        Returns
        -------
        Score

        Raises
        ------
        InputError
            For an unknown split, or sizes that are not positive.
        """
        split = split or next(iter(self.datasets))
        if split not in self.datasets:
            raise InputError(f"split {split!r} is not part of this task; choose from {', '.join(self.datasets)}")
        if batch_size < 1 or (limit is not None and limit < 1):
            raise InputError(f"batch_size {batch_size} and limit {limit} must be at least 1")
        examples = list(self.datasets[split])[:limit]
        started = time.perf_counter()
        run = Run(self.tokenizer, model or self.trained_model, self._labels(), batch_size, pad_to)
        predictions, metrics = _SCORERS[self.name](run, examples)
        seconds = time.perf_counter() - started
        return Score(self.name, split, self.origin, metrics, len(examples), tuple(predictions), seconds)

    def answer(self, question: str, context: str, *, model: Model | None = None) -> windows.Answer:
        """Answer one question of your own from a text of your own.

        Parameters
        ----------
        question
            The question.
        context
            The text that holds the answer, of any length: a long one is read in overlapping windows.
        model
            Called with keyword inputs; ``trained_model`` unless given.

        Returns
        -------
        Answer
            The best part of ``context``; its text is empty if no part could be an answer.

        Raises
        ------
        InputError
            If this is not the question answering task, or either text is empty.
        """
        if self.name != "question-answering":
            raise InputError(f"answer: this task is {self.name}; load_task('question-answering') answers questions")
        if not question.strip() or not context.strip():
            raise InputError("answer: the question or the context is empty; give both")
        run = Run(self.tokenizer, model or self.trained_model, self._labels(), 8, None)
        return find_answers(run, [Question("yours", question, context, (), ())])[0]

    def table(self) -> Table:
        """What the task consists of."""
        same = self.trained_model is self.model
        data = ", ".join(f"{len(examples)} {name}" for name, examples in self.datasets.items())
        rows = (
            ("origin", self.origin),
            ("model", f"{type(self.model).__name__}, {_millions(self.model)} weights"),
            ("trained model", "the same" if same else f"{_millions(self.trained_model)} weights"),
            ("data", data),
            ("example inputs", ", ".join(f"{n} {list(t.shape)}" for n, t in self.example_inputs.items())),
        )
        return Table(columns=("task", self.name), rows=rows)

    def _row_of(self, row: int, tokens: int) -> dict[str, list[int]]:
        """One row of exactly so many tokens: texts of the data one after the other, cut off."""
        start = row % len(self.dataset)
        first, text = self.dataset[start], ""
        for example in itertools.islice(itertools.cycle(self.dataset), start, None):
            text += " " + _text_of(example)
            if self._length_of(text) >= tokens:
                break
        if isinstance(first, Question) and tokens > 2 * self._length_of(first.question):
            encoded = self.tokenizer(first.question, text, truncation="only_second", max_length=tokens)
        else:
            encoded = self.tokenizer(text, truncation=True, max_length=tokens)
        return {name: encoded[name] for name in self.tokenizer.model_input_names}

    def _length_of(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _labels(self) -> dict[int, str]:
        return {int(number): label for number, label in self.trained_model.config.id2label.items()}


_SCORERS: dict[str, Callable[[Run, Any], tuple[list[Any], dict[str, float]]]] = {
    "question-answering": answer_questions,
    "text-classification": classify_texts,
    "token-classification": tag_sentences,
}


def _encoded_rows(tokenizer: Any, examples: Sequence[Example]) -> list[dict[str, list[int]]]:
    """Rows of the examples as :meth:`Task.evaluate` makes them."""
    if isinstance(examples[0], Question):
        return [window.inputs for window in windows.prepare_windows(examples, tokenizer)]
    encode = encode_texts if isinstance(examples[0], LabelledText) else encode_sentences
    return rows_of(tokenizer, encode(tokenizer, examples), len(examples))


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """So many of the items, evenly over all of them."""
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def _text_of(example: Example) -> str:
    if isinstance(example, Question):
        return example.context
    return example.text if isinstance(example, LabelledText) else " ".join(example.words)


def _millions(model: torch.nn.Module) -> str:
    return shorten(f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} million")
