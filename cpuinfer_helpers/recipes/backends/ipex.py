"""Intel Extension for PyTorch (IPEX): packed weights and graph fusions, in FP32, BF16 and static INT8."""

from __future__ import annotations

import logging
import platform
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

from cpuinfer_helpers.errors import InputError, RecipeError
from cpuinfer_helpers.interface.copies import has_own_code, with_attention
from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.machine.report import detect_isa, machine_report, no_bf16_kernels
from cpuinfer_helpers.machine.switches import native_stderr_logged, native_stdout
from cpuinfer_helpers.machine.versions import release_of
from cpuinfer_helpers.recipes.backends.torchscript import build_of_trace, export_trace, load_trace
from cpuinfer_helpers.recipes.base import SEVEN_BITS, Build, Recipe, Request, Stored, Tensors
from cpuinfer_helpers.recipes.tools.quiet import libraries_quiet
from cpuinfer_helpers.tracing.trace import frozen_trace

logger = logging.getLogger("cpuinfer_helpers")
_NAME = "intel_extension_for_pytorch"
_CHANGES = "imports IPEX, which replaces kernels, JIT passes and torch.jit.trace until this process ends"
# IPEX's own known issues say that one gives wrong scales.
_CALIBRATION_THREADS = 2
# What the profiler calls IPEX's kernels, and the partitions that it hands to oneDNN Graph: their operators, with "+".
_KERNEL = re.compile(r"(torch_)?ipex(_prepack)?::|dil_|[a-z_0-9]+(\+[a-z_0-9]+)+$")
_FP32_THROUGH_MKL = "ipex_prepack::mkl_sgemm_run"
_DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16", "u8": "uint8", "s8": "int8"}
_PRODUCTS = ("inner_product", "matmul", "convolution", "deconvolution")


class Primitive(NamedTuple):
    """One kind of oneDNN primitive that ran.

    Attributes
    ----------
    kind
        ``inner_product``, ``matmul``, ``softmax`` ...
    implementation
        With the instruction set that it uses: ``brgemm:avx512_core_bf16`` ...
    dtype
        Of its first input: ``f32``, ``bf16``, ``u8`` ...
    is_linear
        Whether it multiplies with one matrix for the whole batch, as a linear layer does and attention does not.
    """

    kind: str
    implementation: str
    dtype: str
    is_linear: bool


class HeadsByTranspose(TorchFunctionMode):
    """Record ``permute(0, 2, 1, 3)``, the way to attention heads and back, as ``transpose(1, 2)``: the same view.

    IPEX fuses a whole BF16 attention into ``ipex::bert_flash_mha`` where heads are split by permute, and only its
    scores (``ipex::mha_scores_calc``) where they are transposed. The smaller fusion is the faster one where this was
    measured (BERT-base, AMD Zen 5): 0.79 of the other's time at (1, 384), 0.79 at (8, 384), 0.95 at (1, 64).
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called for every operation while this mode is on."""
        if func is torch.Tensor.permute and not kwargs and _permuted_dims(args) == (0, 2, 1, 3):
            return args[0].transpose(1, 2)
        return func(*args, **(kwargs or {}))


def _permuted_dims(args: tuple[Any, ...]) -> tuple[Any, ...]:
    given = args[1:]
    return tuple(given[0]) if len(given) == 1 and isinstance(given[0], (tuple, list)) else given


def _build_fp32(request: Request) -> Build:
    # IPEX fuses eager attention and not SDPA, yet PyTorch's SDPA kernel is the faster one: 0.94 of the time at
    # (1, 384), 0.81 at (8, 384), the same at 128 tokens and below. Without auto_kernel_selection linear layers go to
    # MKL, which has no fusions and took 2.1 times as long.
    model = packed(own_copy(request.model, "sdpa"), auto_kernel_selection=True)
    return build_of(request, frozen_trace(model, request.inputs, random_is_constant=request.verified), model)


