"""torch.compile for single tokens, over keys and values in tensors of fixed size; prompts are read by the model itself.

A compiled graph gains where Python's own time counts, which is one token at a time; for a prompt of many tokens it is
the same products. So only that is compiled, which halves what there is to wait for: one graph for a single row and one
for several.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.errors import RecipeError
from cpuinfer_helpers.generation.encoding.sources import has_encoder
from cpuinfer_helpers.generation.layout import layout_of
from cpuinfer_helpers.generation.positions import attention_kinds, positions_of
from cpuinfer_helpers.generation.step import GenerationRecipe, StepBuild, StepRequest, StoredStep
from cpuinfer_helpers.generation.traced_step import TraceableStep, TracedState, TracedStep
from cpuinfer_helpers.generation.weights import limit_of, refuse_less_than_fp32, weights_of
from cpuinfer_helpers.interface.copies import attention_of, cast_copy, untouched
from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.machine.scratch import temporary_folder
from cpuinfer_helpers.recipes.backends.torch_compile import counted, obstacle, with_own_code
from cpuinfer_helpers.recipes.tools.quiet import libraries_quiet
from cpuinfer_helpers.saving.weights import read_model, write_model

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class CompiledStep(TracedStep):
    """Runs compiled code for one token a row, and a module for more.

    Parameters
    ----------
    module
        For several tokens; takes what a :class:`TraceableStep` takes.
    compiled
        For one; the same without which tokens' logits are wanted.
    layout, kinds, dtype, limit
        As for :class:`TracedStep`.
    """

    def __init__(self, module: Any, compiled: Callable[..., torch.Tensor], *described: Any) -> None:
        super().__init__(module, *described)
        self.compiled = compiled

    def _feed(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, state: TracedState, last: int
    ) -> torch.Tensor:
        if ids.shape[1] > 1:
            return super()._feed(ids, mask, positions, state, last)
        from torch._inductor import config

        # All of these decide which graph runs, and are read at every call; see the recipe for other tasks.
        caller, settings = torch.inference_mode(False), {"freezing": True, "force_disable_caches": True}
        with switches.compiled_call(), caller, torch.no_grad(), config.patch(settings):
            inputs = self._inputs(_plain(ids), mask, _plain(positions), state, last)
            return self.compiled(*self._of_fixed_size(inputs, state))

    def _of_fixed_size(self, inputs: tuple[torch.Tensor, ...], state: TracedState) -> tuple[torch.Tensor, ...]:
        """With masks over all the room there is, so that one graph does for every number of tokens."""
        ids, positions, slots, _, *_ = inputs
        first = len(inputs) - len(state.tensors) - len(self.kinds)
        lowest = torch.finfo(self.dtype).min
        masks = [
            torch.nn.functional.pad(mask, (0, state.capacity - mask.shape[-1]), value=lowest)
            for mask in inputs[first : first + len(self.kinds)]
        ]
        return (ids, positions, slots, *masks, *inputs[first + len(self.kinds) :])


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor without a view's past, for which torch.compile would compile anew."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _build(request: StepRequest) -> StepBuild:
    if has_encoder(request.model):
        raise RecipeError("torch.compile is not told what a decoder reads of an encoder yet; torchscript-fp32 is")
    dtype = _DTYPES[request.precision]
    if dtype == torch.float32:
        refuse_less_than_fp32(request.model)
    model = untouched(request.model) if dtype == torch.float32 else cast_copy(request.model, dtype)
    return _compiled(model, dtype, limit_of(request.model))


def _compiled(model: torch.nn.Module, dtype: torch.dtype, limit: int | None) -> StepBuild:
    weights, layout = weights_of(model), layout_of(model)
    kinds = attention_kinds(model.config.get_text_config(decoder=True))
    adapter = TraceableStep(model, tuple(kinds)).eval()
    with libraries_quiet() as warnings, counted() as seen:
        # The compiler writes there. Where it cannot, its import breaks off, and cannot be done again in this process.
        with temporary_folder(), switches.compiled_call():
            compiled = torch.compile(with_own_code(adapter.of_all), dynamic=True)
        step = CompiledStep(adapter, compiled, layout, kinds, dtype, limit)
        _compile_now(step)
    if not seen["graphs compiled"]:
        raise RecipeError("torch.compile made no graph of it: all of it would run eagerly")
    name = str(dtype).removeprefix("torch.")
    return StepBuild(
        step=step,
        runs="torch.compile for single tokens, the eager model for prompts",
        weights=weights.dtypes,
        compute=name,
        cache=name,
        attention=attention_of(model) or "the model's own",
        converted=weights.by_dtype.get(name, 0),
        layers=weights.layers,
        weight_bytes=weights.read,
        token_bytes=layout.bytes_in(dtype),
        evidence={what: str(count) for what, count in seen.items()},
        warnings=tuple(warnings),
    )


def _compile_now(step: CompiledStep) -> None:
    """Make the graphs for one row and for several, which would otherwise be made in the middle of a text."""
    for rows in (1, 2):
        state = step.new_state(rows, 1)
        for total in (1, 2):
            mask = torch.ones(rows, total, dtype=torch.long)
            step.feed(torch.full((rows, 1), 3), mask, positions_of(mask, 1), state)


def _export(request: StepRequest, build: StepBuild, folder: Path) -> dict[str, Any]:
    dtype = _DTYPES[request.precision]
    model = untouched(request.model) if dtype == torch.float32 else cast_copy(request.model, dtype)
    return write_model(model, folder)


def _restore(stored: StoredStep, folder: Path) -> StepBuild:
    return _compiled(read_model(stored.details, folder, None), _DTYPES[stored.precision], stored.limit)


def _recipe(precision: str, summary: str) -> GenerationRecipe:
    return GenerationRecipe(
        f"compile-{precision}", summary, _build, obstacle=obstacle, export=_export, restore=_restore
    )


RECIPES = (
    _recipe("fp32", "torch.compile for single tokens, over a cache of fixed size"),
    _recipe("bf16", "the same with weights, products and cache in BF16"),
)
