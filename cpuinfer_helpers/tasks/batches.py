"""Encoded rows as padded batches, and a model's outputs for each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from cpuinfer_helpers.errors import InputError

Model = Callable[..., Any]
# The model's inputs by name, not padded.
Row = Mapping[str, list[int]]
Kept = Callable[[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]], list[tuple[torch.Tensor, ...]]]


def run_rows(
    model: Model,
    tokenizer: Any,
    rows: Sequence[Row],
    outputs: Sequence[str],
    batch_size: int = 8,
    pad_to: int | None = None,
    kept: Kept | None = None,
) -> list[tuple[torch.Tensor, ...]]:
    """Run a model over encoded rows, batch by batch.

    Parameters
    ----------
    model
        Called with keyword inputs.
    tokenizer
        Knows what padding is.
    rows
        Encoded rows.
    outputs
        Names of the outputs that are wanted.
    batch_size
        Rows in a batch; the last batch may be smaller.
    pad_to
        Pad every batch to this length; to its own longest row unless given.
    kept
        What is kept of each row of a batch, from the inputs and the outputs; the named outputs unless given.

    Returns
    -------
    list of tuple of Tensor
        Those outputs for each row; where they have a column for each token, padding has some too.

    Raises
    ------
    InputError
        If ``batch_size`` is not positive, or ``pad_to`` is less than the longest row.
    """
    from tqdm.auto import tqdm

    if batch_size < 1:
        raise InputError(f"batch_size {batch_size} must be at least 1")
    batches = padded_batches(tokenizer, rows, batch_size, pad_to, "pad_to")
    total = -(-len(rows) // batch_size)
    found: list[tuple[torch.Tensor, ...]] = []
    for inputs in tqdm(batches, desc="evaluating", unit="batch", total=total, leave=False, delay=2.0):
        with torch.no_grad():
            output = model(**inputs)
        wanted = {name: output[name] for name in outputs}
        found += kept(inputs, wanted) if kept else zip(*wanted.values(), strict=True)
    return found


def rows_of(tokenizer: Any, encoded: Any) -> list[dict[str, list[int]]]:
    """The rows of what a tokenizer made, each as the model's inputs by name."""
    names = tokenizer.model_input_names
    return [{name: encoded[name][row] for name in names} for row in range(len(encoded["input_ids"]))]


def padded_batches(
    tokenizer: Any, rows: Sequence[Row], batch_size: int, length: int | None, argument: str
) -> Iterator[dict[str, torch.Tensor]]:
    """Padded batches, each as long as asked or as its longest row; ``argument`` is what the caller calls the length."""
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        longest = max(len(row["input_ids"]) for row in batch)
        if length is not None and length < longest:
            raise InputError(f"{argument} is {length}, but a row has {longest} tokens; give at least as many")
        yield padded(tokenizer, batch, length or longest)


def padded(tokenizer: Any, rows: Sequence[Row], length: int, side: str = "right") -> dict[str, torch.Tensor]:
    """Tensors of rows that are filled up to the same length, on the right unless told otherwise."""
    # The tokenizer's own pad makes the same tensors, in up to twice the time, and advises against itself in the log.
    if tokenizer.pad_token_id is None and any(len(row["input_ids"]) < length for row in rows):
        raise InputError("the tokenizer has no padding token, and rows differ in length; set tokenizer.pad_token")
    fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    found = {}
    for name in rows[0]:
        filling = [[fill.get(name, 0)] * (length - len(row[name])) for row in rows]
        pairs = zip(filling, rows, strict=True)
        found[name] = torch.tensor([few + row[name] if side == "left" else row[name] + few for few, row in pairs])
    return found
