"""OpenVINO with keys and values in its own variables, in FP32 or BF16, and with weights in 8 or 4 bits."""

from __future__ import annotations

import io
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.errors import RecipeError, first_line
from cpuinfer_helpers.generation import linears
from cpuinfer_helpers.generation.encoding.sources import has_encoder
from cpuinfer_helpers.generation.layout import layout_of
from cpuinfer_helpers.generation.matrices import Matrix, bytes_read, comes_from, matrices_of
from cpuinfer_helpers.generation.positions import attention_kinds
from cpuinfer_helpers.generation.stateful import convert
from cpuinfer_helpers.generation.stateful_seen import Running, cache_dtype
from cpuinfer_helpers.generation.stateful_step import StatefulStep
from cpuinfer_helpers.generation.step import GenerationRecipe, StepBuild, StepRequest, StoredStep
from cpuinfer_helpers.generation.weights import Weights, limit_of, refuse_less_than_fp32
from cpuinfer_helpers.interface.copies import attention_of, cast_copy, with_attention
from cpuinfer_helpers.machine.signal_stack import signal_stack_kept
from cpuinfer_helpers.recipes.backends.openvino import no_bf16, settings, what_runs
from cpuinfer_helpers.recipes.tools.quiet import libraries_quiet

logger = logging.getLogger("cpuinfer_helpers")

_FILE = "model.openvino"
# Weights in 4 bits share a scale in groups of the first of these sizes that divides all rows.
_GROUPS = (64, 32)


@dataclass(frozen=True)
class _Way:
    """What a recipe asks of OpenVINO.

    Attributes
    ----------
    hint
        In what products are computed, and keys and values kept, as OpenVINO calls it.
    dtype
        The same, as PyTorch calls it.
    compress
        Stores the weights of a converted model in fewer bits, and says how; None to leave them.
    """

    hint: str
    dtype: torch.dtype
    compress: Callable[[StepRequest, Any], tuple[Any, dict[str, str]]] | None = None

    @property
    def name(self) -> str:
        """The dtype's."""
        return str(self.dtype).removeprefix("torch.")

    def converts(self, dtype: str) -> bool:
        """Whether weights in a dtype are what it asks for."""
        return "int" in dtype if self.compress else dtype == self.name


@dataclass(frozen=True)
class _Converted:
    """What is known of a converted model and cannot be seen in the compiled one; it is saved with that.

    Attributes
    ----------
    kinds
        Kinds of attention.
    layers, numbers
        In how many layers keys and values are kept, and how many numbers of each token in all.
    products
        How many linear layers have weights of each dtype.
    read
        Bytes of weights that a token reads.
    how
        How weights are stored, as texts by name.
    """

    kinds: dict[str, int | None]
    layers: int
    numbers: int
    products: dict[str, int]
    read: int
    how: dict[str, str]


@dataclass(frozen=True)
class _Build(StepBuild):
    """With what has to be saved."""

    converted_model: _Converted | None = None


def _build(request: StepRequest) -> StepBuild:
    """By SDPA; where OpenVINO does not convert that, or answers otherwise, by products and a softmax."""
    if has_encoder(request.model):
        raise RecipeError("OpenVINO cannot keep what a decoder reads of an encoder yet; torchscript-fp32 can")
    if _WAYS[request.precision].dtype == torch.float32:
        refuse_less_than_fp32(request.model)
    model = with_attention(cast_copy(request.model, torch.float32), "sdpa")
    if attention_of(model) != "sdpa":
        return _built(request, model)
    try:
        build = _built(request, model)
    except RecipeError as error:
        logger.info("OpenVINO does not take %s with SDPA: %s", type(request.model).__name__, error)
        return _by_eager(request)
    return replace(build, otherwise=lambda: _by_eager(request))


def _by_eager(request: StepRequest) -> StepBuild:
    return _built(request, with_attention(cast_copy(request.model, torch.float32), "eager"))


