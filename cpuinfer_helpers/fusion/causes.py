"""Why a pattern is absent, or present without its fast kernel: every cause is looked up in the graphs and events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch

from cpuinfer_helpers.fusion import operators as ops
from cpuinfer_helpers.fusion import patterns
from cpuinfer_helpers.fusion.events import Event
from cpuinfer_helpers.fusion.observed import Evidence, Fused
from cpuinfer_helpers.fusion.patterns import PATTERNS, Pattern
from cpuinfer_helpers.graph import PARTITIONS
from cpuinfer_helpers.machine import instructions
from cpuinfer_helpers.machine.report import machine_report, no_bf16_kernels

_Check = Callable[[Evidence], str | None]
_MKL = "ipex_prepack::mkl_sgemm_run"
# Of IPEX's attention kernels these take no mask but a contiguous one.
_CONTIGUOUS_MASK = ("ipex::mha_scores_calc", "ipex::mha_scores_calc_v2")


def why_not(pattern: Pattern, evidence: Evidence) -> tuple[str, ...]:
    """Why a pattern did not fuse wherever it could have; empty if it did.

    Parameters
    ----------
    pattern
        One of :data:`~cpuinfer_helpers.fusion.patterns.PATTERNS`.
    evidence
        What was seen.
    """
    found = evidence.fused(pattern)
    places = len(pattern.places(evidence.before))
    causes = list(_why_slow(pattern, evidence, [each for each in found if not each.ran_fast]))
    if not found and not places:
        return (f"nothing to fuse: {pattern.missing}",)
    left = len(pattern.places([node.node for node in evidence.executed]))
    if not found or (len(found) < places and pattern.name != patterns.ONEDNN_GRAPH):
        causes += _why_absent(pattern, evidence, left if found else places)
    return tuple(dict.fromkeys(causes))


def _why_absent(pattern: Pattern, evidence: Evidence, unexplained: int) -> Iterator[str]:
    """Causes that hold here; ``unexplained`` is the number of places that nothing else has taken."""
    waiting = evidence.kinds["prim::profile"]
    if waiting:
        yield f"too few calls: the graph is not optimised yet ({waiting} prim::profile nodes)"
        return
    held = _partitions_with(pattern, evidence)
    if held:
        yield f"inside oneDNN Graph partitions instead: {held} hold {' and '.join(sorted(pattern.core))}"
        return
    causes = [cause for cause in (check(evidence) for check in _OBSTACLES[pattern.name]) if cause]
    yield from causes
    if not causes and unexplained:
        yield f"not known: {unexplained} places did not fuse, and no known obstacle is there"


def _partitions_with(pattern: Pattern, evidence: Evidence) -> int:
    partitions = [node.node for node in evidence.executed if node.kind in PARTITIONS]
    return sum(bool(pattern.core) and pattern.core <= set(ops.contents(partition)) for partition in partitions)


def _no_ipex(evidence: Evidence) -> str | None:
    return None if evidence.has_ipex else "no IPEX in this process"


def _sdpa(evidence: Evidence) -> str | None:
    found = {kind: evidence.kinds[kind] for kind in patterns.STOCK_ATTENTION if evidence.kinds[kind]}
    text = ", ".join(f"{count} x {kind}" for kind, count in found.items())
    return f"SDPA attention: {text} matches no pattern (attn_implementation='eager' does)" if found else None


def _no_mask(evidence: Evidence) -> str | None:
    makers = [ops.source(node.inputsAt(0)).kind() for node in patterns.softmax_of_scores(evidence.before)]
    masked = ("aten::add", "aten::add_", "aten::masked_fill", "aten::masked_fill_")
    other = Counter(kind for kind in makers if kind not in masked)
    return f"no mask is added to the scores: softmax works on {', '.join(other)}" if other else None


def _not_optimized(evidence: Evidence) -> str | None:
    prepared = any(node.kind().startswith(("torch_ipex::", "ipex_prepack::")) for node in evidence.before)
    plain = evidence.kinds["aten::linear"]
    if not evidence.has_ipex or prepared or not plain:
        return None
    return f"no ipex.optimize: {plain} linear layers are plain aten::linear"


def _mkl_linear(evidence: Evidence) -> str | None:
    count = evidence.kinds[_MKL]
    if not count:
        return None
    return f"MKL linear: {count} x {_MKL} fuse nothing (auto_kernel_selection=True)"


def _not_frozen(evidence: Evidence) -> str | None:
    if not evidence.unfrozen:
        return None
    return f"not frozen: {evidence.unfrozen} x prim::GetAttr, so the weights are no constants"


def _linear_in_partition(evidence: Evidence) -> str | None:
    partitions = [node.node for node in evidence.executed if node.kind in PARTITIONS]
    count = sum(ops.contents(partition).count("linear") for partition in partitions)
    return f"{count} linear layers are inside oneDNN Graph partitions, which join none" if count else None


def _add_taken(evidence: Evidence) -> str | None:
    norms = [node.node for node in evidence.executed if node.kind == "aten::layer_norm"]
    linear_add = next(pattern for pattern in PATTERNS if pattern.name == patterns.LINEAR_ADD)
    makers = [ops.source(norm.inputsAt(0)) for norm in norms]
    taken = {
        "Linear+Add": sum(linear_add.kernel_of(maker) is not None for maker in makers),
        "a oneDNN Graph partition": sum(
            maker.kind() in PARTITIONS and "add" in ops.contents(maker) for maker in makers
        ),
    }
    texts = [f"by {taker} before {count} of {len(norms)} layer norms" for taker, count in taken.items() if count]
    return f"the Add was taken {', '.join(texts)}" if texts else None


def _add_in_place(evidence: Evidence) -> str | None:
    norms = [node.node for node in evidence.executed if node.kind == "aten::layer_norm"]
    count = sum(ops.source(norm.inputsAt(0)).kind() == "aten::add_" for norm in norms)
    return f"in place: {count} x aten::add_ before a layer norm, which the pattern leaves alone" if count else None


def _shapes_differ(evidence: Evidence) -> str | None:
    """Linear+Add needs both sides of one shape; look at the adds that are left behind a linear layer."""
    left = [node.node for node in evidence.executed if node.kind in ("aten::add", "aten::add_")]
    behind = [node for node in left if any(ops.is_linear(ops.source(value)) for value in ops.tensor_inputs(node))]
    for node in behind:
        for event in evidence.own_events(node):
            sides = [shape for shape in event.shapes[:2] if shape]
            if len(sides) == 2 and sides[0] != sides[1]:
                return f"the two sides of an add differ in shape: {_shape(sides[0])} and {_shape(sides[1])}"
    return None


def _switched_off(evidence: Evidence) -> str | None:
    on = torch.jit.onednn_fusion_enabled()
    return None if on else "oneDNN Graph fusion is off in this process: torch.jit.enable_onednn_fusion(True)"


def _no_bf16_kernels(evidence: Evidence) -> str | None:
    if not any("c10::BFloat16" in event.dtypes for event in evidence.profile.events()):
        return None
    return no_bf16_kernels()


def _jit_autocast(evidence: Evidence) -> str | None:
    mode = torch._C._jit_set_autocast_mode(True)
    torch._C._jit_set_autocast_mode(mode)
    halves = [node for node in evidence.before if node.kind() == "prim::Constant" and _is_bf16(node)]
    if not (mode and halves and torch.jit.onednn_fusion_enabled()):
        return None
    return f"JIT autocast is on, with {len(halves)} BF16 weights: torch._C._jit_set_autocast_mode(False)"


_OBSTACLES: dict[str, tuple[_Check, ...]] = {
    patterns.MHA: (_no_ipex, _sdpa, _no_mask),
    patterns.CONCAT_LINEAR: (_no_ipex, _not_frozen, _linear_in_partition),
    patterns.LINEAR_ADD: (_no_ipex, _not_optimized, _mkl_linear, _shapes_differ),
    patterns.LINEAR_GELU: (_no_ipex, _not_optimized, _mkl_linear),
    patterns.ADD_LAYERNORM: (_no_ipex, _add_taken, _add_in_place),
    patterns.ONEDNN_GRAPH: (_switched_off, _no_bf16_kernels, _jit_autocast),
}


def _why_slow(pattern: Pattern, evidence: Evidence, slow: list[Fused]) -> Iterator[str]:
    if not slow:
        return
    unseen = [each for each in slow if not each.events]
    if unseen:
        name = unseen[0].kernel.event_of(unseen[0].node.node)
        seen = len(evidence.events_named(name))
        if seen:
            yield f"{name} ran {seen} times for more nodes than these {len(unseen)}: which ran cannot be told"
        else:
            yield f"found, but the fast kernel did not run: no {name} event"
            if unseen[0].node.kind == PARTITIONS[0]:
                yield "the guard found other shapes and sent the call to the fallback"
    branches = [(each, event) for each in slow for event in each.events if event not in each.fast_events]
    # IPEX's kernels are the only ones here with a slow branch, and each has its fast one written for AVX512.
    no_avx512 = _no_avx512() if branches else ()
    yield from no_avx512
    for each, event in branches:
        yield _what_ran_instead(each, event)
        refused = _why_refused(pattern, evidence, each, event)
        if refused:
            yield f"AVX512 alone would not help: {refused}" if no_avx512 else refused
        elif not no_avx512:
            yield "why its slow branch ran is not known"


def _no_avx512() -> tuple[str, ...]:
    """Why the fast branches of IPEX's kernels cannot run in this process; empty if they can."""
    report = machine_report()
    why = report.why_no_avx512()
    if why is None:
        return ()
    needs = f"the fast kernel needs AVX512: {why}"
    return (needs,) if "AVX512" in report.isa else (needs, f"CPUs with AVX512: {instructions.cpus_with('AVX512')}")


