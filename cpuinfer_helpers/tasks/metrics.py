"""What tells whether a prepared model's answers are still right: functions of a model, more is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from cpuinfer_helpers.interface.inputs import argument_names
from cpuinfer_helpers.tasks.batches import Model, padded_batches
from cpuinfer_helpers.tasks.kinds.registry import get_kind
from cpuinfer_helpers.tasks.task import Task
from cpuinfer_helpers.tasks.texts import encoded_texts

_ROWS = 8
_MASK = "attention_mask"


@dataclass(frozen=True)
class TaskMetric:
    """The task's main metric on its first examples, with its sign changed where less is better."""

    task: Task
    examples: int

    def __call__(self, model: Model) -> float:
        """Score a model."""
        data = self.task.kind.data
        value = self.task.evaluate(model, limit=self.examples).metrics[data.metric]
        return -value if data.less_is_better else value


@dataclass(frozen=True)
class VectorMetric:
    """The mean cosine of a model's vectors with those of the model that it was prepared from, in percent.

    Attributes
    ----------
    kind
        Name of the kind of task, which knows where the vectors are.
    batches
        Encoded texts, with a mask.
    names
        Those inputs that the model takes.
    wanted
        The model's own vectors, of shape (number, size).
    """

    kind: str
    batches: tuple[dict[str, torch.Tensor], ...]
    names: tuple[str, ...]
    wanted: torch.Tensor

    @classmethod
    def of(cls, kind: str, model: torch.nn.Module, tokenizer: Any, examples: int) -> VectorMetric:
        """For a model of a kind, on so many shipped texts."""
        texts = get_kind(kind).texts("heldout")[:examples]
        # Not every tokenizer gives a mask.
        rows = [{**row, _MASK: [1] * len(row["input_ids"])} for row in encoded_texts(tokenizer, texts)]
        rows_of_batch = 1 if tokenizer.pad_token_id is None else _ROWS
        batches = tuple(padded_batches(tokenizer, rows, rows_of_batch, None, "length"))
        names = tuple(name for name in rows[0] if name in argument_names(model))
        return cls(kind, batches, names, _vectors(kind, model, batches, names))

    def __call__(self, model: Model) -> float:
        """Compare a model."""
        seen = _vectors(self.kind, model, self.batches, self.names)
        return 100.0 * torch.nn.functional.cosine_similarity(seen, self.wanted, dim=-1).mean().item()


def _vectors(
    kind: str, model: Model, batches: tuple[dict[str, torch.Tensor], ...], names: tuple[str, ...]
) -> torch.Tensor:
    found = []
    for batch in batches:
        with torch.no_grad():
            outputs = model(**{name: batch[name] for name in names})
        found.append(get_kind(kind).vectors(outputs, batch).float())
    return torch.cat(found)
