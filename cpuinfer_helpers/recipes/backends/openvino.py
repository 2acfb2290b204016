"""OpenVINO: the model converted and compiled for the CPU, in FP32, BF16, or INT8 quantised by NNCF."""

from __future__ import annotations

import io
import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.errors import RecipeError, first_line
from cpuinfer_helpers.interface.adapter import named_inputs
from cpuinfer_helpers.interface.copies import attention_of
from cpuinfer_helpers.machine import instructions
from cpuinfer_helpers.machine.report import machine_report
from cpuinfer_helpers.machine.signal_stack import signal_stack_kept
from cpuinfer_helpers.recipes.base import SEVEN_BITS, Build, Recipe, Request, Stored, Tensors
from cpuinfer_helpers.recipes.tools.arrays import array_maker
from cpuinfer_helpers.recipes.tools.quiet import libraries_quiet

_FILE = "model.openvino"
# Nodes that hold or hand over tensors and compute nothing.
_NO_WORK = ("Const", "Input", "Output")
Change = Callable[[Request, Any], tuple[Any, dict[str, str]]]

logger = logging.getLogger("cpuinfer_helpers")

# Only these are matrix products; masks are u8 too, so a u8 node elsewhere says nothing about quantisation.
_MATRIX_NODES = ("FullyConnected", "MatMul", "Convolution", "GroupConvolution", "Deconvolution")


def _build_fp32(request: Request) -> Build:
    return _build(request, lambda attention: _built(attention, request, "f32", "OpenVINO compiled model, FP32"))


def _build_bf16(request: Request) -> Build:
    def by(attention: str) -> Build:
        build = _built(attention, request, "bf16", "OpenVINO compiled model, BF16")
        if "bf16" not in build.evidence["executed precisions"]:
            raise RecipeError(f"no operation runs in BF16: {build.evidence['executed precisions']}")
        return build

    return _build(request, by)


def _build_int8(request: Request) -> Build:
    # What is not quantised runs in the fastest precision that this CPU has instructions for.
    hint = "bf16" if machine_report().bf16_native else "f32"

    def by(attention: str) -> Build:
        build = _built(attention, request, hint, f"OpenVINO compiled model, INT8 and {hint}", _quantised)
        if "i8" not in build.evidence["matrix products"] and "u8" not in build.evidence["matrix products"]:
            raise RecipeError(f"no matrix product runs in INT8: {build.evidence['matrix products']}")
        return build

    return _build(request, by)


def _build(request: Request, by: Callable[[str], Build]) -> Build:
    """By SDPA, which reaches OpenVINO as one operator; where that fails, or answers otherwise, by eager attention.

    As one operator it runs up to 8 % faster than as products and softmax (BERT-base, FP32, BF16 and INT8). But where a
    row has nothing to attend to, as padding on the left has at its beginning, it answers NaN, and PyTorch zero.
    """
    try:
        build = by("sdpa")
    except RecipeError:
        raise
    except Exception as error:  # OpenVINO converts some models by one attention only, and says so in many ways
        if attention_of(request.model) is None:
            raise
        logger.info("OpenVINO does not take %s with SDPA: %s", type(request.model).__name__, first_line(error))
        return by("eager")
    return replace(build, otherwise=lambda: by("eager")) if build.attention == "sdpa" else build


def _built(attention: str, request: Request, hint: str, runs: str, change: Change | None = None) -> Build:
    model = request.copy_with_attention(attention)
    with signal_stack_kept(), libraries_quiet() as warnings:
        import openvino

        adapter = named_inputs(model, request.inputs, is_copy=True)
        converted = openvino.convert_model(adapter, example_input=dict(request.inputs.tensors))
        converted, evidence = change(request, converted) if change else (converted, {})
        compiled = openvino.Core().compile_model(converted, "CPU", settings(hint))
        del converted
    answer = _Answer(compiled, request.inputs.tensors, adapter.spec.tensor_names())
    answer(dict(request.inputs.tensors))
    seen, kinds = what_runs(compiled)
    return Build(
        answer,
        runs=runs,
        evidence={**seen, **evidence},
        attention=attention_of(model),
        graph_nodes=kinds,
        warnings=tuple(warnings),
    )


