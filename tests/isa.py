"""Marks for tests that need instruction sets: skipped where they are missing, with the reason that the package gives.

A test that holds on every CPU has none of them: it asserts by the same reasons what is so without the instructions.
"""

from __future__ import annotations

import pytest

from cpuinfer_helpers.machine.report import machine_report, no_bf16_kernels

_REPORT = machine_report()

# Why this process has none of them; None where it has.
NO_AVX512_LOOPS = _REPORT.why_no_avx512()
NO_BF16_KERNELS = no_bf16_kernels()
NO_BF16_KERNELS_IN_IPEX = no_bf16_kernels(in_ipex=True)
NO_NATIVE_BF16 = _REPORT.why_not_native("bf16")


def _needs(what: str, why_not: str | None) -> pytest.MarkDecorator:
    return pytest.mark.skipif(why_not is not None, reason=f"needs {what}: {why_not}")


needs_avx512_loops = _needs("loops for AVX512 in PyTorch and IPEX", NO_AVX512_LOOPS)
needs_bf16_kernels = _needs("oneDNN's BF16 kernels", NO_BF16_KERNELS)
needs_bf16_kernels_in_ipex = _needs("BF16 kernels in IPEX's oneDNN", NO_BF16_KERNELS_IN_IPEX)
needs_native_bf16 = _needs("instructions for BF16", NO_NATIVE_BF16)