def _built(request: StepRequest, model: torch.nn.Module) -> StepBuild:
    way, kinds, layout = _WAYS[request.precision], attention_kinds(request.config), layout_of(model)
    with signal_stack_kept(), libraries_quiet(), _openvinos_errors():
        import openvino

        converted, warnings = convert(model, kinds, layout)
        converted, how = way.compress(request, converted) if way.compress else (converted, {})
        products = Counter(one.dtype for one in matrices_of(converted) if not one.looked_up)
        known = _Converted(kinds, len(layout.keys), layout.numbers, dict(products), bytes_read(converted), how)
        compiled = openvino.Core().compile_model(converted, "CPU", _settings(way))
        del converted
        return _seen_in(compiled, known, way, limit_of(request.model), warnings)


def _seen_in(compiled: Any, known: _Converted, way: _Way, limit: int | None, warnings: tuple[str, ...]) -> StepBuild:
    step = StatefulStep(compiled, known.kinds, way.dtype, limit)
    running, cache = Running.of(compiled, known.layers), cache_dtype(step)
    _refuse_other(way, running, cache)
    seen, nodes = what_runs(compiled)
    weights = Weights(known.read, known.read, _stored(way, running, known.products))
    return _Build(
        step=step,
        runs="OpenVINO compiled model with variables",
        weights=weights.dtypes,
        compute=f"{way.name}, weights unpacked while they are multiplied" if way.compress else way.name,
        cache=cache,
        attention=running.attention,
        converted=sum(count for dtype, count in weights.by_dtype.items() if way.converts(dtype)),
        layers=weights.layers,
        # Weights in FP32 are turned once into what they are multiplied in.
        weight_bytes=known.read // 2 if way.hint == "bf16" else known.read,
        token_bytes=known.numbers * getattr(torch, cache).itemsize,
        evidence={**seen, **running.evidence, **known.how},
        graph_nodes=nodes,
        warnings=warnings,
        converted_model=known,
    )


def _export(request: StepRequest, build: _Build, folder: Path) -> dict[str, Any]:
    (folder / _FILE).write_bytes(build.step.compiled.export_model().getvalue())
    return asdict(build.converted_model)


def _restore(stored: StoredStep, folder: Path) -> StepBuild:
    way, known = _WAYS[stored.precision], _Converted(**stored.details)
    with signal_stack_kept(), libraries_quiet(), _openvinos_errors():
        import openvino

        blob = io.BytesIO((folder / _FILE).read_bytes())
        compiled = openvino.Core().import_model(blob, "CPU", _settings(way))
        return _seen_in(compiled, known, way, stored.limit, ())


def _stored(way: _Way, running: Running, products: Mapping[str, int]) -> dict[str, int]:
    """How many layers have weights of each dtype: as seen to run, or as converted where OpenVINO has merged layers."""
    if sum(running.weights.values()) == sum(products.values()):
        return running.weights
    return {dtype if "int" in dtype else way.name: count for dtype, count in products.items()}


@contextmanager
def _openvinos_errors() -> Iterator[None]:
    try:
        yield
    except RecipeError:
        raise
    except Exception as error:  # OpenVINO and NNCF say in many ways what they cannot do
        raise RecipeError(f"OpenVINO does not take it: {first_line(error)}") from error


def _settings(way: _Way) -> dict[str, Any]:
    return {
        **settings(way.hint),
        # Unless told otherwise, it keeps keys and values in 8 bits, and rounds to 8 bits what packed weights multiply.
        "KV_CACHE_PRECISION": way.hint,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        # A thread that is bound to a core waits for it while another core is free. Beside other work a token took up
        # to a quarter less without.
        "ENABLE_CPU_PINNING": False,
    }


def _in_8_bits(request: StepRequest, converted: Any) -> tuple[Any, dict[str, str]]:
    """With a zero point for each output, which is nearer than without: 2.3 % against 2.5 % (GPT-2, random weights)."""
    import nncf

    compressed = nncf.compress_weights(converted, mode=nncf.CompressWeightsMode.INT8_ASYM)
    matrices = matrices_of(compressed)
    _refuse_left(request, matrices, ("uint8",))
    return compressed, {"stored in 8 bits": "a scale and a zero point for each output", **_embeddings(matrices)}


