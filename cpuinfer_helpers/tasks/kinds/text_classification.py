"""One label for each text."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cpuinfer_helpers.errors import DataError
from cpuinfer_helpers.tasks.kinds.base import Run, is_text, longest, read_records, rows_of


def classify_texts(run: Run, texts: Sequence[LabelledText]) -> tuple[list[str], dict[str, float]]:
    """A label for each text, and the metrics."""
    encoded = encode_texts(run.tokenizer, texts)
    rows = rows_of(run.tokenizer, encoded, len(texts))
    classes = [number for output in run.outputs(rows) for number in output["logits"].argmax(dim=-1).tolist()]
    labels = [run.labels[number] for number in classes]
    return labels, {"accuracy": accuracy([text.label for text in texts], labels)}


def encode_texts(tokenizer: Any, texts: Sequence[LabelledText]) -> Any:
    """Tokenize texts, cut to what the model takes."""
    return tokenizer([text.text for text in texts], truncation=True, max_length=longest(tokenizer))


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


def accuracy(wanted: Sequence[str], predicted: Sequence[str]) -> float:
    """Share of equal labels, in percent."""
    return 100.0 * sum(a == b for a, b in zip(wanted, predicted, strict=True)) / len(wanted)