def settings(hint: str) -> dict[str, Any]:
    """One inference at a time, on as many threads as PyTorch has, in the precision that is asked for and no other."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": hint,
    }


def _quantised(request: Request, converted: Any) -> tuple[Any, dict[str, str]]:
    """The converted model with 8-bit weights and activations, scaled by what the calibration inputs make of them."""
    import nncf

    rows = request.calibration or (request.inputs.tensors,)
    array = array_maker(request.inputs.tensors)
    arrays = [{name: array(name, row[name]) for name in request.inputs.tensors} for row in rows]
    reduced = machine_report().int8_sums_overflow
    seven_bits = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE) if reduced else None
    quantised = nncf.quantize(
        converted,
        nncf.Dataset(arrays),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(arrays),
        advanced_parameters=seven_bits,
    )
    source = f"{len(rows)} calibration inputs" if request.calibration else "the example alone: give calibration inputs"
    weights = {"weights": SEVEN_BITS} if reduced else {}
    return quantised, {"calibration": source, **weights}


class _Answer:
    """Runs the compiled model on tensors by name."""

    def __init__(self, compiled: Any, example: Tensors, outputs: Sequence[str]) -> None:
        self.compiled = compiled
        self.outputs = {name: _port(compiled.outputs, name) for name in outputs}
        # OpenVINO leaves out inputs that the model does not use.
        ports = {name: _port(compiled.inputs, name) for name in example}
        self.inputs = {name: port for name, port in ports.items() if port is not None}
        missing = [name for name, port in self.outputs.items() if port is None]
        if missing or len(self.inputs) != len(compiled.inputs):
            raise RecipeError(f"OpenVINO lost the name of {missing[0] if missing else 'an input'}")
        self.array = array_maker(example)
        self.request = compiled.create_infer_request()
        # A request runs one inference at a time.
        self.lock = threading.Lock()

    def __call__(self, tensors: dict[str, torch.Tensor]) -> Tensors:
        arrays = {port: self.array(name, tensors[name]) for name, port in self.inputs.items()}
        with self.lock:
            # Inputs are read where they are. Outputs are copied: the next inference writes over the request's own.
            results = self.request.infer(arrays, share_inputs=True, share_outputs=False)
        return {name: torch.from_numpy(results[port]) for name, port in self.outputs.items()}


def _port(ports: list[Any], name: str) -> int | None:
    """Position of the input or output that has the name among its names; the converter adds names of its own."""
    return next((position for position, port in enumerate(ports) if name in port.get_names()), None)


def what_runs(compiled: Any) -> tuple[dict[str, str], dict[str, int]]:
    """Precisions and kernels of the operations that run, from the model that OpenVINO executes."""
    precisions, matrix, kinds = Counter(), Counter(), Counter()
    for node in compiled.get_runtime_model().get_ops():
        facts = node.get_rt_info()
        kind, precision = text_of(facts, "layerType"), text_of(facts, "runtimePrecision")
        if kind in _NO_WORK:
            continue
        kinds[kind] += 1
        precisions[precision] += 1
        if kind in _MATRIX_NODES:
            matrix[f"{precision} ({text_of(facts, 'primitiveType')})"] += 1
    evidence = {"executed precisions": _counts(precisions), "matrix products": _counts(matrix)}
    return evidence, dict(kinds.most_common())


def text_of(facts: Any, name: str) -> str:
    """One of the facts that OpenVINO tells of an operation; ``unknown`` where it does not tell it."""
    return facts[name].astype(str) if name in facts else "unknown"


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common()) or "none"


def _export(request: Request, build: Build, folder: Path) -> dict[str, Any]:
    (folder / _FILE).write_bytes(build.answer.compiled.export_model().getvalue())
    return {"hint": str(build.answer.compiled.get_property("INFERENCE_PRECISION_HINT").to_string()), "runs": build.runs}


def _restore(stored: Stored, folder: Path) -> Build:
    with signal_stack_kept(), libraries_quiet():
        import openvino

        blob = io.BytesIO((folder / _FILE).read_bytes())
        compiled = openvino.Core().import_model(blob, "CPU", settings(stored.details["hint"]))
    return Build(_Answer(compiled, stored.inputs.tensors, stored.outputs), runs=stored.details["runs"])


def no_bf16() -> str | None:
    """Why OpenVINO runs nothing in BF16 here: it has such kernels from AVX512 on; elsewhere it runs FP32 in silence."""
    report = machine_report()
    if report.architecture not in ("x86_64", "AMD64"):
        return None
    cap = report.isa_caps.get(instructions.OPENVINO_CAP, "")
    if "AVX512" in report.isa and "AVX512" not in instructions.left_by(cap, report.isa):
        return f"OpenVINO has no BF16 kernels under {instructions.OPENVINO_CAP}={cap}: they need AVX512"
    return None if "AVX512" in report.isa else "OpenVINO has no BF16 kernels for this CPU: they need AVX512"


def _recipe(
    precision: str,
    summary: str,
    build: Callable[[Request], Build],
    needs: tuple[str, ...] = ("openvino>=2024.4",),
    obstacle: Callable[[], str | None] = lambda: None,
) -> Recipe:
    return Recipe(
        f"openvino-{precision}", summary, build, needs, obstacle=obstacle, export=_export, restore=_restore
    )


RECIPES = (
    _recipe("fp32", "converted to OpenVINO, kept in FP32", _build_fp32),
    _recipe("bf16", "converted to OpenVINO, run in BF16", _build_bf16, obstacle=no_bf16),
    _recipe(
        "int8", "converted to OpenVINO, quantised by NNCF", _build_int8, needs=("openvino>=2024.4", "nncf>=2.13")
    ),
)
