"""ONNX Runtime: the model exported to ONNX, in FP32, or with dynamically quantised INT8 matrix products."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.errors import ArtifactError, RecipeError
from cpuinfer_helpers.interface.adapter import NamedInputs, named_inputs
from cpuinfer_helpers.interface.copies import attention_of
from cpuinfer_helpers.machine.report import machine_report
from cpuinfer_helpers.machine.scratch import temporary_folder
from cpuinfer_helpers.recipes.base import SEVEN_BITS, Build, Recipe, Request, Stored, Tensors
from cpuinfer_helpers.recipes.tools.arrays import array_maker
from cpuinfer_helpers.recipes.tools.onnx_files import check_external_data
from cpuinfer_helpers.recipes.tools.quiet import libraries_quiet

# The first that has LayerNormalization, and every release that we support runs it.
_OPSET = 17
_FILES = _EXPORTED, _QUANTISED = "model.onnx", "quantised.onnx"
_INT8_PARTS = ("MatMulInteger", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")
# A protobuf file ends at 2 GiB; weights of models near that go into files of their own.
_LARGE = 1_800_000_000
_FUSED = ("Attention", "BiasGelu", "EmbedLayerNormalization", "FusedGemm", "FusedMatMul", "SkipLayerNormalization")


def _build_fp32(request: Request) -> Build:
    return _build(request, runs="ONNX Runtime session, FP32")


def _build_int8(request: Request) -> Build:
    build = _build(request, runs="ONNX Runtime session, dynamic INT8", change=_quantised)
    if "INT8 nodes" not in build.evidence:
        raise RecipeError("no node of the optimised model computes in INT8")
    weights = {"weights": SEVEN_BITS} if machine_report().int8_sums_overflow else {}
    return replace(build, evidence={**build.evidence, **weights})


def _build(request: Request, runs: str, change: Callable[[Path, bool], Path] | None = None) -> Build:
    with temporary_folder() as folder, libraries_quiet() as warnings:
        path, adapter = _converted(request, folder, change)
        session, kinds = _session(path, folder)
    return Build(
        _answer(session, request.inputs.tensors, adapter.spec.tensor_names()),
        runs=runs,
        evidence=_evidence(kinds),
        attention=attention_of(adapter.model),
        graph_nodes=kinds,
        warnings=tuple(warnings),
    )


def _converted(request: Request, folder: Path, change: Callable[[Path, bool], Path] | None) -> tuple[Path, NamedInputs]:
    """Write the model to a folder, in ONNX; returns its file."""
    # The graph of eager attention is the one that the runtime optimises best: 160 ms for BERT-base at (1, 384), against
    # 157 to 176 for SDPA on one version of transformers and the other.
    model = request.copy_with_attention("eager")
    adapter = named_inputs(model, request.inputs, is_copy=True)
    path = folder / _EXPORTED
    _export_graph(adapter, request, path)
    return (change(path, _is_large(adapter)) if change else path), adapter


def _export_graph(adapter: NamedInputs, request: Request, path: Path) -> None:
    """Export by tracing: on both versions of torch it gives a graph that runs 6 to 20 % faster than torch.export's."""
    # With a batch of one, an exporter may take a dimension for one that is to be broadcast.
    tensors = {name: torch.cat([tensor, tensor]) for name, tensor in request.inputs.tensors.items()}
    outputs = adapter.run_model(tensors)
    axes = {name: {axis: f"{name}_{axis}" for axis in range(tensor.dim())} for name, tensor in outputs.items()}
    axes |= _input_axes(tensors)
    torch.onnx.export(
        adapter,
        tuple(tensors.values()),
        str(path),
        input_names=list(tensors),
        output_names=list(outputs),
        dynamic_axes=axes,
        opset_version=_OPSET,
        dynamo=False,
    )


