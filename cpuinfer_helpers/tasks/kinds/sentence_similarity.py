"""A vector for each text, near those of texts that mean the same."""

from __future__ import annotations

import torch

from cpuinfer_helpers.tasks.kinds.base import TaskKind, Tensors


def text_vectors(outputs: Tensors, inputs: Tensors) -> torch.Tensor:
    """The mean of the last layer's vectors of each row's tokens, padding left out, of shape (rows, size)."""
    mask = inputs["attention_mask"][..., None].float()
    return (outputs["last_hidden_state"].float() * mask).sum(dim=1) / mask.sum(dim=1)


KIND = TaskKind("sentence-similarity", "AutoModel", vectors=text_vectors, told_by=None)
