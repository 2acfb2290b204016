"""Evaluate rows of similar length together, with no more padding than each batch needs, and restore the order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cpuinfer_helpers.recipes.buckets import BUCKET_STEP


def lengths_of(dataset: Any) -> np.ndarray | None:
    """Tokens in each of a dataset's rows that are no padding.

    Parameters
    ----------
    dataset
        With a length; its rows are mappings with ``input_ids``, and ``attention_mask`` where they are padded.

    Returns
    -------
    ndarray of int or None
        None if the rows tell no length.
    """
    names = getattr(dataset, "column_names", None)
    if isinstance(names, list):
        name = next((name for name in ("attention_mask", "input_ids") if name in names), None)
        columns: Sequence[Any] = dataset[name] if name else ()
        if name is None:
            return None
        return np.array([_length_of({name: row}) for row in columns])
    lengths = []
    for index in range(len(dataset)):
        row = dataset[index]
        if not isinstance(row, Mapping) or ("input_ids" not in row and "attention_mask" not in row):
            return None
        lengths.append(_length_of(row))
    return np.array(lengths)


def longest_first(lengths: np.ndarray) -> np.ndarray:
    """Positions of rows of these lengths, longest first: what the longest batch needs is known at once."""
    return np.argsort(-lengths, kind="stable")


def tokens_of_batches(lengths: np.ndarray, batch_size: int, step: int = BUCKET_STEP) -> list[int]:
    """Tokens in each batch of rows that come longest first, cut as :class:`TrimmedPadding` cuts them."""
    ordered = lengths[longest_first(lengths)]
    starts = range(0, len(ordered), batch_size)
    widths = [-(-max(int(ordered[start]), 1) // step) * step for start in starts]
    return [width * min(batch_size, len(ordered) - start) for width, start in zip(widths, starts, strict=True)]


def rows_at(dataset: Any, positions: Iterable[int]) -> Any:
    """These rows of a dataset, in this order; a ``datasets.Dataset`` stays one, so that its columns can be chosen."""
    wanted = [int(position) for position in positions]
    if hasattr(dataset, "select") and hasattr(dataset, "column_names"):
        return dataset.select(wanted)
    return torch.utils.data.Subset(dataset, wanted)


def cut_columns(batch: Mapping[str, Any], length: int, cut: int) -> dict[str, Any]:
    """The batch with only so many columns in every tensor that has ``length`` of them; all else as it is."""
    return {name: value[:, :cut].contiguous() if _is_as_long(value, length) else value for name, value in batch.items()}


class TrimmedPadding:
    """A data collator that cuts off what is padding in all rows of its batch.

    Parameters
    ----------
    collator
        Makes the batch.
    step
        Batches are cut to a multiple of this: recipes that compile for a length see fewer of them.
    """

    def __init__(self, collator: Callable[[list[Any]], Any], step: int = BUCKET_STEP) -> None:
        self.collator = collator
        self.step = step

    def __call__(self, rows: list[Any]) -> Any:
        """The batch, as short as its longest row allows. Padding is cut on the right only."""
        batch = self.collator(rows)
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
            return batch
        length = mask.shape[1]
        columns = torch.nonzero(mask.any(dim=0))
        longest = int(columns.max()) + 1 if len(columns) else length
        cut = min(length, -(-longest // self.step) * self.step)
        return batch if cut == length else cut_columns(batch, length, cut)


def restored(values: Any, order: np.ndarray) -> Any:
    """Arrays of rows, nested in any way, in the order that the dataset had; others as they are."""
    if isinstance(values, Mapping):
        return type(values)({name: restored(value, order) for name, value in values.items()})
    if isinstance(values, (tuple, list)):
        return type(values)(restored(value, order) for value in values)
    if not isinstance(values, np.ndarray) or values.ndim == 0 or len(values) != len(order):
        return values
    back = np.empty_like(values)
    back[order] = values
    return back


def restored_output(output: Any, order: np.ndarray) -> Any:
    """An ``EvalLoopOutput`` or ``PredictionOutput`` with its rows in the order that the dataset had."""
    return output._replace(predictions=restored(output.predictions, order), label_ids=restored(output.label_ids, order))


def restoring(compute_metrics: Callable[[Any], Any], order: np.ndarray) -> Callable[[Any], Any]:
    """The user's metric, given rows in the order of the dataset."""

    def compute(evaluated: Any) -> Any:
        names = ("predictions", "label_ids", "inputs", "losses")
        values = {name: getattr(evaluated, name, None) for name in names}
        return compute_metrics(type(evaluated)(**{name: restored(value, order) for name, value in values.items()}))

    return compute


def _length_of(row: Mapping[str, Any]) -> int:
    """Tokens that are no padding."""
    mask = row.get("attention_mask")
    return len(row["input_ids"]) if mask is None else int(np.asarray(mask).astype(bool).sum())


def _is_as_long(value: Any, length: int) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() >= 2 and value.shape[1] == length
