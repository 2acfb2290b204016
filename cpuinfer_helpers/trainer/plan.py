"""How a Trainer's model is to be evaluated: which recipes are tried, and what counts as done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cpuinfer_helpers.recipes import Recipe, get_recipe
from cpuinfer_helpers.recipes.backends.ipex_variants import IPEX_VARIANTS

# What asks for anything but the plain FP32 model.
FLAGS = ("jit_mode_eval", "use_ipex", "bf16", "bf16_full_eval")
# In this order: the first is the fastest that needs nothing but PyTorch, the second takes more models.
_BACKENDS_OF_PYTORCH = ("onednn-graph", "torchscript")


@dataclass(frozen=True)
class EvaluationPlan:
    """How a model is to be evaluated.

    Attributes
    ----------
    requested
        The Trainer's arguments that asked for it, for the receipt.
    recipes
        What carries out the request, in the order to try; none to evaluate the eager model.
    substitutes
        What evaluates, with a WARNING, if none of them can.
    precision
        ``fp32`` or ``bf16``, also for the eager model.
    cast_weights
        Whether the eager model gets BF16 weights (``bf16_full_eval``) in place of autocast (``bf16``).
    on_failure
        ``fallback`` or ``raise``, if none of ``recipes`` can.
    label_names
        Arguments of the model that are labels.
    """

    requested: Mapping[str, Any]
    recipes: tuple[Recipe, ...]
    substitutes: tuple[Recipe, ...]
    precision: str
    cast_weights: bool
    on_failure: str
    label_names: tuple[str, ...]

    @property
    def asks(self) -> bool:
        """Whether it is anything but the plain FP32 model."""
        return any(self.requested.values())


def plan_of(args: Any, label_names: tuple[str, ...]) -> EvaluationPlan:
    """The plan that a Trainer's arguments ask for.

    Parameters
    ----------
    args
        ``JitTrainingArguments``, or transformers' own.
    label_names
        The Trainer's.
    """
    requested = {name: bool(getattr(args, name, False)) for name in FLAGS}
    precision = precision_of(args)
    recipes, substitutes = _recipes(args, requested, precision)
    return EvaluationPlan(
        requested=requested,
        recipes=recipes,
        substitutes=substitutes,
        precision=precision,
        cast_weights=requested["bf16_full_eval"],
        on_failure=getattr(args, "jit_failure", "fallback"),
        label_names=label_names,
    )


def precision_of(args: Any) -> str:
    """``fp32`` or ``bf16``: what a Trainer's arguments want evaluation to run in."""
    return "bf16" if getattr(args, "bf16", False) or getattr(args, "bf16_full_eval", False) else "fp32"


def _recipes(args: Any, requested: Mapping[str, bool], precision: str) -> tuple[tuple[Recipe, ...], tuple[Recipe, ...]]:
    of_pytorch = tuple(get_recipe(f"{backend}-{precision}") for backend in _BACKENDS_OF_PYTORCH)
    chosen = getattr(args, "jit_recipe", None)
    if requested["jit_mode_eval"]:
        if chosen:
            return (get_recipe(f"{chosen}-{precision}"),), ()
        return ((get_recipe(f"ipex-{precision}"),), of_pytorch) if requested["use_ipex"] else (of_pytorch, ())
    return ((IPEX_VARIANTS[f"ipex-untraced-{precision}"],) if requested["use_ipex"] else ()), ()
