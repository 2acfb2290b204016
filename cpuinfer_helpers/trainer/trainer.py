"""``Trainer`` with the guide's flags: they work on every version of transformers, and say what they did."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import transformers

from cpuinfer_helpers.machine.switches import freed_memory_kept
from cpuinfer_helpers.receipts import Receipt
from cpuinfer_helpers.trainer import grouping
from cpuinfer_helpers.trainer.emulation import Forecast, warn_of_emulation, why_emulated
from cpuinfer_helpers.trainer.fingerprint import fingerprint
from cpuinfer_helpers.trainer.plan import EvaluationPlan, plan_of
from cpuinfer_helpers.trainer.stand_in import StandIn

logger = logging.getLogger("cpuinfer_helpers")

# What transformers 4's Trainer would do itself, to the user's own model.
_FLAGS_OF_TRANSFORMERS = ("jit_mode_eval", "use_ipex")
# Up to version 4 evaluate() takes the compilation out of the runtime by itself, from 5 on only model preparation.
_SUBTRACTS_COMPILATION = hasattr(transformers.Trainer, "torch_jit_model_eval")


class JitTrainer(transformers.Trainer):
    """Drop-in for ``transformers.Trainer`` that evaluates and predicts as ``JitTrainingArguments`` ask for.

    Takes the arguments of ``Trainer``, for evaluation on the CPU. With ``jit_mode_eval`` the model is traced on the
    first batch, seen to give the eager model's answers, and kept for later evaluations while neither weights nor
    configuration change. The user's model is left as it is: what is evaluated is a copy that shares its weights, in
    the precision that these arguments ask for, whatever another Trainer in the process has asked accelerate for.

    Where BF16 is emulated, an evaluation in it begins with a WARNING that says why and what that costs. A second one,
    by the first batch, estimates how long the whole evaluation takes, and how long it would take in FP32.

    Where ``jit_mode_eval``, ``use_ipex``, ``bf16`` or ``bf16_full_eval`` is set, metrics get

    * ``eval_jit_compilation_time``: seconds for preparation and its verification, not part of ``eval_runtime``; 0 where
      an earlier preparation was used again. What is run for the estimate of emulated BF16 alone is a part of it;
    * ``eval_jit_traced``: whether a ScriptModule answered;
    * ``eval_jit_recipe``: what answered;
    * ``eval_jit_bf16``: ``emulated``, where that is so;
    * ``eval_jit_reason``: why it is not what was asked for, where it is not.

    Attributes
    ----------
    jit_receipt : Receipt or None
        What the last evaluation ran; None before the first.

    Examples
    --------
    A folder for the Trainer's own files, a model and rows of yours in place of ``out``, ``model`` and ``rows``:

    >>> args = JitTrainingArguments("out", use_cpu=True, jit_mode_eval=True)  # doctest: +SKIP
    >>> JitTrainer(model, args, eval_dataset=rows).evaluate()["eval_jit_traced"]  # doctest: +SKIP
    True
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.jit_receipt: Receipt | None = None
        self._stand_in: StandIn | None = None
        self._prepared_for: Any = None
        self._forecast: Forecast | None = None
        super().__init__(*args, **kwargs)

    # --- what transformers calls around an evaluation

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers'; what ran is added to the metrics."""
        return self._seen(super().evaluation_loop, dataloader, *args, **kwargs)

    def prediction_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers' older loop, where there is one; what ran is added to the metrics."""
        return self._seen(super().prediction_loop, dataloader, *args, **kwargs)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As transformers'; with ``group_eval_by_length``, rows of similar length are in the same batch."""
        if isinstance(eval_dataset, str):
            dataset = self.eval_dataset[eval_dataset]
        else:
            dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        lengths = self._lengths_to_group(dataset)
        if lengths is None:
            return super().get_eval_dataloader(eval_dataset)
        rows = grouping.rows_at(dataset, grouping.longest_first(lengths))
        with self._trimmed_padding():
            return self._noted(super().get_eval_dataloader(rows), lengths)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """As transformers'; with ``group_eval_by_length``, rows of similar length are in the same batch."""
        lengths = self._lengths_to_group(test_dataset)
        if lengths is None:
            return super().get_test_dataloader(test_dataset)
        rows = grouping.rows_at(test_dataset, grouping.longest_first(lengths))
        with self._trimmed_padding():
            return self._noted(super().get_test_dataloader(rows), lengths)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers'. In an evaluation every batch's loss is its own mean, however many processes share it."""
        if model is self._stand_in and "num_items_in_batch" in kwargs:
            kwargs["num_items_in_batch"] = None
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _wrap_model(self, model: torch.nn.Module, training: bool = True, dataloader: Any = None) -> torch.nn.Module:
        if training or not self._on_cpu():
            with _switched_off(self.args, _FLAGS_OF_TRANSFORMERS):
                return super()._wrap_model(model, training, dataloader)
        return self._stand_in_for(model)

    # --- what is evaluated

    def _on_cpu(self) -> bool:
        """Recipes are for CPUs; on another device transformers evaluates by itself, and that is said."""
        if self.args.device.type == "cpu":
            return True
        self._stand_in = self._prepared_for = None
        if self._plan().asks:
            logger.warning("nothing is traced on %s: recipes are for the CPU; set use_cpu=True", self.args.device)
        return False

    def _plan(self) -> EvaluationPlan:
        return plan_of(self.args, tuple(self.label_names))

    def _stand_in_for(self, model: torch.nn.Module) -> StandIn:
        """The one of the last evaluation, if it would be prepared in the same way again."""
        started = time.perf_counter()
        wanted = (self._plan(), fingerprint(model))
        if self._stand_in is not None and self._prepared_for == wanted:
            self._stand_in.seconds = 0.0
        else:
            self._stand_in, self._prepared_for = StandIn(model, wanted[0]), wanted
            # To know the model again is a part of preparing it.
            self._stand_in.seconds = time.perf_counter() - started
        self._stand_in.forecast = self._forecast
        return self._stand_in

    def _seen(self, loop: Any, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        order = getattr(dataloader, "_order", None)
        self._forecast = self._warned(dataloader)
        # Batches are large, and what they free is wanted again at once.
        with self._metrics_in_order(order), freed_memory_kept():
            output = loop(dataloader, *args, **kwargs)
        if order is not None:
            output = grouping.restored_output(output, order)
        self.jit_receipt = self._receipt()
        if self._stand_in and self._stand_in.plan.asks:
            output.metrics.update(self._metrics(_prefix(args, kwargs)))
        return output

    def _warned(self, dataloader: Any) -> Forecast | None:
        """What the first batch will tell, where BF16 is emulated; that it is so is told now."""
        plan = self._plan()
        why = why_emulated(plan)
        # Of the processes that share a machine, one says it.
        if not why or self.args.device.type != "cpu" or not self.is_local_process_zero():
            return None
        warn_of_emulation(plan, why)
        return Forecast.of(dataloader, getattr(dataloader, "_tokens", None))

    def _receipt(self) -> Receipt | None:
        receipt = self._stand_in.receipt if self._stand_in else None
        if receipt is None or self._forecast is None or not self._forecast.text:
            return receipt
        return replace(receipt, evidence={**receipt.evidence, "estimate": self._forecast.text})

    def _metrics(self, prefix: str) -> dict[str, Any]:
        seconds = round(self._stand_in.seconds, 4)
        found: dict[str, Any] = {f"{prefix}_jit_compilation_time": seconds}
        if not _SUBTRACTS_COMPILATION:
            found[f"{prefix}_model_preparation_time"] = seconds
        receipt = self.jit_receipt
        if receipt is None:  # there was no batch
            return found
        recipe = receipt.requested.get("recipe", f"eager-{self._stand_in.plan.precision}")
        found |= {f"{prefix}_jit_traced": receipt.script_module, f"{prefix}_jit_recipe": recipe}
        if receipt.evidence.get("BF16", "").startswith("emulated"):
            found[f"{prefix}_jit_bf16"] = "emulated"
        if receipt.reason:
            found[f"{prefix}_jit_reason"] = receipt.reason
        return found

    # --- grouping by length

    def _lengths_to_group(self, dataset: Any) -> Any:
        """Lengths by which to group a dataset; None where that is not asked for or cannot be done."""
        if not getattr(self.args, "group_eval_by_length", False) or dataset is None or isinstance(dataset, dict):
            return None
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            why = "it has no length or no positions"
        elif not self.args.eval_do_concat_batches:
            why = "eval_do_concat_batches is off, and batches cannot be put back in order"
        else:
            lengths = grouping.lengths_of(dataset)
            if lengths is not None:
                return lengths
            why = "its rows have neither input_ids nor attention_mask"
        logger.warning("group_eval_by_length asked for, but the dataset is evaluated as it comes: %s", why)
        return None

    def _noted(self, dataloader: Any, lengths: Any) -> Any:
        """The dataloader with the order of its rows and the sizes of its batches, for the loop."""
        dataloader._order = grouping.longest_first(lengths)
        dataloader._tokens = grouping.tokens_of_batches(lengths, self.args.eval_batch_size)
        return dataloader

    @contextmanager
    def _trimmed_padding(self) -> Iterator[None]:
        collator = self.data_collator
        self.data_collator = grouping.TrimmedPadding(collator, labels=self.label_names)
        try:
            yield
        finally:
            self.data_collator = collator

    @contextmanager
    def _metrics_in_order(self, order: Any) -> Iterator[None]:
        """Have the user's metric see rows in the order of the dataset."""
        compute_metrics = self.compute_metrics
        if order is not None and compute_metrics is not None and not self.args.batch_eval_metrics:
            self.compute_metrics = grouping.restoring(compute_metrics, order)
        try:
            yield
        finally:
            self.compute_metrics = compute_metrics


def _prefix(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Of the metrics; the fifth argument of the loops."""
    return kwargs.get("metric_key_prefix", args[3] if len(args) > 3 else "eval")


@contextmanager
def _switched_off(args: Any, names: tuple[str, ...]) -> Iterator[None]:
    before = {name: getattr(args, name) for name in names if hasattr(args, name)}
    for name in before:
        setattr(args, name, False)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(args, name, value)
