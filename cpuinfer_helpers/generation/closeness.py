"""How near logits are to the model's own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

# Largest relative error of the logits of one token. FP32: sums in another order make about 1e-6, as everywhere.
# FP16 keeps 11 bits of each weight (2**-11 = 5e-4) and sums of many products err by less; BF16 keeps 8 bits of weights
# and products. 8 and 4 bits: what is asked of their average and of perplexity is stricter, see `verification`.
LARGEST_ERROR = {"fp32": 1e-4, "fp16w": 5e-3, "bf16": 5e-2, "int8": 1e-1, "int4": 1.0}


@dataclass(frozen=True)
class Closeness:
    """Logits beside the model's own.

    Attributes
    ----------
    worst, mean
        Relative error of one token's logits: the root of the mean square of the differences, as a share of that of the
        model's own logits, both about their mean over the vocabulary, which a softmax does not see. The worst token's,
        and over all tokens.
    tokens
        Number of tokens whose logits were compared.
    same
        For how many of them the same token is the most likely one.
    decided
        For how many the model's own choice is so clear that no error within the tolerance changes it.
    same_decided
        For how many of these it is the same token.
    """

    worst: float
    mean: float
    tokens: int
    same: int
    decided: int
    same_decided: int


def closeness(expected: torch.Tensor, seen: torch.Tensor, tolerance: float) -> Closeness:
    """Compare logits with the model's own.

    Parameters
    ----------
    expected, seen
        Logits (tokens, vocabulary).
    tolerance
        Largest relative error of one token's logits.

    Returns
    -------
    Closeness
        Infinitely far where what is seen has other numbers than finite ones.

    Examples
    --------
    >>> logits = torch.tensor([[1.0, 2.0, 4.0]])
    >>> closeness(logits, logits + 5, 1e-4).worst < 1e-6
    True
    """
    wanted, got = _about_mean(expected), _about_mean(seen)
    scale = wanted.square().mean(dim=-1).sqrt().clamp(min=torch.finfo(torch.float32).tiny)
    errors = (got - wanted).square().mean(dim=-1).sqrt() / scale
    errors = torch.where(errors.isfinite(), errors, torch.full_like(errors, math.inf))
    same = expected.argmax(dim=-1) == seen.argmax(dim=-1)
    best = wanted.topk(2, dim=-1).values
    decided = (best[:, 0] - best[:, 1]) > _reach(tolerance, scale, wanted.shape[-1])
    return Closeness(
        worst=errors.max().item(),
        mean=errors.square().mean().sqrt().item(),
        tokens=len(errors),
        same=int(same.sum()),
        decided=int(decided.sum()),
        same_decided=int((same & decided).sum()),
    )


def perplexity(logits: torch.Tensor, ids: torch.Tensor) -> float:
    """How many tokens a model hesitates between on average: the exponential of the mean negative log likelihood.

    Parameters
    ----------
    logits
        (batch, tokens, vocabulary), of a text.
    ids
        The text, (batch, tokens).
    """
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
    return math.exp(min(loss.item(), 700.0))


def _about_mean(logits: torch.Tensor) -> torch.Tensor:
    # -inf is what models give tokens that must not come.
    logits = logits.float().clamp(min=-1e30)
    possible = logits > -1e29
    mean = (logits * possible).sum(dim=-1, keepdim=True) / possible.sum(dim=-1, keepdim=True).clamp(min=1)
    return torch.where(possible, logits - mean, torch.zeros_like(logits))


def _reach(tolerance: float, scale: torch.Tensor, size: int) -> torch.Tensor:
    """How far two logits can move towards each other within the tolerance, if errors are spread like the logits are.

    The largest of many normal errors is about ``sqrt(2 ln n)`` times their root mean square.
    """
    return 2 * tolerance * scale * math.sqrt(2 * math.log(max(size, 2)))
