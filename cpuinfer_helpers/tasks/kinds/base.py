"""What all kinds of tasks share: running a model over rows, padding them, and reading records."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cpuinfer_helpers.errors import DataError, InputError
from cpuinfer_helpers.tasks.files import read_json
from cpuinfer_helpers.tasks.squad import windows

Model = Callable[..., Any]


@dataclass(frozen=True)
class Run:
    """One pass of a model over encoded rows."""

    tokenizer: Any
    model: Model
    labels: Mapping[int, str]
    batch_size: int
    pad_to: int | None

    def outputs(self, rows: Sequence[Mapping[str, list[int]]]) -> Iterator[Any]:
        """The model's output for each batch."""
        from tqdm.auto import tqdm

        batches = padded_batches(self.tokenizer, rows, self.batch_size, self.pad_to, "pad_to")
        total = -(-len(rows) // self.batch_size)
        for inputs in tqdm(batches, desc="evaluating", unit="batch", total=total, leave=False, delay=2.0):
            with torch.no_grad():
                yield self.model(**inputs)


def rows_of(tokenizer: Any, encoded: Any, count: int) -> list[dict[str, list[int]]]:
    """The rows of what a tokenizer made, each as the model's inputs by name."""
    return [{name: encoded[name][row] for name in tokenizer.model_input_names} for row in range(count)]


def padded_batches(
    tokenizer: Any, rows: Sequence[Mapping[str, list[int]]], batch_size: int, length: int | None, argument: str
) -> Iterator[dict[str, torch.Tensor]]:
    """Padded batches, each as long as asked or as its longest row; ``argument`` is what the caller calls the length."""
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        longest = max(len(row["input_ids"]) for row in batch)
        if length is not None and length < longest:
            raise InputError(f"{argument} is {length}, but a row has {longest} tokens; give at least as many")
        yield padded(tokenizer, batch, length or longest)


def padded(tokenizer: Any, rows: Sequence[Mapping[str, list[int]]], length: int) -> dict[str, torch.Tensor]:
    """Tensors of rows that are filled up to the same length on the right."""
    if tokenizer.pad_token_id is None and any(len(row["input_ids"]) < length for row in rows):
        raise InputError("the tokenizer has no padding token, and rows differ in length; set tokenizer.pad_token")
    fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    return {
        name: torch.tensor([row[name] + [fill.get(name, 0)] * (length - len(row[name])) for row in rows])
        for name in rows[0]
    }


def longest(tokenizer: Any) -> int:
    """The most tokens of a row: what the tokenizer takes, and no more than SQuAD's evaluation uses."""
    return min(tokenizer.model_max_length, windows.MAX_SEQ_LENGTH)


def is_text(value: object) -> bool:
    """Whether it is a text with more than spaces in it."""
    return isinstance(value, str) and bool(value.strip())


def read_records(path: str | os.PathLike[str], keys: tuple[str, ...]) -> list[tuple[str, Mapping[str, Any]]]:
    """The records of a JSON list, each with where it stands, checked for the keys."""
    source, records = os.fspath(path), read_json(path)
    if not isinstance(records, list) or not records:
        raise DataError(f"{source} is not a list of records, or an empty one")
    for number, record in enumerate(records):
        missing = [key for key in keys if not isinstance(record, Mapping) or key not in record]
        if missing:
            raise DataError(f"{source}, record {number} has no {missing[0]!r}")
    return [(f"{source}, record {number}", record) for number, record in enumerate(records)]
