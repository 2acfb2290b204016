"""The words that stand behind masks."""

from __future__ import annotations

from typing import Any

import torch

from cpuinfer_helpers.tasks.kinds.base import TaskKind, inputs_of_texts


def _inputs(
    kind: TaskKind, model: torch.nn.Module, tokenizer: Any, batch_size: int, length: int | None
) -> dict[str, torch.Tensor]:
    """Texts in which the token in the middle is masked."""
    inputs = inputs_of_texts(kind, model, tokenizer, batch_size, length)
    mask = getattr(tokenizer, "mask_token_id", None)
    if mask is not None:
        inputs["input_ids"][:, inputs["input_ids"].shape[1] // 2] = mask
    return inputs


# Transformers lists BART and its kin here too, which are rather saved to write texts.
KIND = TaskKind("fill-mask", "AutoModelForMaskedLM", inputs=_inputs, told_by="MaskedLM")