def _input_axes(tensors: dict[str, torch.Tensor]) -> dict[str, dict[int, str]]:
    """Every dimension may vary; those of the same size as the first input's have the same name."""
    first = next(iter(tensors.values()))
    length = first.shape[1] if first.dim() == 2 else None
    names = {}
    for name, tensor in tensors.items():
        inner = {
            axis: "length" if tensor.shape[axis] == length else f"{name}_{axis}" for axis in range(1, tensor.dim())
        }
        names[name] = {0: "batch" if tensor.shape[0] == first.shape[0] else f"{name}_0", **inner}
    return names


def _quantised(path: Path, large: bool) -> Path:
    """Weights to signed 8 bits with a scale for each output; the runtime scales activations call by call."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    target = path.with_name(_QUANTISED)
    # Signed, with a scale for each column: 68 ms for BERT-base at (1, 384), 71 with one scale, 117 for unsigned.
    # Embeddings would lose precision and gain no time.
    quantize_dynamic(
        path,
        target,
        op_types_to_quantize=["MatMul", "LSTM"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        reduce_range=machine_report().int8_sums_overflow,
        use_external_data_format=large,
    )
    path.unlink()
    return target


def _session(path: Path, scratch: Path) -> tuple[Any, dict[str, int]]:
    """A session, and how often each kind of node stands in the model as the runtime optimised it, in ``scratch``."""
    import onnx
    import onnxruntime

    optimised = scratch / "optimised.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # an error is an exception as well, which tells the same
    # Threads wait actively within a run, which is fast, and not between runs, which would take cores from others.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.optimized_model_filepath = str(optimised)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(optimised, load_external_data=False).graph.node
    return session, dict(Counter(node.op_type for node in nodes).most_common())


def _answer(session: Any, example: Tensors, outputs: Sequence[str]) -> Callable[[dict[str, torch.Tensor]], Tensors]:
    array = array_maker(example)
    # The exporter leaves out inputs that the model does not use.
    inputs = [port.name for port in session.get_inputs()]

    def answer(tensors: dict[str, torch.Tensor]) -> Tensors:
        arrays = session.run(outputs, {name: array(name, tensors[name]) for name in inputs})
        return {name: torch.from_numpy(result) for name, result in zip(outputs, arrays, strict=True)}

    return answer


def _evidence(kinds: dict[str, int]) -> dict[str, str]:
    found = {
        "INT8 nodes": {kind: count for kind, count in kinds.items() if any(part in kind for part in _INT8_PARTS)},
        "matrix products": {kind: count for kind, count in kinds.items() if kind in ("MatMul", "FusedMatMul", "Gemm")},
        "fused nodes": {kind: count for kind, count in kinds.items() if kind in _FUSED},
    }
    return {
        name: ", ".join(f"{kind} {count}" for kind, count in counts.items()) for name, counts in found.items() if counts
    }


def _is_large(model: torch.nn.Module) -> bool:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.parameters()) > _LARGE


def _export(request: Request, build: Build, folder: Path) -> dict[str, Any]:
    with libraries_quiet():
        path, _ = _converted(request, folder, _quantised if request.precision == "int8" else None)
    return {"file": path.name, "runs": build.runs}


def _restore(stored: Stored, folder: Path) -> Build:
    name = stored.details["file"]
    # By its name the runtime tells other formats, and reads whatever is there.
    if name not in _FILES:
        raise ArtifactError(f"{folder} names {name!r:.80} for its model, and save() writes {' or '.join(_FILES)}")
    with temporary_folder() as scratch, libraries_quiet():
        check_external_data(folder / name)
        session, _ = _session(folder / name, scratch)
    return Build(_answer(session, stored.inputs.tensors, stored.outputs), runs=stored.details["runs"])


def _recipe(precision: str, summary: str, build: Callable[[Request], Build]) -> Recipe:
    return Recipe(f"onnxruntime-{precision}", summary, build, _NEEDS, export=_export, restore=_restore)


_NEEDS = ("onnx>=1.16", "onnxruntime>=1.19")

RECIPES = (
    _recipe("fp32", "exported to ONNX, all optimisations of its runtime", _build_fp32),
    _recipe("int8", "exported to ONNX, matrix products quantised on the fly", _build_int8),
)