def _what_ran_instead(fused: Fused, event: Event) -> str:
    telling = [child for child in event.inside() if child.name in fused.kernel.slow]
    seen = telling[0].name if telling else f"no {fused.kernel.fast}"
    return f"found, but the fast kernel did not run: {seen} inside {event.name}"


def _why_refused(pattern: Pattern, evidence: Evidence, fused: Fused, event: Event) -> str | None:
    """What the fast kernel does not take of the inputs, on any CPU."""
    add = next((child for child in event.inside() if child.name == "aten::add"), None)
    dtypes = [dtype for dtype in add.dtypes[:2] if dtype] if add else []
    shapes = [shape for shape in add.shapes[:2] if shape] if add else []
    if fused.node.kind in _CONTIGUOUS_MASK and _expanded(fused.node.node.inputsAt(2), evidence):
        return "the mask is expanded, not contiguous"
    if pattern.name == patterns.MHA and len(set(dtypes)) > 1:
        return f"it adds a mask of {dtypes[1]} to scores of {dtypes[0]}"
    if pattern.name == patterns.ADD_LAYERNORM and len(set(shapes)) > 1:
        return f"the two sides of the add differ in shape: {_shape(shapes[0])} and {_shape(shapes[1])}"
    return None


def _expanded(mask: Any, evidence: Evidence) -> bool:
    """Whether the mask is a view that repeats its rows, made in the graph or handed in so."""
    node = mask.node()
    while node.kind() in ops.NO_WORK:
        if node.kind() in ("aten::expand", "aten::expand_as"):
            return True
        mask, node = node.inputsAt(0), node.inputsAt(0).node()
    given = evidence.inputs.get(mask.debugName().split(".")[0])
    return given is not None and not given.is_contiguous()


def _is_bf16(constant: Any) -> bool:
    value = constant.output()
    return isinstance(value.type(), torch._C.TensorType) and constant.t("value").dtype == torch.bfloat16


def _shape(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes)) or "scalar"
