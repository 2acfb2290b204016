"""Rows and small models of every task."""

from __future__ import annotations

import threading
from typing import Any

import torch

from tests.conftest import make_bert

CLASSES = {
    "question-answering": "BertForQuestionAnswering",
    "text-classification": "BertForSequenceClassification",
    "token-classification": "BertForTokenClassification",
}
CLASS_COUNTS = {"question-answering": 2, "text-classification": 3, "token-classification": 3}


def make_rows(task: str, count: int = 7, width: int = 40, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of different lengths, padded to the same width, with labels."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(count):
        length = 8 + (number * 11) % (width - 8)
        ids = torch.randint(5, 120, (length,), generator=generator).tolist()
        padding = width - length
        row: dict[str, Any] = {
            "input_ids": ids + [0] * padding,
            "attention_mask": [1] * length + [0] * padding,
            "token_type_ids": [0] * 4 + [1] * (length - 4) + [0] * padding,
        }
        if task == "question-answering":
            row |= {"start_positions": number, "end_positions": number + 1}
        elif task == "text-classification":
            row["labels"] = number % 3
        else:
            row["labels"] = [(number + i) % 3 for i in range(length)] + [-100] * padding
        rows.append(row)
    return rows


def make_model(task: str = "question-answering", **config: Any) -> torch.nn.Module:
    """The small BERT of a task."""
    return make_bert(CLASSES[task], num_labels=CLASS_COUNTS[task], **config)


class Locked(torch.nn.Module):
    """Cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.lock = make_model("text-classification"), threading.Lock()

    def forward(self, **inputs):
        return self.model(**inputs)