def _build_bf16(request: Request) -> Build:
    model = packed(own_copy(request.model, "eager"), dtype=torch.bfloat16)
    # Around the model and not around the trace: TorchScript keeps a plan, with packed weights of its own, for calls
    # under autocast and another one for all others. The cache's entries would become constants of the graph.
    model.forward = torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False)(model.forward)
    with HeadsByTranspose():
        traced = frozen_trace(model, request.inputs, random_is_constant=request.verified)
    build = build_of(request, traced, model)
    ran = build.evidence["oneDNN ran"]
    if " bf16 " not in ran:
        raise RecipeError(f"no matrix product ran in BF16, so this would be no BF16 model; oneDNN ran {ran}")
    return build


def _build_int8(request: Request) -> Build:
    model = _quantised(request)
    build = build_of(request, frozen_trace(model, request.inputs, random_is_constant=request.verified), model)
    groups = build.graph_nodes.get("ipex::LlgaFusionGroup", 0)
    if not groups:
        raise RecipeError("no part of the graph went to oneDNN's INT8 kernels (ipex::LlgaFusionGroup)")
    rows = sum(_rows(row) for row in request.calibration)
    source = f"{rows} rows" if rows else "the example alone, for want of calibration rows: expect larger errors"
    evidence = {"calibrated with": source, "INT8 partitions": f"ipex::LlgaFusionGroup {groups}", **build.evidence}
    weights = {"weights": SEVEN_BITS} if machine_report().int8_sums_overflow else {}
    return replace(build, evidence={**evidence, **weights})


def _ipex() -> ModuleType:
    """The package; what it writes about itself on import goes to the log, and only its own log keeps its settings.

    Raises
    ------
    RecipeError
        If it does not fit what is installed: then it ends the process, or tries to with a function that does not exist.
    """
    if _NAME in sys.modules:
        return sys.modules[_NAME]
    with libraries_quiet(), switches.compiled_call():
        try:
            import intel_extension_for_pytorch
        except (SystemExit, AttributeError, ImportError, OSError) as error:
            raise RecipeError(
                f"importing intel_extension_for_pytorch fails ({type(error).__name__}: {error}): it does not fit torch "
                f"{torch.__version__} or this CPU; install IPEX 2.8.0 with torch 2.8.0, or remove it"
            ) from error
    return intel_extension_for_pytorch


def own_copy(model: torch.nn.Module, attention: str) -> torch.nn.Module:
    """A copy whose parameters are its own objects over the model's memory: IPEX assigns to ``parameter.data``.

    Raises
    ------
    RecipeError
        If a layer that IPEX may put one of its own in place of has code beside its class's.
    """
    copied = with_attention(model, attention)
    for name, part in copied.named_modules():
        code = has_own_code(part) if not any(part.children()) else None
        if code:
            raise RecipeError(f"{name} ({type(part).__name__}) has {code}, which IPEX's layers would lose")
    owned = {
        id(parameter): torch.nn.Parameter(parameter.detach(), requires_grad=False) for parameter in copied.parameters()
    }
    for part in copied.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = owned[id(parameter)]
    return copied


def packed(model: torch.nn.Module, **options: Any) -> torch.nn.Module:
    """``ipex.optimize`` on a copy that may be changed."""
    # Folding looks for BatchNorm by tracing the model with torch.fx, which most transformers do not survive.
    folds = _has(model, torch.nn.modules.batchnorm._BatchNorm)
    # Its fast path reads the weights itself and cannot read packed ones.
    packs = not _has(model, torch.nn.TransformerEncoderLayer)
    packed = _ipex().optimize(
        model, inplace=True, conv_bn_folding=folds, linear_bn_folding=folds, weights_prepack=packs, **options
    )
    # The modules that replace dropout are new, and new modules are in training mode.
    return packed.eval()


def _quantised(request: Request) -> torch.nn.Module:
    """The model with INT8 weights, and activations in the ranges that calibration saw."""
    _ipex()
    from intel_extension_for_pytorch import quantization
    from tqdm.auto import tqdm

    constants = request.inputs.constants
    model, overflow = own_copy(request.model, "eager"), machine_report().int8_sums_overflow
    with _calibration_threads():
        observed = quantization.prepare(
            model,
            _weights_of_seven_bits() if overflow else quantization.default_static_qconfig_mapping,
            example_kwarg_inputs={**request.inputs.tensors, **constants},
            inplace=True,
            bn_folding=_has(model, torch.nn.modules.batchnorm._BatchNorm),
        )
        rows = _calibration_rows(request)
        for row in tqdm(rows, desc="calibrating", leave=False, delay=2.0):
            observed(**row, **constants)
        return quantization.convert(observed, inplace=True).eval()


