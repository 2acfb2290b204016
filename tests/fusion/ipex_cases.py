"""Reports of small models under IPEX, as one line of JSON: run as a child process, because IPEX changes its process.

In BF16 they are made only where IPEX has kernels for it; what IPEX says of itself is there beside them.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import torch

from cpuinfer_helpers.course.examples import PATTERN_EXAMPLES, Attention
from cpuinfer_helpers.fusion import fusion_report
from cpuinfer_helpers.fusion.patterns import MHA
from cpuinfer_helpers.machine.report import no_bf16_kernels
from cpuinfer_helpers.saving.plain import write
from tests.conftest import make_bert, make_inputs

SIZES = {"hidden_size": 64, "intermediate_size": 128}
# FP32's linear layers by oneDNN: MKL's, the default, fuse nothing.
ONEDNN = {"auto_kernel_selection": True}
WIDE = {"x": torch.ones(2, 16, 64), "y": torch.ones(2, 16, 64)}


class Norm(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(64)


class AddedInPlace(Norm):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        total = torch.tanh(x)
        total += y
        return self.norm(total)


class AddedOfAnotherShape(Norm):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.norm(x + y[0, 0])


class ExpandedMask(Attention):
    def forward(self, query, key, value, mask):
        return super().forward(query, key, value, mask.expand(mask.size(0), 1, query.size(2), key.size(2)))


class OwnSplit(torch.nn.Module):
    """Joins and splits by itself: nothing was fused."""

    def __init__(self) -> None:
        super().__init__()
        self.joined = torch.nn.Linear(64, 192)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.joined(x).split([64, 64, 64], dim=-1)
        return query * key * value


def report(
    model: torch.nn.Module, inputs: dict[str, torch.Tensor], *, bf16: bool = False, freeze: bool = True, **how: Any
) -> dict[str, Any]:
    import intel_extension_for_pytorch as ipex

    calls = how.pop("calls", 3)
    if how.pop("optimize", True):
        model = ipex.optimize(model.eval(), dtype=torch.bfloat16 if bf16 else torch.float32, **how)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16, cache_enabled=False):
        module = torch.jit.trace(model, example_kwarg_inputs=inputs, strict=False, check_trace=False)
        module = torch.jit.freeze(module) if freeze else module
    return write(fusion_report(module, inputs, calls=calls))


def int8_report(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    import intel_extension_for_pytorch as ipex

    mapping = ipex.quantization.default_static_qconfig_mapping
    observed = ipex.quantization.prepare(model, mapping, example_kwarg_inputs=inputs, inplace=False)
    observed(**inputs)
    with torch.no_grad():
        converted = ipex.quantization.convert(observed)
        module = torch.jit.trace(converted, example_kwarg_inputs=inputs, strict=False, check_trace=False)
        return write(fusion_report(torch.jit.freeze(module), inputs))


def fp32_reports() -> dict[str, Any]:
    ids = make_inputs(2, 16, padding=4)
    eager, sdpa = make_bert(attention="eager", **SIZES), make_bert(**SIZES)
    heads = PATTERN_EXAMPLES[MHA].make(torch.float32)[1]
    handed_in_expanded = {**heads, "mask": heads["mask"].expand(2, 1, 16, 16)}
    return {
        "bert fp32": report(eager, ids, **ONEDNN),
        "bert mkl": report(sdpa, ids),
        "bert not optimized": report(eager, ids, optimize=False),
        "bert not frozen": report(eager, ids, freeze=False, **ONEDNN),
        "bert one call": report(eager, ids, calls=1, **ONEDNN),
        "add in place": report(AddedInPlace().eval(), WIDE, optimize=False),
        "add of another shape": report(AddedOfAnotherShape(), WIDE),
        "own split": report(OwnSplit(), {"x": WIDE["x"]}, **ONEDNN),
        "expanded mask": report(ExpandedMask(), heads),
        "mask handed in expanded": report(Attention(), handed_in_expanded),
        "distilbert fp32": report(*make_distilbert(), **ONEDNN),
        "bert int8": int8_report(make_bert(attention="eager", **SIZES), ids),
    }


def bf16_reports() -> dict[str, Any]:
    heads = PATTERN_EXAMPLES[MHA].make(torch.float32)[1]
    half = {**{name: tensor.bfloat16() for name, tensor in heads.items()}, "mask": heads["mask"]}
    return {
        "bert bf16": report(make_bert(attention="eager", **SIZES), make_inputs(2, 16, padding=4), bf16=True),
        "fp32 mask in bf16": report(Attention(), half, bf16=True),
        "distilbert bf16": report(*make_distilbert(), bf16=True),
    }


def make_distilbert() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    import transformers

    config = transformers.DistilBertConfig(
        vocab_size=120, dim=64, n_layers=3, n_heads=2, hidden_dim=128, max_position_embeddings=64
    )
    config._attn_implementation = "eager"
    inputs = make_inputs(2, 16, padding=4)
    two = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    return transformers.DistilBertForSequenceClassification(config).eval(), two


def said_by_ipex() -> dict[str, Any]:
    import intel_extension_for_pytorch as ipex

    return {"loops": ipex._C._get_current_isa_level(), "bf16": ipex._C.onednn_has_bf16_support()}


def main() -> None:
    reports = fp32_reports()
    if no_bf16_kernels(in_ipex=True) is None:
        reports |= bf16_reports()
    sys.stdout.write("\n" + json.dumps({"ipex": said_by_ipex(), "reports": reports}) + "\n")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
