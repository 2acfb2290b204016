"""Prove each pattern on a module of its own, in child processes: IPEX changes the whole process that imports it."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from cpuinfer_helpers.course.examples import PATTERN_EXAMPLES
from cpuinfer_helpers.display import Displayed, Table
from cpuinfer_helpers.errors import InputError, first_line
from cpuinfer_helpers.fusion import patterns
from cpuinfer_helpers.fusion.report import FusionReport, fusion_report
from cpuinfer_helpers.graph import jit_deprecations_ignored, onednn_fusion
from cpuinfer_helpers.machine.report import machine_report, no_bf16_kernels
from cpuinfer_helpers.processes.once import run_once
from cpuinfer_helpers.saving.plain import read, write
from cpuinfer_helpers.verification.equality import difference

logger = logging.getLogger("cpuinfer_helpers")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Which optimiser each pattern is a pattern of.
_BACKENDS = {
    "ipex": tuple(name for name in PATTERN_EXAMPLES if name != patterns.ONEDNN_GRAPH),
    "onednn": (patterns.ONEDNN_GRAPH,),
}
_IPEX = "intel_extension_for_pytorch"
_CHILD_SECONDS = 300


@dataclass(frozen=True)
class Proof:
    """Whether one pattern fuses on a module of its own, with the module's answers.

    Attributes
    ----------
    pattern, precision
        What was tried: ``fp32`` or ``bf16``.
    report
        What was seen; None if nothing could be run.
    max_error, tolerance
        Largest absolute difference from the eager module's answers in FP32, and the largest that passes.
    reason
        Why nothing could be run; None if it could.
    """

    pattern: str
    precision: str
    report: FusionReport | None = None
    max_error: float = 0.0
    tolerance: float = 0.0
    reason: str | None = None

    @property
    def proven(self) -> bool:
        """Whether the pattern fused, its fast kernel ran, and the answers are the same."""
        fused = self.report is not None and self.report.counts[self.pattern] > 0
        return fused and self.max_error <= self.tolerance

    @property
    def why_not(self) -> str:
        """Why it is not proven; empty if it is."""
        if self.reason or self.report is None:
            return self.reason or "nothing was run"
        if not self.max_error <= self.tolerance:
            return f"other answers: largest error {self.max_error:.1e}, tolerance {self.tolerance:.1e}"
        return "; ".join(self.report[self.pattern].why_not)


@dataclass(frozen=True, repr=False)
class Proofs(Displayed):
    """The proofs of all patterns; made by :func:`prove_patterns`."""

    proofs: tuple[Proof, ...]

    def table(self) -> Table:
        """A row for each pattern and precision."""
        emulated = machine_report().why_emulated
        ran_bf16 = any(proof.precision == "bf16" and proof.report is not None for proof in self.proofs)
        return Table(
            columns=("pattern", "precision", "proven", "nodes", "kernel events", "largest error", "why not"),
            rows=tuple(_row(proof) for proof in self.proofs),
            numeric=("largest error",),
            note=f"bf16 is emulated: {emulated}" if emulated and ran_bf16 else "",
        )


def prove_patterns(precisions: Sequence[str] = tuple(DTYPES)) -> Proofs:
    """Prove each pattern on its own, in one child process for each precision and optimiser.

    Parameters
    ----------
    precisions
        ``fp32``, ``bf16`` or both.

    Returns
    -------
    Proofs
        What cannot be run here, without IPEX or without BF16 kernels, is there with the reason.

    Raises
    ------
    InputError
        If a precision is neither.

    See Also
    --------
    cpuinfer_helpers.course.examples : the modules.
    """
    from tqdm.auto import tqdm

    unknown = [precision for precision in precisions if precision not in DTYPES]
    if unknown:
        raise InputError(f"precision is {unknown[0]!r}; choose from {', '.join(DTYPES)}")
    jobs = [(backend, precision) for precision in precisions for backend in _BACKENDS]
    found = [proof for job in tqdm(jobs, desc="proving patterns", leave=False) for proof in _in_child(*job)]
    order = list(PATTERN_EXAMPLES)
    return Proofs(tuple(sorted(found, key=lambda proof: order.index(proof.pattern))))


def prove(pattern: str, precision: str) -> Proof:
    """Prove one pattern in this process, which must have IPEX imported for the patterns of IPEX.

    Parameters
    ----------
    pattern
        One of :data:`~cpuinfer_helpers.course.examples.PATTERN_EXAMPLES`.
    precision
        ``fp32`` or ``bf16``.

    Returns
    -------
    Proof
        If the pattern could not be run, it says why.
    """
    backend = next(backend for backend, names in _BACKENDS.items() if pattern in names)
    reason = _obstacle(backend, precision)
    if reason:
        return Proof(pattern, precision, reason=reason)
    try:
        return _prove(pattern, precision)
    except Exception as error:
        # IPEX refuses by assertions, TorchScript by errors of many kinds; whichever it is, other patterns go on.
        logger.warning("%s %s could not be run: %s", pattern, precision, first_line(error))
        return Proof(pattern, precision, reason=first_line(error))


def _prove(pattern: str, precision: str) -> Proof:
    dtype = DTYPES[precision]
    module, inputs = PATTERN_EXAMPLES[pattern].make(dtype)
    with torch.no_grad():
        expected = module(**{name: tensor.float() for name, tensor in inputs.items()})
    optimiser = _onednn if pattern == patterns.ONEDNN_GRAPH else _ipex
    with jit_deprecations_ignored(), optimiser(module, dtype) as prepared, torch.no_grad():
        frozen = torch.jit.freeze(torch.jit.trace(prepared, example_kwarg_inputs=inputs, check_trace=False))
        report = fusion_report(frozen, inputs)
        found = difference(expected, frozen(**inputs), precision=precision)
    return Proof(pattern, precision, report, found.error, found.allowed)


def _obstacle(backend: str, precision: str) -> str | None:
    if backend == "onednn":
        return None
    if importlib.util.find_spec(_IPEX) is None:
        return "IPEX is not installed; it needs torch 2.8"
    return no_bf16_kernels(in_ipex=True) if precision == "bf16" else None


@contextmanager
def _ipex(module: torch.nn.Module, dtype: torch.dtype) -> Iterator[torch.nn.Module]:
    import intel_extension_for_pytorch as ipex

    half = dtype == torch.bfloat16
    # FP32's default, MKL, has no fused linear layers; in BF16 the linear layer is oneDNN's anyway.
    arguments = {} if half else {"auto_kernel_selection": True}
    prepared = ipex.optimize(module, dtype=dtype, **arguments)
    # Autocast's weight cache would become constants of the graph.
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False) if half else nullcontext():
        yield prepared


@contextmanager
def _onednn(module: torch.nn.Module, dtype: torch.dtype) -> Iterator[torch.nn.Module]:
    with onednn_fusion(jit_autocast=dtype == torch.float32):
        yield module.to(dtype)


def _in_child(backend: str, precision: str) -> list[Proof]:
    """Every proof of one optimiser at one precision, from a process of its own."""
    reason = _obstacle(backend, precision)
    if reason:
        return _unproven(backend, precision, reason)
    told = {"backend": backend, "precision": precision}
    answer = run_once(f"{__name__}:prove_all", told, name=f"{backend} {precision}", timeout_s=_CHILD_SECONDS)
    if not answer.status.successful:
        return _unproven(backend, precision, str(answer.status))
    return list(read(tuple[Proof, ...], answer.value, "proofs"))


def prove_all(backend: str, precision: str) -> list[dict[str, Any]]:
    """In a process of its own: the fields of every proof of one optimiser at one precision."""
    warnings.simplefilter("ignore")
    if backend == "ipex":
        import intel_extension_for_pytorch  # noqa: F401
    return [write(prove(pattern, precision)) for pattern in _BACKENDS[backend]]


def _unproven(backend: str, precision: str, reason: str) -> list[Proof]:
    return [Proof(pattern, precision, reason=reason) for pattern in _BACKENDS[backend]]


def _row(proof: Proof) -> tuple[str, ...]:
    if proof.report is None:
        return (proof.pattern, proof.precision, "no", "", "", "", proof.why_not)
    finding = proof.report[proof.pattern]
    return (
        proof.pattern,
        proof.precision,
        "yes" if proof.proven else "no",
        ", ".join(finding.nodes),
        ", ".join(finding.events),
        f"{proof.max_error:.1e}",
        proof.why_not,
    )
