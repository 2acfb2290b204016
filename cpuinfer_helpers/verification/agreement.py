"""How far a recipe's answers are from the reference's, and how often both choose the same label."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cpuinfer_helpers.verification.equality import Valid, largest_error, valid_for
from cpuinfer_helpers.verification.variations import valid_positions

Tensors = Mapping[str, torch.Tensor]

# Outputs of transformers' models that are no choice among labels.
_VECTORS = re.compile(r"(\w+_)?(last_hidden_state|hidden_states|pooler_output|embeds|embeddings)\b")


def max_error(
    expected: Sequence[Tensors], seen: Sequence[Tensors], inputs: Sequence[Mapping[str, Any]], config: Any = None
) -> float:
    """Largest absolute difference over all inputs and outputs, on valid positions.

    Parameters
    ----------
    expected, seen
        For each of ``inputs`` the outputs by name, of any shape.
    inputs
        What was asked; ``attention_mask`` of shape (batch, length) tells what is padding.
    config
        The model's configuration, which tells of frames that are made of samples.

    Returns
    -------
    float
        Infinite where shapes differ or one of the two is not a number.
    """
    worst = 0.0
    for wanted, got, given in zip(expected, seen, inputs, strict=True):
        valid = valid_positions(given, config)
        for name in wanted.keys() & got.keys():
            same_shape = wanted[name].shape == got[name].shape
            error = largest_error(wanted[name], got[name], valid) if same_shape else float("inf")
            worst = max(worst, error)
    return worst


def label_agreement(
    expected: Sequence[Tensors], seen: Sequence[Tensors], inputs: Sequence[Mapping[str, Any]], config: Any = None
) -> tuple[float | None, int]:
    """Share of equal labels, in percent, and how many there were.

    A label is the place of the largest number along an output's last dimension: the class of each row for
    (batch, classes); the class of each valid token for (batch, length, classes); and for (batch, length), such as
    ``start_logits``, the token of each row, among its valid ones. Outputs named ``...logits`` are looked at; all
    floating outputs where there are none, but for vectors as transformers names them (``last_hidden_state``,
    ``pooler_output``, ``...embeds``), whose largest number tells nothing.

    Parameters
    ----------
    expected, seen, inputs, config
        As for :func:`max_error`.

    Returns
    -------
    percent : float or None
        None if no output has labels.
    labels : int
    """
    equal = count = 0
    for wanted, got, given in zip(expected, seen, inputs, strict=True):
        valid = valid_positions(given, config)
        for name in _label_outputs(wanted):
            if name not in got or got[name].shape != wanted[name].shape:
                continue
            same = _labels(wanted[name], valid) == _labels(got[name], valid)
            equal, count = equal + int(same.sum()), count + same.numel()
    return (100.0 * equal / count if count else None), count


def _label_outputs(outputs: Tensors) -> list[str]:
    # With a single number along the last dimension there is nothing to choose.
    able = [n for n, t in outputs.items() if t.is_floating_point() and t.dim() >= 2 and t.shape[-1] > 1]
    return [name for name in able if name.endswith("logits")] or [name for name in able if not _VECTORS.match(name)]


def _labels(output: torch.Tensor, valid: Valid) -> torch.Tensor:
    positions = valid_for(output, valid)
    if positions is None:
        return output.argmax(dim=-1)
    if output.dim() == positions.dim():
        return output.masked_fill(~positions, float("-inf")).argmax(dim=-1)[positions.any(dim=-1)]
    return output[positions].argmax(dim=-1)
