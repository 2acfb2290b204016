"""The loss of a batch from its logits, so that a trace needs no labels and takes batches with and without them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

Tensors = Mapping[str, torch.Tensor]
# From the outputs without a loss and the labels by name.
LossFunction = Callable[[Any, Tensors], torch.Tensor]

# The same function on the same logits: what is left are sums in another order.
_RELATIVE_TOLERANCE = 1e-5


def loss_of(model: torch.nn.Module, output: Any, labels: Tensors) -> LossFunction | None:
    """The function that gives the model's own loss, if transformers knows one for the model and it proves right.

    Parameters
    ----------
    model
        Eager, in evaluation mode.
    output
        What it returned with the labels.
    labels
        By argument name.

    Returns
    -------
    callable or None
        None if what transformers would compute is not the loss that the model has returned.
    """
    expected, without_loss = split_loss(output)
    for candidate in _candidates(model):
        try:
            found = candidate(without_loss, labels)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            continue  # made for other outputs or other labels
        if _same(expected, found):
            return candidate
    return None


def split_loss(output: Any) -> tuple[torch.Tensor, Any]:
    """Loss and everything else of an output that was made with labels, as the Trainer tells them apart."""
    if isinstance(output, Mapping):
        return output["loss"], {name: value for name, value in output.items() if name != "loss"}
    return output[0], output[1:]


def with_loss(output: Any, loss: torch.Tensor) -> Any:
    """The same output as the model gives with labels: the loss by its name, or first."""
    if isinstance(output, Mapping):
        return type(output)(**{"loss": loss, **output})
    return (loss, *output) if isinstance(output, (tuple, list)) else (loss, output)


def _candidates(model: torch.nn.Module) -> list[LossFunction]:
    """By the form in which transformers' loss functions want logits and labels."""
    # Asked first, because transformers warns of classes for which it has none.
    known = hasattr(model, "_loss_function") or getattr(model, "loss_type", None) is not None
    function = model.loss_function if known else None
    if not callable(function):
        return []
    config = model.config

    def of_spans(output: Any, labels: Tensors) -> torch.Tensor:
        start, end = _entries(output, ("start_logits", "end_logits"))
        return function(start, end, labels["start_positions"], labels["end_positions"])

    def of_logits(name: str, setting: str, value: Any, output: Any, labels: Tensors) -> torch.Tensor:
        (logits,) = _entries(output, ("logits",))
        return function(labels=labels["labels"], **{name: logits, setting: value})

    return [
        of_spans,
        partial(of_logits, "pooled_logits", "config", config),
        partial(of_logits, "logits", "config", config),
        partial(of_logits, "logits", "vocab_size", getattr(config, "vocab_size", None)),
    ]


def _entries(output: Any, names: tuple[str, ...]) -> list[torch.Tensor]:
    """By name from a mapping, else the first ones."""
    if isinstance(output, Mapping):
        return [output[name] for name in names]
    return [output[position] for position in range(len(names))]


def _same(expected: Any, found: Any) -> bool:
    if not isinstance(expected, torch.Tensor) or not isinstance(found, torch.Tensor) or expected.shape != found.shape:
        return False
    one, other = expected.double().flatten().tolist(), found.double().flatten().tolist()
    return all(math.isclose(a, b, rel_tol=_RELATIVE_TOLERANCE, abs_tol=1e-7) for a, b in zip(one, other, strict=True))
