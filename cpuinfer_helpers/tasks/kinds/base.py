"""What a kind of task is: which models do it, what they are given, and how right their answers are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.tasks.data_files import DATA
from cpuinfer_helpers.tasks.hub import DatasetFile
from cpuinfer_helpers.tasks.squad.windows import MAX_SEQ_LENGTH
from cpuinfer_helpers.tasks.texts import Text, random_tokens, sentences, text_inputs, usual_length

Tensors = Mapping[str, torch.Tensor]
# For each encoded row the outputs that answers are read from, the names of which a kind gives.
Outputs = Sequence[tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class Encoded:
    """Examples as a model takes them.

    Attributes
    ----------
    rows
        The model's inputs by name, not padded.
    places
        What reading the answers needs to know of each row, such as where its words begin.
    """

    rows: list[dict[str, list[int]]]
    places: Sequence[Any] = ()


@dataclass(frozen=True)
class HubSource:
    """Where a trained model and its data are on the hub.

    Attributes
    ----------
    model
        Owner and name.
    dataset
        The file with the examples.
    read
        Makes examples of its rows.
    """

    model: str
    dataset: DatasetFile
    read: Callable[[Sequence[Mapping[str, Any]]], list[Any]]


@dataclass(frozen=True)
class Geometry:
    """A base model that people know: offline it is timed, with random weights.

    Attributes
    ----------
    name
        As people call it.
    config
        Its configuration, given that of the small trained checkpoint.
    """

    name: str
    config: Callable[[Any], Any]


def _bert_base(trained: Any) -> Any:
    """BERT-base as its configuration's defaults have it: 12 layers, 768 wide."""
    import transformers

    return transformers.BertConfig(id2label=trained.id2label, label2id=trained.label2id)


BERT_BASE = Geometry("BERT-base", _bert_base)


def _itself(answer: Any) -> Any:
    return answer


@dataclass(frozen=True)
class TaskData:
    """Examples of a kind of task, and how a model's answers to them are read and scored.

    Attributes
    ----------
    files
        The file of each part: ``train``, from which nothing is scored, ``heldout``, which is the default one, and
        others behind it.
    read
        Reads a file; raises DataError where it is malformed.
    text_of
        An example's text, and what stands before it.
    encode
        Tokenizes examples, given a tokenizer.
    outputs
        Names of the model's outputs that ``decode`` reads, in order.
    decode
        The answer to each example, from what was encoded, the examples, the outputs and the labels by number.
    score
        The metrics of answers by name, from the examples and the answers; in percent, but for perplexity.
    metric
        Name of the main one.
    less_is_better
        Whether the main one is the better the smaller it is, as perplexity.
    kept
        What ``decode`` gets of each row of a batch instead of its outputs, from the inputs and the outputs, where the
        outputs of all rows together would be too large.
    prediction
        What of an answer is shown, and compared between models: something that JSON can hold.
    labels
        The labels in the order in which the hub's data set numbers them; empty where answers are none.
    label_numbers
        What a Trainer is given as ``labels`` of each row, from what was encoded, the examples and the numbers by label;
        None where it is given none.
    collator
        Name of transformers' class that makes batches of such rows for a Trainer; None where a Trainer is not meant to
        score them.
    geometry
        What is timed offline.
    source
        Where model and data are on the hub; then this package ships a trained checkpoint of the kind too. None where
        there is neither.
    """

    files: Mapping[str, Path]
    read: Callable[[Path], Sequence[Any]]
    text_of: Callable[[Any], Text]
    encode: Callable[[Any, Sequence[Any]], Encoded]
    outputs: tuple[str, ...]
    decode: Callable[[Encoded, Sequence[Any], Outputs, Mapping[int, str]], list[Any]]
    score: Callable[[Sequence[Any], Sequence[Any]], dict[str, float]]
    metric: str
    less_is_better: bool = False
    kept: Callable[[Tensors, Tensors], list[tuple[torch.Tensor, ...]]] | None = None
    prediction: Callable[[Any], Any] = _itself
    labels: tuple[str, ...] = ()
    label_numbers: Callable[[Encoded, Sequence[Any], Mapping[str, int]], list[Any]] | None = None
    collator: str | None = "DataCollatorWithPadding"
    geometry: Geometry = BERT_BASE
    source: HubSource | None = None

    def examples(self, part: str) -> Sequence[Any]:
        """The examples of one part."""
        return self.read(self.files[part])

    def shown(self, metric: str, value: float) -> str:
        """A metric as tables show it: percent with one digit after the point, perplexity, of a few units, with two."""
        return f"{value:.2f}" if self.less_is_better and metric == self.metric else f"{value:.1f}"


