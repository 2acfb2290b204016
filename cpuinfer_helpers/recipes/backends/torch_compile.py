"""torch.compile: PyTorch's own compiler, with the weights frozen into its graphs."""

from __future__ import annotations

import contextlib
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.errors import RecipeError
from cpuinfer_helpers.interface.adapter import named_inputs
from cpuinfer_helpers.interface.copies import attention_of
from cpuinfer_helpers.interface.outputs import take_apart
from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.machine.compiler import find_compiler
from cpuinfer_helpers.machine.scratch import temporary_folder
from cpuinfer_helpers.recipes.base import Build, Recipe, Request, Tensors
from cpuinfer_helpers.recipes.tools.quiet import libraries_quiet

Context = Callable[[], contextlib.AbstractContextManager]


def _build_fp32(request: Request) -> Build:
    return _build(request, contextlib.nullcontext, "FP32")


def _build_bf16(request: Request) -> Build:
    return _build(request, lambda: torch.autocast("cpu", dtype=torch.bfloat16), "BF16 autocast")


def _build(request: Request, precision: Context, how: str) -> Build:
    model = request.copy_with_attention("sdpa")
    constants = named_inputs(model, request.inputs, is_copy=True).constants
    # The compiler writes there. Where it cannot, its import breaks off, and cannot be done again in this process.
    with temporary_folder(), libraries_quiet(), switches.compiled_call():
        from torch._inductor import config

        # A graph for every length would take seconds of compilation each, and after eight of them torch.compile gives
        # up and runs the model eagerly. One with symbolic sizes is as fast (BERT-base at (1, 384) and (1, 128)).
        compiled = torch.compile(with_own_code(model), dynamic=True)

    def answer(tensors: dict[str, torch.Tensor]) -> Tensors:
        # All of these decide which graph runs, and are read at every call. Graphs with frozen weights come back from
        # the cache on disk even if they were compiled while another CPU capability was in force, and then answer
        # wrongly (seen with torch 2.8, with ATEN_CPU_CAPABILITY=avx2 after a run without it).
        settings = {"freezing": True, "force_disable_caches": True}
        # The caller's inference mode would get graphs of its own.
        usual = torch.inference_mode(False)
        with switches.compiled_call(), usual, torch.no_grad(), config.patch(settings), precision():
            return take_apart(compiled(**_plain(tensors), **constants))[0]

    with libraries_quiet() as warnings, counted() as seen:
        # A batch of one has a graph of its own: make both now, not in the middle of serving.
        for rows in _one_and_two_rows(request.inputs.tensors):
            answer(rows)
    if not seen["graphs compiled"]:
        raise RecipeError("torch.compile made no graph of it: all of it would run eagerly")
    return Build(
        answer,
        runs=f"torch.compile, {how}",
        evidence={name: str(count) for name, count in seen.items()},
        attention=attention_of(model),
        frozen=seen["graphs frozen"] >= seen["graphs compiled"],
        warnings=tuple(warnings),
    )


def with_own_code(model: torch.nn.Module) -> Callable[..., Any]:
    """A function that calls the model, with a code object of its own.

    torch.compile counts graphs by code object, and all models of a class share that of its ``forward``: after eight
    graphs, of however many models, it would run the ninth eagerly.
    """

    def call(*tensors: Any, **inputs: Any) -> Any:
        return model(*tensors, **inputs)

    call.__code__ = call.__code__.replace()
    return call


def _plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors, with views and those of inference mode copied, for which torch.compile would compile anew."""
    return {
        name: tensor.clone(memory_format=torch.contiguous_format) if _is_special(tensor) else tensor.contiguous()
        for name, tensor in tensors.items()
    }


def _is_special(tensor: torch.Tensor) -> bool:
    return tensor.is_inference() or tensor._base is not None


def _one_and_two_rows(tensors: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    one = {name: tensor[:1] for name, tensor in tensors.items()}
    return [one, {name: torch.cat([tensor, tensor]) for name, tensor in one.items()}]


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count what torch.compile does in the block."""
    from torch._dynamo.utils import counters
    from torch._inductor import freezing

    seen: Counter[str] = Counter({"graphs compiled": 0, "graphs frozen": 0, "graph breaks": 0})
    freeze = freezing.freeze

    def noted(*arguments: object, **settings: object) -> object:
        seen["graphs frozen"] += 1
        return freeze(*arguments, **settings)

    graphs, breaks = counters["stats"]["unique_graphs"], counters["graph_break"].total()
    with switches.patched(freezing, "freeze", noted):
        yield seen
    seen["graphs compiled"] = counters["stats"]["unique_graphs"] - graphs
    seen["graph breaks"] = counters["graph_break"].total() - breaks


def obstacle() -> str | None:
    """Why torch.compile cannot generate code here: it writes C++ that includes Python's headers."""
    if find_compiler() is None:
        return "no C++ compiler was found; install g++ or clang++, or name one in the variable CXX"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        return f"Python's headers are not installed ({header} is missing); install python3-dev or python3-devel"
    # Seen with torch 2.8 and 2.13: the linker gets the folder in two parts.
    if " " in torch.__path__[0]:
        return f"torch is installed in a path with a space ({torch.__path__[0]}), which torch.compile cannot link to"
    return None


RECIPES = (
    Recipe("compile-fp32", "torch.compile with frozen weights", _build_fp32, obstacle=obstacle),
    Recipe("compile-bf16", "torch.compile under BF16 autocast, frozen weights", _build_bf16, obstacle=obstacle),
)
