"""A task: a model, its tokenizer, its data, and how right its answers are."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from cpuinfer_helpers.display import Displayed, Table, format_seconds, shorten
from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.tasks.batches import Model, padded_batches, run_rows
from cpuinfer_helpers.tasks.kinds import question_answering
from cpuinfer_helpers.tasks.kinds.base import TaskKind, accuracy
from cpuinfer_helpers.tasks.kinds.registry import kind_with_data
from cpuinfer_helpers.tasks.squad import windows
from cpuinfer_helpers.tasks.squad.data import Question
from cpuinfer_helpers.tasks.texts import running_text, text_inputs


@dataclass(frozen=True, repr=False)
class Score(Displayed):
    """How right a model's answers are on a part of a task's data.

    Attributes
    ----------
    task, split, origin
        What was scored, on which part of the data, and where model and data come from.
    metrics
        By name, in percent: ``exact_match`` and ``f1``, or ``accuracy``, or ``precision``, ``recall`` and ``f1``; for
        texts that are gone on with, ``copied`` in percent and ``perplexity``, which is none.
    examples
        Number of questions, texts or sentences.
    predictions
        The model's answer to each: a text, a label, a tuple of tags, or one of token ids.
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
        data = kind_with_data(self.task).data
        row = (
            self.task,
            self.split,
            str(self.examples),
            *(data.shown(name, value) for name, value in self.metrics.items()),
            format_seconds(self.seconds),
        )
        return Table(columns=columns, rows=(row,), note=self.origin, numeric=("examples", *self.metrics, "time"))

    def agreement(self, other: Score) -> float:
        """Share of equal predictions of two scores on the same examples, in percent."""
        if len(self.predictions) != len(other.predictions):
            raise InputError(f"the scores are of {self.examples} and {other.examples} examples; score the same ones")
        return accuracy(self.predictions, other.predictions)


@dataclass(frozen=True, repr=False)
class Task(Displayed):
    """A model with its tokenizer, its data and its metric; made by :func:`load_task`.

    Attributes
    ----------
    name
        ``question-answering``, ``text-classification``, ``token-classification`` or ``text-generation``, or another
        kind that has data.
    model
        The model to measure and trace, in evaluation mode. From the hub it is trained; offline it has the geometry of
        BERT-base, or of GPT-2 for generation, and fixed random weights, so that its times are real and its answers are
        not.
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
    datasets: Mapping[str, Sequence[Any]]
    origin: str
    example_inputs: dict[str, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        tokens = self.kind.example_tokens
        object.__setattr__(self, "example_inputs", self.inputs(len(tokens), max(tokens), tokens=tokens))

    @property
    def kind(self) -> TaskKind:
        """How examples of such a task are encoded, and answers to them read and scored.

        Raises
        ------
        InputError
            If there is no kind of this name that has data.
        """
        return kind_with_data(self.name)

    @property
    def labels(self) -> dict[int, str]:
        """The trained model's labels by their numbers."""
        return {int(number): label for number, label in self.trained_model.config.id2label.items()}

    @property
    def dataset(self) -> Sequence[Any]:
        """The default part of the data."""
        return next(iter(self.datasets.values()))

    def part(self, split: str | None = None, limit: int | None = None) -> tuple[str, list[Any]]:
        """A part of the data, by its name or the default one, and its first examples, or all of them.

        Raises
        ------
        InputError
            For an unknown split, or a limit that is not positive.
        """
        split = split or next(iter(self.datasets))
        if split not in self.datasets:
            raise InputError(f"split {split!r} is not part of this task; choose from {', '.join(self.datasets)}")
        if limit is not None and limit < 1:
            raise InputError(f"limit {limit} must be at least 1")
        return split, list(self.datasets[split])[:limit]

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
            Tokens of each row that are real, one number for all rows or one for each; the rest is padding, on the left
            for generation and on the right for everything else. All of them unless given.

        Returns
        -------
        dict of str to Tensor
            int64 tensors of shape (``batch_size``, ``length``) by the model's argument names.

        Raises
        ------
        InputError
            If a size is not positive, ``tokens`` is more than ``length``, or there are not as many as rows.
        """
        texts = [self.kind.data.text_of(example) for example in self.dataset]
        return text_inputs(self.tokenizer, texts, batch_size, length, tokens, side=self.kind.padding_side)

    def running_text(self, rows: int = 8, length: int = 64, *, split: str | None = None) -> torch.Tensor:
        """Texts of a part of the data one after the other, cut into rows without padding: for ``held_out``.

        Parameters
        ----------
        rows, length
            At most so many rows, of so many tokens each.
        split
            The part; the default one unless given.

        Returns
        -------
        torch.Tensor
            Token ids (rows, length), int64.

        Raises
        ------
        InputError
            For an unknown split, sizes that are not positive, and texts that are too short.
        """
        texts = [self.kind.data.text_of(example) for example in self.part(split)[1]]
        return running_text(self.tokenizer, texts, rows, length)

    def longest_row(self, split: str | None = None, limit: int | None = None) -> int:
        """Tokens of the longest row of a part of the data, as :meth:`evaluate` encodes its first examples, or all.

        Raises
        ------
        InputError
            For an unknown split, or a limit that is not positive.
        """
        _, examples = self.part(split, limit)
        return max(len(row["input_ids"]) for row in self.kind.data.encode(self.tokenizer, examples).rows)

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
        data = self.kind.data
        chosen = _spread(data.examples("train"), count)
        # A question may have several windows.
        rows = _spread(data.encode(self.tokenizer, chosen).rows, count)
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
        split, examples = self.part(split, limit)
        data, started = self.kind.data, time.perf_counter()
        encoded = data.encode(self.tokenizer, examples)
        model = model or self.trained_model
        outputs = run_rows(model, self.tokenizer, encoded.rows, data.outputs, batch_size, pad_to, data.kept)
        answers = data.decode(encoded, examples, outputs, self.labels)
        metrics = data.score(examples, answers)
        seconds = time.perf_counter() - started
        predictions = tuple(map(data.prediction, answers))
        return Score(self.name, split, self.origin, metrics, len(examples), predictions, seconds)

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
        if self.name != question_answering.NAME:
            raise InputError(f"answer: this task is {self.name}; load_task('question-answering') answers questions")
        if not question.strip() or not context.strip():
            raise InputError("answer: the question or the context is empty; give both")
        questions = [Question("yours", question, context, (), ())]
        encoded = question_answering.encode_questions(self.tokenizer, questions)
        outputs = run_rows(model or self.trained_model, self.tokenizer, encoded.rows, question_answering.OUTPUTS)
        return windows.best_answers(questions, encoded.places, outputs)[0][0]

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


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """So many of the items, evenly over all of them."""
    count = min(count, len(items))
    return [items[number * len(items) // count] for number in range(count)]


def _millions(model: torch.nn.Module) -> str:
    return shorten(f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f} million")
