"""Evaluate rows of similar length together, with no more padding than each batch needs, and restore the order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cpuinfer_helpers.recipes.tools.buckets import BUCKET_STEP

logger = logging.getLogger("cpuinfer_helpers")

# What tokenizers give, a number for each token.
_OF_TOKENS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "special_tokens_mask")
# What losses leave out.
_NO_LABEL = -100


def lengths_of(dataset: Any) -> np.ndarray | None:
    """Columns that each of a dataset's rows needs: those up to its last token that is no padding.

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


def as_long(batch: Mapping[str, Any], length: int) -> list[str]:
    """Names of the tensors with so many columns: of positions, or by chance."""
    return [
        name
        for name, value in batch.items()
        if isinstance(value, torch.Tensor) and value.dim() >= 2 and value.shape[1] == length
    ]


def cut_columns(batch: Mapping[str, Any], names: Iterable[str], cut: int) -> dict[str, Any]:
    """The batch with only the first so many columns in the tensors of these names; all else as it is."""
    return {**batch, **{name: batch[name][:, :cut].contiguous() for name in names}}


class TrimmedPadding:
    """A data collator that cuts off what is padding in all rows of its batch.

    What is as wide as the sequence need not be of its positions: as many labels as there are tokens, say. So nothing of
    a batch is cut unless everything in it that is so wide is known to follow the tokens: what tokenizers give; inputs
    whose rows were seen to be as long as those of the tokens at two lengths, and at no other; and labels that hold what
    losses leave out wherever the mask says padding.

    Parameters
    ----------
    collator
        Makes the batch.
    step
        Batches are cut to a multiple of this: recipes that compile for a length see fewer of them.
    labels
        Names of the labels.
    """

    def __init__(
        self, collator: Callable[[list[Any]], Any], step: int = BUCKET_STEP, labels: Iterable[str] = ("labels",)
    ) -> None:
        self.collator = collator
        self.step = step
        self.labels = frozenset(labels)
        # By name: the lengths at which rows were seen to be as long as their tokens; and which were seen not to be.
        self._along: dict[str, set[int]] = {}
        self._apart: set[str] = set()

    def __call__(self, rows: list[Any]) -> Any:
        """The batch, as short as its longest row allows. Padding is cut on the right only."""
        # Before the collator, which may change the rows.
        self._look(rows)
        batch = self.collator(rows)
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
            return batch
        length = mask.shape[1]
        columns = torch.nonzero(mask.any(dim=0))
        longest = int(columns.max()) + 1 if len(columns) else length
        cut = min(length, -(-longest // self.step) * self.step)
        names = as_long(batch, length)
        unclear = [name for name in names if not self._follows(name, batch[name], mask)]
        if unclear and cut < length:
            logger.debug("padding stays, as nobody can tell whether %s is as long as the tokens", unclear[0])
        return batch if unclear or cut == length else cut_columns(batch, names, cut)

    def _look(self, rows: list[Any]) -> None:
        """Note which values of rows are as long as their tokens."""
        for row in rows:
            length = _columns_of(row.get("input_ids")) if isinstance(row, Mapping) else None
            if length is None:
                continue
            for name, value in row.items():
                count = _columns_of(value)
                if count == length:
                    self._along.setdefault(name, set()).add(length)
                elif count is not None:
                    self._apart.add(name)

    def _follows(self, name: str, value: torch.Tensor, mask: torch.Tensor) -> bool:
        if name in _OF_TOKENS or name in self._apart:
            return name in _OF_TOKENS
        if name in self.labels:
            return not value.is_floating_point() and bool((value[mask == 0] == _NO_LABEL).all())
        return len(self._along.get(name, ())) > 1


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
    """Columns up to the last token that is no padding: padding on the left is not cut off."""
    mask = row.get("attention_mask")
    if mask is None:
        return len(row["input_ids"])
    columns = np.flatnonzero(np.asarray(mask))
    return int(columns[-1]) + 1 if len(columns) else 0


def _columns_of(value: Any) -> int | None:
    """How many there are along the first dimension of a row's value; None for numbers and texts."""
    if isinstance(value, (list, tuple)):
        return len(value)
    shape = getattr(value, "shape", None)
    return shape[0] if shape else None
