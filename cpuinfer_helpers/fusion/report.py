"""What fused in a module, proven by the graph and the kernels of a call, and why the rest did not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from cpuinfer_helpers.display import Displayed, Table, format_seconds
from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.fusion.causes import why_not
from cpuinfer_helpers.fusion.layer import LayerPicture, picture
from cpuinfer_helpers.fusion.observed import Evidence, Fused, gather
from cpuinfer_helpers.fusion.patterns import PATTERNS, STOCK_ATTENTION, Pattern
from cpuinfer_helpers.graph import CALLS_UNTIL_OPTIMISED, jit_deprecations_ignored


@dataclass(frozen=True)
class Finding:
    """What was seen of one pattern.

    Attributes
    ----------
    pattern
        Its name.
    fused
        How many operators ran by their fast kernel, as the profiler shows.
    found
        How many stand in the executed graph, whatever ran.
    nodes
        Kinds of these nodes, with their number.
    events
        Profiler events that prove the fast kernel, with their number.
    seconds
        Time in these events, what they called included.
    share
        The same as a share of the call, 0 to 1.
    why_not
        Why the rest, or all, did not fuse; empty if all places did.
    """

    pattern: str
    fused: int
    found: int
    nodes: Mapping[str, int]
    events: Mapping[str, int]
    seconds: float
    share: float
    why_not: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class FusionReport(Displayed):
    """What fused in a module; made by :func:`fusion_report`.

    Attributes
    ----------
    findings
        One for each pattern, in the guide's order, and one for oneDNN Graph partitions.
    calls
        How often the module was called for this report.
    seconds
        Time of the last call, under the profiler, which slows it.
    stock_attention
        Attention operators of PyTorch's own in the executed graph, with their number.
    layer
        One layer before and after; None without a ScriptModule.
    reason
        Why there is nothing to look at; None if there is.
    """

    findings: tuple[Finding, ...]
    calls: int = 0
    seconds: float = 0.0
    stock_attention: Mapping[str, int] = field(default_factory=dict)
    layer: LayerPicture | None = None
    reason: str | None = None

    def __getitem__(self, pattern: str) -> Finding:
        """The finding of a pattern, by its name."""
        for finding in self.findings:
            if finding.pattern == pattern:
                return finding
        raise InputError(f"there is no pattern {pattern!r}; choose from {', '.join(self.counts)}")

    @property
    def counts(self) -> dict[str, int]:
        """How often each pattern fused: its node stands in the executed graph, and its fast kernel ran."""
        return {finding.pattern: finding.fused for finding in self.findings}

    def layer_picture(self) -> LayerPicture:
        """One layer's operators before and after; a table, and a figure by its ``plot()``.

        Raises
        ------
        InputError
            If the report is of nothing that has a graph.
        """
        if self.layer is None:
            raise InputError(f"there is no graph to show: {self.reason}")
        return self.layer

    def table(self) -> Table:
        """A row for each pattern."""
        rows = [row for finding in self.findings for row in _rows(finding)]
        rows += [
            ("SDPA: one stock operator", str(count), kind, "", "", "for information: PyTorch's own, nothing fused it")
            for kind, count in self.stock_attention.items()
        ]
        return Table(
            columns=("pattern", "times", "nodes", "kernel events", "share of time", "why not"),
            rows=tuple(rows),
            note=f"nothing was run: {self.reason}" if self.reason else self._note(),
            numeric=("times", "share of time"),
        )

    def _note(self) -> str:
        return (
            f"the graph that call {self.calls} ran, and that call's events; {format_seconds(self.seconds)} under the "
            "profiler; times counts only what ran by its fast kernel"
        )


def fusion_report(
    prepared: Any, inputs: Mapping[str, torch.Tensor], *, calls: int = CALLS_UNTIL_OPTIMISED
) -> FusionReport:
    """Run a traced module, and say what fused in it, by which kernels, and why the rest did not.

    Parameters
    ----------
    prepared
        A TracedModel, a PreparedModel or a ``torch.jit.ScriptModule``.
    inputs
        Tensors by name, shaped as in use: batch first, (batch, length) for token ids and masks. What fuses can depend
        on the shapes.
    calls
        How often to call it; the last call is the one that is looked at. With less than three, the report shows a
        graph that may not be optimised yet, unless the module was called before.

    Returns
    -------
    FusionReport
        Without a ScriptModule, for a model that fell back or runs by something else: no counts, and the reason.

    Raises
    ------
    InputError
        If ``prepared`` is none of these, ``calls`` is less than one, or the inputs are no tensors.

    Examples
    --------
    >>> from cpuinfer_helpers import trace_model
    >>> inputs = {"input": torch.ones(2, 4)}
    >>> traced = trace_model(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU()).eval(), inputs)
    >>> fusion_report(traced, inputs).counts["linear+gelu"]
    0
    """
    if calls < 1:
        raise InputError(f"calls is {calls}; at least one is needed")
    if not isinstance(prepared, torch.jit.ScriptModule) and not hasattr(prepared, "module"):
        raise InputError(f"prepared is a {type(prepared).__name__}; give a traced or prepared model, or a ScriptModule")
    module = prepared if isinstance(prepared, torch.jit.ScriptModule) else prepared.module
    if module is None:
        return without_graph(_why_no_module(prepared))
    with jit_deprecations_ignored():
        evidence = gather(module, _tensors(prepared, inputs), calls)
        return FusionReport(
            findings=tuple(_finding(pattern, evidence) for pattern in PATTERNS),
            calls=calls,
            seconds=evidence.profile.seconds,
            stock_attention={kind: evidence.kinds[kind] for kind in STOCK_ATTENTION if evidence.kinds[kind]},
            layer=picture(evidence),
        )


def _tensors(prepared: Any, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    names = getattr(prepared, "input_names", tuple(inputs))
    missing = [name for name in names if not isinstance(inputs.get(name), torch.Tensor)]
    if missing:
        raise InputError(f"{missing[0]} is {inputs.get(missing[0])!r}; give a tensor for each of {', '.join(names)}")
    return {name: inputs[name] for name in names}


def _why_no_module(prepared: Any) -> str:
    reason = getattr(prepared, "reason", None)
    if reason:
        return f"the eager model answers, because {reason}"
    runs = getattr(getattr(prepared, "receipt", None), "runs", "")
    return f"no TorchScript graph: {runs or 'this is no ScriptModule'}"


def without_graph(reason: str) -> FusionReport:
    """A report of nothing that has a graph, with the reason."""
    findings = tuple(Finding(pattern.name, 0, 0, {}, {}, 0.0, 0.0, (reason,)) for pattern in PATTERNS)
    return FusionReport(findings, reason=reason)


def _finding(pattern: Pattern, evidence: Evidence) -> Finding:
    found = evidence.fused(pattern)
    fast = [event for fused in found for event in fused.fast_events]
    seconds = sum(event.seconds for event in fast)
    return Finding(
        pattern=pattern.name,
        fused=sum(fused.ran_fast for fused in found),
        found=len(found),
        nodes=dict(Counter(fused.node.kind for fused in found)),
        events=dict(Counter(name for fused in found for name in _proofs(fused))),
        seconds=seconds,
        share=seconds / evidence.profile.seconds if evidence.profile.seconds else 0.0,
        why_not=why_not(pattern, evidence),
    )


def _proofs(fused: Fused) -> list[str]:
    name = fused.kernel.event_of(fused.node.node)
    inner = [fused.kernel.fast] if fused.kernel.fast else []
    return [text for _ in fused.fast_events for text in (name, *inner)]


def _rows(finding: Finding) -> list[tuple[str, ...]]:
    """The finding's row, and one more for each cause after the first: a line of text holds no more than one."""
    first, *more = finding.why_not or ("",)
    share = f"{finding.share:.0%}" if finding.fused else ""
    row = (finding.pattern, str(finding.fused), _pairs(finding.nodes), _pairs(finding.events), share, first)
    return [row, *(("", "", "", "", "", cause) for cause in more)]


def _pairs(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in counts.items())
