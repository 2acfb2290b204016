"""A vector for each token of a text."""

from __future__ import annotations

import torch

from cpuinfer_helpers.tasks.kinds.base import TaskKind, Tensors


def token_vectors(outputs: Tensors, inputs: Tensors) -> torch.Tensor:
    """The last layer's vectors of all tokens that are no padding, of shape (tokens, size)."""
    return outputs["last_hidden_state"][inputs["attention_mask"].bool()]


KIND = TaskKind("feature-extraction", "AutoModel", vectors=token_vectors, told_by=None)