def _weights_of_seven_bits() -> Any:
    """IPEX's default configuration with less of the weights' range in use."""
    from torch.ao.quantization import HistogramObserver, PerChannelMinMaxObserver, QConfig, QConfigMapping

    weight = PerChannelMinMaxObserver.with_args(
        dtype=torch.qint8, qscheme=torch.per_channel_symmetric, reduce_range=True
    )
    activation = HistogramObserver.with_args(reduce_range=False)
    return QConfigMapping().set_global(QConfig(activation=activation, weight=weight))


def _calibration_rows(request: Request) -> list[dict[str, torch.Tensor]]:
    rows = []
    for number, row in enumerate(request.calibration):
        try:
            rows.append(request.inputs.only_tensors(row))
        except InputError as error:
            raise InputError(f"calibration row {number}: {error}") from error
    return rows or [request.inputs.tensors]


def _rows(tensors: dict[str, torch.Tensor]) -> int:
    return next(iter(tensors.values())).shape[0]


@contextmanager
def _calibration_threads() -> Iterator[None]:
    with switches.held(), switches.threads(max(torch.get_num_threads(), _CALIBRATION_THREADS)):
        yield


def build_of(request: Request, traced: tuple[torch.jit.ScriptModule, tuple[str, ...]], model: torch.nn.Module) -> Build:
    """The trace with what was seen to run in it."""
    build = build_of_trace(*traced, model, request.inputs)
    module, inputs, threads = traced[0], request.inputs.tensors, torch.get_num_threads()
    ran = kernels(module, inputs)
    if not ran:
        raise RecipeError("no kernel of IPEX ran: it has nothing to offer to this model")
    primitives = _primitives(module, inputs)
    return replace(
        build,
        answer=_watch_threads(module, threads),
        runs="ScriptModule of IPEX, frozen",
        evidence={
            "IPEX kernels": counts_text(ran),
            "oneDNN ran": counts_text(_products(primitives)),
            "packed for": f"{threads} threads; IPEX warns against changing their number",
        },
        weight_dtypes=_weight_dtypes(model, build.weight_dtypes),
        linear_dtypes=_linear_dtypes(primitives, ran),
    )


def _watch_threads(module: torch.jit.ScriptModule, threads: int) -> Callable[[dict[str, torch.Tensor]], Tensors]:
    """Weights are packed for a number of threads; say so once for every other number that is met."""
    warned = {threads}

    def answer(tensors: dict[str, torch.Tensor]) -> Tensors:
        now = torch.get_num_threads()
        if now not in warned:
            warned.add(now)
            logger.warning(
                "this model was packed for %s threads and now runs with %s; IPEX warns of wrong answers: "
                "call torch.set_num_threads(%s), or prepare the model again",
                threads,
                now,
                threads,
            )
        return module(**tensors)

    return answer


