"""The most that this CPU computes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch

from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.machine.limits import memory as free_memory
from cpuinfer_helpers.machine.report import MachineReport, machine_report
from cpuinfer_helpers.timing.measuring import measure
from cpuinfer_helpers.timing.results import Roofline

logger = logging.getLogger("cpuinfer_helpers")


# Rows, inner and outer size: one BERT-base feed-forward product at 384 tokens, and a large square one.
_GEMM_SHAPES = ((384, 768, 3072), (1536, 1536, 1536))


def roofline(
    precisions: Sequence[str] = ("fp32", "bf16", "int8"),
    *,
    budget_s: float = 1.0,
    report: MachineReport | None = None,
    memory: bool = False,
) -> Roofline:
    """Measure how fast this machine multiplies matrices, for each precision, and reads memory.

    Several kernels are tried, because the default one need not be the best: on AMD processors with AVX512 (Zen 5)
    PyTorch's FP32 default (MKL) runs AVX2 code, at about half of oneDNN's rate. With AVX2 only (Zen 3) it is no slower.

    Parameters
    ----------
    precisions
        Of ``fp32``, ``bf16`` and ``int8``. INT8 is left out where the CPU has no instructions for it.
    budget_s
        Seconds for each kernel and shape.
    report
        The machine, if it has been looked at already.
    memory
        Measure how fast memory is read, too; see :func:`memory_bandwidth`.

    Returns
    -------
    Roofline

    Raises
    ------
    InputError
        For a precision that is not known.
    """
    report = report or machine_report()
    native = {"fp32": True, "bf16": report.bf16_native, "int8": report.int8_native}
    unknown = [precision for precision in precisions if precision not in native]
    if unknown:
        raise InputError(f"roofline: unknown precision {unknown[0]!r}; choose from {', '.join(native)}")
    tried = [
        (precision, kernel, _best_rate(make, budget_s))
        for precision in precisions
        if precision != "int8" or report.int8_native
        for kernel, make in _GEMM_KERNELS[precision].items()
    ]
    best: dict[str, tuple[float, str]] = {}
    for precision, kernel, rate in tried:
        best[precision] = max(best.get(precision, (0.0, "")), (rate, kernel))
    return Roofline(
        rates={precision: rate for precision, (rate, _) in best.items() if rate > 0},
        kernels={precision: kernel for precision, (_, kernel) in best.items()},
        native={precision: native[precision] for precision in best},
        tried=tuple(tried),
        threads=torch.get_num_threads(),
        bandwidth=memory_bandwidth(budget_s=budget_s) if memory else None,
    )


def memory_bandwidth(*, budget_s: float = 1.0, size: int = 2**30) -> float:
    """Measure how fast memory is read, by PyTorch's kernels and threads.

    Two ways are tried, a sum and a product with one row, as text generation reads weights; the faster one counts.

    Parameters
    ----------
    budget_s
        Seconds for each way.
    size
        Bytes to read. Far more than the caches hold, else it is the caches that are measured; less is taken where there
        is little memory.

    Returns
    -------
    float
        Bytes per second.
    """
    # A quarter of what is free, in whole rows of 4 KiB.
    rows = max(1, min(size, free_memory()[1] // 4) // 4096)
    with torch.no_grad():
        numbers = torch.ones(rows, 1024)
        row = torch.ones(1024)
        ways = (numbers.sum, lambda: torch.mv(numbers, row))
        return max(4096 * rows / measure(way, budget_s=budget_s).median for way in ways)


_Product = Callable[[], object]


def _default_linear(dtype: torch.dtype) -> Callable[[int, int, int], _Product]:
    def make(rows: int, inner: int, outer: int) -> _Product:
        left, weight = torch.randn(rows, inner).to(dtype), torch.randn(outer, inner).to(dtype)
        return lambda: torch.nn.functional.linear(left, weight)

    return make


def _packed_onednn_linear(dtype: torch.dtype) -> Callable[[int, int, int], _Product]:
    def make(rows: int, inner: int, outer: int) -> _Product:
        left = torch.randn(rows, inner).to(dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(torch.randn(outer, inner).to(dtype), rows)
        return lambda: torch.ops.mkldnn._linear_pointwise(left, packed, None, "none", [], "")

    return make


def _int8_product(rows: int, inner: int, outer: int) -> _Product:
    left = torch.randint(-127, 127, (rows, inner), dtype=torch.int8)
    right = torch.randint(-127, 127, (inner, outer), dtype=torch.int8)
    return lambda: torch._int_mm(left, right)


def _int8_packed_onednn_linear(rows: int, inner: int, outer: int) -> _Product:
    left = torch.randint(0, 255, (rows, inner), dtype=torch.uint8)
    weight = torch.randint(-127, 127, (outer, inner), dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, [rows, inner])
    scales, zeros = torch.full((outer,), 0.01), torch.zeros(outer, dtype=torch.int32)
    quantised = (left, 0.01, 128, packed, scales, zeros, None, 1.0, 0)
    return lambda: torch.ops.onednn.qlinear_pointwise(*quantised, torch.bfloat16, "none", [], "")


_GEMM_KERNELS: dict[str, dict[str, Callable[[int, int, int], _Product]]] = {
    "fp32": {
        "default linear": _default_linear(torch.float32),
        "packed oneDNN linear": _packed_onednn_linear(torch.float32),
    },
    "bf16": {
        "default linear": _default_linear(torch.bfloat16),
        "packed oneDNN linear": _packed_onednn_linear(torch.bfloat16),
    },
    "int8": {"int8 product": _int8_product, "packed oneDNN linear": _int8_packed_onednn_linear},
}


def _best_rate(make: Callable[[int, int, int], _Product], budget_s: float) -> float:
    """Highest median rate over the shapes, in operations per second; 0 where this build has no such kernel."""
    rates = [0.0]
    for rows, inner, outer in _GEMM_SHAPES:
        try:
            with torch.no_grad(), switches.random_state_kept():
                product = make(rows, inner, outer)
                timing = measure(product, budget_s=budget_s, relative_width=0.05)
        except (RuntimeError, AttributeError) as error:
            logger.info("roofline: a kernel cannot run here: %r", error)
            continue
        rates.append(2.0 * rows * inner * outer / timing.median)
    return max(rates)