def shipped_files(name: str) -> dict[str, Path]:
    """The files of a task of which this package ships the data."""
    return {part: DATA / f"{name}-{part}.json" for part in ("train", "heldout", "prose")}


def inputs_of_texts(
    kind: TaskKind, model: torch.nn.Module, tokenizer: Any, batch_size: int, length: int | None
) -> dict[str, torch.Tensor]:
    """Example inputs for a model that reads texts: the kind's own ones, or random tokens without a tokenizer."""
    length = length or usual_length(model.config)
    if tokenizer is None:
        return random_tokens(model.config, batch_size, length)
    return text_inputs(tokenizer, kind.texts("heldout"), batch_size, length, side=kind.padding_side)


@dataclass(frozen=True)
class TaskKind:
    """What a model can be for. A module of ``tasks.kinds`` that has one as ``KIND`` is found by itself.

    Attributes
    ----------
    name
        As the hub names it: ``question-answering``.
    auto_class
        Name of transformers' class that loads such models.
    processor
        Name of the class that makes their inputs: ``AutoTokenizer``, ``AutoImageProcessor`` or
        ``AutoFeatureExtractor``.
    inputs
        Makes example inputs, given the kind, the model, its processor or None, the number of rows, and the length of a
        row or None.
    data
        Examples and scores; None where this package has none.
    vectors
        Where answers are vectors, whose directions count: those of a call, of shape (number, size), from the outputs
        and the inputs by name.
    told_by
        Which of transformers' classes for it tell that a model was saved for this: those in whose names this regular
        expression is found; None where they are for other kinds as well.
    padding_side
        Where its example inputs are padded: on the ``left`` where a model goes on after the last token.
    example_tokens
        Real tokens of each row of a task's example inputs, as long as the longest.
    """

    name: str
    auto_class: str
    processor: str = "AutoTokenizer"
    inputs: Callable[[TaskKind, Any, Any, int, int | None], dict[str, torch.Tensor]] = inputs_of_texts
    data: TaskData | None = None
    vectors: Callable[[Tensors, Tensors], torch.Tensor] | None = None
    told_by: str | None = ""
    padding_side: str = "right"
    example_tokens: tuple[int, ...] = (MAX_SEQ_LENGTH,)

    @property
    def reads_texts(self) -> bool:
        """Whether its models have tokenizers."""
        return self.processor == "AutoTokenizer"

    @property
    def class_list(self) -> str:
        """Name of the list in which transformers has the classes that ``auto_class`` loads."""
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", self.auto_class.removeprefix("Auto"))
        return f"{words.upper()}_MAPPING_NAMES"

    def is_told_by(self, names: Iterable[str]) -> bool:
        """Whether one of these is the name of a class that is for this kind and no other."""
        from transformers.models.auto import modeling_auto

        if self.told_by is None:
            return False
        listed = getattr(modeling_auto, self.class_list).values()
        known = {name for entry in listed for name in ([entry] if isinstance(entry, str) else entry)}
        return any(name in known and re.search(self.told_by, name) for name in names)

    def texts(self, part: str) -> list[Text]:
        """Texts for example inputs, of its own data if it has any."""
        if self.data is None:
            return sentences(part)
        return [self.data.text_of(example) for example in self.data.examples(part)]


def unknown_shape(model: torch.nn.Module) -> InputError:
    """The error for a model whose configuration does not tell how large its inputs are."""
    return InputError(
        f"the shape of {model.main_input_name!r} cannot be told from the configuration of {type(model).__name__}; "
        "make the example inputs yourself"
    )


def accuracy(wanted: Sequence[Any], predicted: Sequence[Any]) -> float:
    """Share of equal answers, in percent."""
    return 100.0 * sum(a == b for a, b in zip(wanted, predicted, strict=True)) / len(wanted)