def kernels(module: Callable[..., Any], inputs: Mapping[str, torch.Tensor]) -> Counter[str]:
    """How often each kernel of IPEX ran in one call, by the profiler's names."""
    with torch.no_grad(), native_stderr_logged(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        module(**inputs)
    names = (event.name() for event in profiler.profiler.kineto_results.events())
    return Counter(name for name in names if _KERNEL.match(name))


def linear_dtypes(module: Callable[..., Any], inputs: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """How many linear layers ran at each dtype in one call, by what oneDNN reports and by MKL's kernel."""
    return _linear_dtypes(_primitives(module, inputs), kernels(module, inputs))


def _primitives(module: Callable[..., Any], inputs: Mapping[str, torch.Tensor]) -> Counter[Primitive]:
    """How often each primitive of oneDNN ran, by its own report."""
    with torch.no_grad(), native_stdout() as lines, _ipex().verbose(1):
        module(**inputs)
    found = (parse_primitive(line) for line in lines)
    return Counter(primitive for primitive in found if primitive)


def parse_primitive(line: str) -> Primitive | None:
    """Read a line of ``ONEDNN_VERBOSE``; None for lines that tell of no executed primitive.

    The format is in oneDNN's developer guide: ``onednn_verbose,v1,primitive,exec,engine,kind,implementation,
    propagation,memory descriptors,attributes,auxiliary,problem,milliseconds``.
    """
    fields = line.split(",")
    if not line.startswith("onednn_verbose") or "exec" not in fields or "graph" in fields:
        return None
    place = fields.index("exec")
    if len(fields) < place + 6:
        return None
    kind, implementation, memory = fields[place + 2], fields[place + 3], fields[place + 5]
    dtype = re.match(r"[a-z0-9]+[:_]([a-z0-9]+)", memory)
    weights = fields[-2].split(":")[-1] if kind == "matmul" else ""
    is_linear = kind == "inner_product" or (kind == "matmul" and weights.count("x") == 1)
    return Primitive(kind, implementation, dtype.group(1) if dtype else "", is_linear)


def _products(primitives: Counter[Primitive]) -> Counter[str]:
    """Matrix products and convolutions, which are where the time goes."""
    texts: Counter[str] = Counter()
    for primitive, count in primitives.items():
        if primitive.kind in _PRODUCTS:
            texts[f"{primitive.kind} {primitive.dtype} {primitive.implementation}"] += count
    return texts


def _linear_dtypes(primitives: Counter[Primitive], kernels: Counter[str]) -> dict[str, int]:
    """Number of linear layers by the dtype of their input."""
    counts: Counter[str] = Counter()
    for primitive, count in primitives.items():
        if primitive.is_linear:
            counts[_DTYPES.get(primitive.dtype, primitive.dtype)] += count
    counts["float32"] += kernels[_FP32_THROUGH_MKL]
    return {dtype: count for dtype, count in counts.most_common() if count}


def _weight_dtypes(model: torch.nn.Module, in_graph: Mapping[str, int]) -> Mapping[str, int]:
    """Dtypes of the weights: the graph's own where they are quantised, else those that the model was packed from.

    The graph holds packed weights as objects of IPEX, in which none can be read.
    """
    if any(dtype.startswith("q") for dtype in in_graph):
        return in_graph
    return dict(Counter(str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()).most_common())


def counts_text(counter: Counter[str]) -> str:
    """``name count`` of each, most frequent first."""
    return ", ".join(f"{name} {count}" for name, count in counter.most_common()) or "nothing"


def _has(model: torch.nn.Module, kind: type) -> bool:
    return any(isinstance(part, kind) for part in model.modules())


def _obstacle() -> str | None:
    """Importing IPEX where it does not fit ends or breaks the process, so look before."""
    if release_of(torch.__version__)[:2] != (2, 8):
        return f"IPEX 2.8 needs torch 2.8; torch {torch.__version__} is installed"
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return f"IPEX runs on x86-64 Linux only; this is {platform.machine()} {platform.system()}"
    if "AVX2" not in detect_isa():
        return "IPEX needs a CPU with AVX2"
    return None


def _export(request: Request, build: Build, folder: Path) -> dict[str, Any]:
    return {**export_trace(request, build, folder), "threads": torch.get_num_threads()}


def _restore(stored: Stored, folder: Path) -> Build:
    _ipex()
    module = load_trace(folder)
    answer = _watch_threads(module, stored.details["threads"])
    return Build(answer, runs="ScriptModule of IPEX, frozen", module=module)


def obstacle_to(precision: str) -> Callable[[], str | None]:
    """What keeps IPEX from a precision here, as a function to call when that is asked."""
    return lambda: _obstacle() or (no_bf16_kernels(in_ipex=True) if precision == "bf16" else None)


def _recipe(precision: str, summary: str, build: Callable[[Request], Build]) -> Recipe:
    return Recipe(
        f"ipex-{precision}",
        summary,
        build,
        needs=("intel-extension-for-pytorch==2.8",),
        obstacle=obstacle_to(precision),
        changes_process=_CHANGES,
        export=_export,
        restore=_restore,
    )


RECIPES = (
    _recipe("fp32", "IPEX, oneDNN linear layers with their fusions, traced and frozen", _build_fp32),
    _recipe("bf16", "IPEX with BF16 weights, traced under autocast and frozen", _build_bf16),
    _recipe("int8", "IPEX static quantisation, calibrated on your data, traced and frozen", _build_int8),
)