def _in_4_bits(request: StepRequest, converted: Any) -> tuple[Any, dict[str, str]]:
    import nncf

    group = _group(request.model)
    mode = nncf.CompressWeightsMode.INT4_ASYM
    compressed = nncf.compress_weights(converted, mode=mode, group_size=group, ratio=1.0)
    matrices = matrices_of(compressed)
    _refuse_left(request, matrices, ("uint4", "uint8"))
    wide = [one.reader for one in matrices if one.dtype == "uint8" and not one.looked_up]
    if len(wide) > 1:
        raise RecipeError(f"NNCF stores {len(wide)} layers in 8 bits instead of the last one alone: {', '.join(wide)}")
    how = f"a scale and a zero point for each {group} weights; the last layer in 8 bits"
    return compressed, {"stored in 4 bits": how, **_embeddings(matrices)}


def _group(model: torch.nn.Module) -> int:
    """How many weights share a scale."""
    head = model.get_output_embeddings()
    widths = {path: linears.plain_weight(part).shape[1] for path, part in _layers(model) if part is not head}
    for group in _GROUPS:
        if all(width % group == 0 for width in widths.values()):
            return group
    path, width = next((path, width) for path, width in widths.items() if width % _GROUPS[-1])
    raise RecipeError(
        f"4 bits need a scale for each {' or '.join(map(str, _GROUPS))} weights, and rows of {path} have {width}"
    )


def _layers(model: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    return list(linears.linear_layers(model).items())


def _embeddings(matrices: Sequence[Matrix]) -> dict[str, str]:
    looked_up = [one for one in matrices if one.looked_up]
    packed = sum(one.packed for one in looked_up)
    return {"embeddings stored in 8 bits": f"{packed} of {len(looked_up)}"}


def _refuse_left(request: StepRequest, matrices: Sequence[Matrix], dtypes: Sequence[str]) -> None:
    """Raise where fewer layers were converted than were asked for."""
    products = [one for one in matrices if not one.looked_up]
    packed = [one.reader for one in products if one.dtype in dtypes]
    paths = [path for path, _ in _layers(request.model)]
    layers = max(len(paths), len(products))
    others = linears.other_matrices(request.model)
    if len(packed) == layers and not others:
        return
    left = [path for path in paths if not any(comes_from(reader, path) for reader in packed)]
    first = next(iter([*left, *others, *(one.reader for one in products if one.reader not in packed)]))
    raise RecipeError(
        f"{len(packed)} of {layers} layers would have weights in fewer bits, the others would stay as they are: {first}"
    )


def _refuse_other(way: _Way, running: Running, cache: str) -> None:
    """Raise where OpenVINO runs something else than what was asked for."""
    if cache != way.name and not (way.hint == "bf16" and cache == "float32"):
        raise RecipeError(f"OpenVINO keeps keys and values in {cache}, not in {way.name}")
    left = {dtype: count for dtype, count in running.weights.items() if not way.converts(dtype)}
    if left:
        raise RecipeError(f"OpenVINO multiplies with weights in {', '.join(left)} in {sum(left.values())} layers")


_WAYS = {
    "fp32": _Way("f32", torch.float32),
    "bf16": _Way("bf16", torch.bfloat16),
    "int8": _Way("f32", torch.float32, _in_8_bits),
    "int4": _Way("f32", torch.float32, _in_4_bits),
}


def _recipe(precision: str, summary: str, **further: Any) -> GenerationRecipe:
    needs = ("openvino>=2024.4", *(("nncf>=2.13",) if _WAYS[precision].compress else ()))
    return GenerationRecipe(
        f"openvino-{precision}", summary, _build, needs, export=_export, restore=_restore, **further
    )


RECIPES = (
    _recipe("fp32", "converted to OpenVINO, keys and values in its variables"),
    _recipe("bf16", "the same, computed and kept in BF16", obstacle=no_bf16),
    _recipe("int8", "the same with weights stored in 8 bits by NNCF"),
    _recipe("int4", "the same with weights stored in 4 bits by NNCF"),
)
