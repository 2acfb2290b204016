"""The Trainer's arguments, with the flags of the guide on every version of transformers."""

from __future__ import annotations

from dataclasses import dataclass, field

import transformers

from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.recipes import get_recipe
from cpuinfer_helpers.trainer.plan import precision_of

ON_FAILURE = ("fallback", "raise")


@dataclass
class JitTrainingArguments(transformers.TrainingArguments):
    """Drop-in for ``transformers.TrainingArguments``, in which the guide's flags exist and do what they say.

    All other arguments are those of the installed transformers. ``bf16`` and ``bf16_full_eval`` together with
    ``jit_mode_eval`` evaluate in BF16.

    Parameters
    ----------
    jit_mode_eval
        Trace the model before evaluation and prediction, prove that the trace gives the model's answers, and use it.
    use_ipex
        Have IPEX optimise the model before it is traced. For evaluation only; training is left to PyTorch.
    no_cuda
        The older name of ``use_cpu``.
    jit_failure
        What happens where tracing was asked for and cannot be done. ``fallback``: the eager model answers, with a
        WARNING, and ``jit_receipt`` has the reason. ``raise``: a RecipeError.
    jit_recipe
        Backend of the recipe to use, such as ``onednn-graph``, ``torchscript`` or ``openvino``. Unless given, ``ipex``
        with ``use_ipex``, and without it ``onednn-graph``, or ``torchscript`` for models that the former cannot take.
        The precision follows ``bf16`` and ``bf16_full_eval``.
    group_eval_by_length
        Evaluate inputs of similar length together, and cut padding off that a whole batch has. Predictions come back
        in the order of the dataset. ``eval_loss`` is the mean over batches, so it depends a little on which rows share
        one; that of question answering also counts padded positions.

    Raises
    ------
    InputError
        If ``jit_failure`` or ``jit_recipe`` is unknown, or ``jit_recipe`` contradicts the other flags.
    """

    jit_mode_eval: bool = field(default=False, metadata={"help": "Trace the model for evaluation and prediction."})
    use_ipex: bool = field(default=False, metadata={"help": "Have IPEX optimise the model before it is traced."})
    no_cuda: bool = field(default=False, metadata={"help": "The older name of --use_cpu."})
    jit_failure: str = field(
        default="fallback",
        metadata={"help": "If the model cannot be traced: fallback (evaluate eager) or raise.", "choices": ON_FAILURE},
    )
    jit_recipe: str | None = field(
        default=None, metadata={"help": "Backend that traces: onednn-graph, torchscript, ipex ..."}
    )
    group_eval_by_length: bool = field(
        default=False, metadata={"help": "Evaluate inputs of similar length together, with less padding."}
    )

    def __post_init__(self) -> None:
        if self.jit_failure not in ON_FAILURE:
            raise InputError(f"jit_failure is {self.jit_failure!r}; choose from {', '.join(ON_FAILURE)}")
        self._check_recipe()
        self.use_cpu = self.use_cpu or self.no_cuda
        # With it accelerate would have IPEX change the model that is trained.
        use_ipex, self.use_ipex = self.use_ipex, False
        # Newer versions announce that the older name will go. Here it stays.
        with switches.warnings_ignored(".*no_cuda", FutureWarning):
            super().__post_init__()
        self.use_ipex = use_ipex

    def _check_recipe(self) -> None:
        if self.jit_recipe is None:
            return
        get_recipe(f"{self.jit_recipe}-{precision_of(self)}")
        if not self.jit_mode_eval:
            raise InputError(f"jit_recipe is {self.jit_recipe!r}, which nothing uses without jit_mode_eval; set both")
        if self.use_ipex and self.jit_recipe != "ipex":
            raise InputError(f"use_ipex and jit_recipe={self.jit_recipe!r} contradict each other; give one of them")
