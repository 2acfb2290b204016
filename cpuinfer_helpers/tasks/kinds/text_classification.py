"""One label for each text."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cpuinfer_helpers.errors import DataError
from cpuinfer_helpers.tasks.files import is_text, read_records
from cpuinfer_helpers.tasks.hub import DatasetFile
from cpuinfer_helpers.tasks.kinds.base import Encoded, HubSource, Outputs, TaskData, TaskKind, accuracy, shipped_files
from cpuinfer_helpers.tasks.texts import encoded_texts

NAME = "text-classification"
# In the order in which SST-2 on the hub numbers them.
_LABELS = ("NEGATIVE", "POSITIVE")


@dataclass(frozen=True)
class LabelledText:
    """A text with its label, such as ``positive``."""

    text: str
    label: str


def read_texts(path: str | os.PathLike[str]) -> list[LabelledText]:
    """Read a JSON list of objects with ``text`` and ``label``.

    Raises
    ------
    DataError
        If the file or a record is malformed; the message names it.
    """
    examples = []
    for place, record in read_records(path, ("text", "label")):
        if not is_text(record["text"]) or not is_text(record["label"]):
            raise DataError(f"{place}: text and label must be texts that are not empty")
        examples.append(LabelledText(record["text"], record["label"]))
    return examples


def _read_rows(rows: Sequence[Mapping[str, Any]]) -> list[LabelledText]:
    return [LabelledText(row["sentence"], _LABELS[row["label"]]) for row in rows]


def _text_of(example: LabelledText) -> tuple[str, str]:
    return "", example.text


def _encode(tokenizer: Any, examples: Sequence[LabelledText]) -> Encoded:
    """Tokenize texts, cut to what the model takes."""
    return Encoded(encoded_texts(tokenizer, [_text_of(example) for example in examples]))


def _decode(
    encoded: Encoded, examples: Sequence[LabelledText], outputs: Outputs, labels: Mapping[int, str]
) -> list[str]:
    """A label for each text."""
    return [labels[int(logits.argmax())] for (logits,) in outputs]


def _score(examples: Sequence[LabelledText], labels: Sequence[str]) -> dict[str, float]:
    return {"accuracy": accuracy([example.label for example in examples], labels)}


def _label_numbers(encoded: Encoded, examples: Sequence[LabelledText], numbers: Mapping[str, int]) -> list[int]:
    return [numbers[example.label] for example in examples]


KIND = TaskKind(
    NAME,
    "AutoModelForSequenceClassification",
    data=TaskData(
        files=shipped_files(NAME),
        source=HubSource(
            "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
            DatasetFile("stanfordnlp/sst2", "data/validation-00000-of-00001.parquet"),
            _read_rows,
        ),
        read=read_texts,
        text_of=_text_of,
        encode=_encode,
        outputs=("logits",),
        decode=_decode,
        score=_score,
        metric="accuracy",
        labels=_LABELS,
        label_numbers=_label_numbers,
    ),
)
