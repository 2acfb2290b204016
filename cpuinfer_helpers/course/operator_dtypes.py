"""Which operator ran in which dtype: what autocast did, as the profiler saw it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from cpuinfer_helpers.display import Displayed, Table, format_seconds
from cpuinfer_helpers.fusion.events import Event, profile_call
from cpuinfer_helpers.fusion.operators import NO_WORK

# The profiler's names of the floating dtypes.
_FLOATING = {"float": "FP32", "double": "FP64", "c10::BFloat16": "BF16", "c10::Half": "FP16"}
_CAST = "aten::_to_copy"
# The dtype that a copy writes comes before the one that it reads.
_COPY = "aten::copy_"


@dataclass(frozen=True)
class OperatorDtype:
    """All calls of one operator.

    Attributes
    ----------
    operator
        Its name without ``aten::``.
    calls
        Number of calls by the dtype of the first floating input that the kernel got.
    seconds
        Time in it, without the casts of its inputs.
    """

    operator: str
    calls: Mapping[str, int]
    seconds: float


@dataclass(frozen=True, repr=False)
class OperatorDtypes(Displayed):
    """The floating-point operators of one call; made by :func:`operator_dtypes`.

    Attributes
    ----------
    operators
        By name, longest time first.
    casts
        Number of conversions by ``FP32 to BF16`` and the like.
    cast_seconds
        Time in them.
    seconds
        Time in all operators of the call together.
    """

    operators: Mapping[str, OperatorDtype]
    casts: Mapping[str, int]
    cast_seconds: float
    seconds: float

    def dtypes(self, operator: str) -> frozenset[str]:
        """The dtypes in which an operator ran: ``FP32``, ``BF16`` ...; empty if it did not run."""
        found = self.operators.get(operator)
        return frozenset(found.calls) if found else frozenset()

    def table(self) -> Table:
        """A row for each operator, and one for the casts."""
        shown = [(row.operator, row.calls, row.seconds) for row in self.operators.values()]
        shown.append(("(casts)", self.casts, self.cast_seconds))
        rows = tuple((name, _counts(calls), f"{100 * seconds / self.seconds:.1f}%") for name, calls, seconds in shown)
        note = f"One call under the profiler, {format_seconds(self.seconds)} in operators. Views and shapes left out."
        return Table(("operator", "ran in", "share of time"), rows, note=note, numeric=("share of time",))


def operator_dtypes(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> OperatorDtypes:
    """Call a model twice, the second time under the profiler, and tell in which dtype its operators ran.

    Call it inside of ``torch.autocast`` to see what that does. Without gradients.

    Parameters
    ----------
    model
        An eager model or a ScriptModule.
    inputs
        Tensors by argument name.

    Returns
    -------
    OperatorDtypes
    """
    with torch.no_grad():
        model(**inputs)
    seen = profile_call(model, inputs)
    calls: dict[str, Counter[str]] = {}
    seconds: Counter[str] = Counter()
    for outermost in _operators(seen.roots):
        kernel = _kernel(outermost)
        dtype = next((_FLOATING[name] for name in kernel.dtypes if name in _FLOATING), None)
        if dtype is None or outermost.name in NO_WORK:
            continue
        name = outermost.name.removeprefix("aten::").rstrip("_")
        calls.setdefault(name, Counter())[dtype] += 1
        seconds[name] += kernel.seconds
    casts = [event for event in seen.events() if event.name == _CAST and _cast_text(event)]
    operators = {
        name: OperatorDtype(name, dict(calls[name].most_common()), spent) for name, spent in seconds.most_common()
    }
    return OperatorDtypes(
        operators=operators,
        casts=dict(Counter(_cast_text(event) for event in casts).most_common()),
        cast_seconds=sum(event.seconds for event in casts),
        seconds=seen.seconds,
    )


def _operators(events: Iterable[Event]) -> Iterator[Event]:
    """The outermost operators; those of a ScriptModule run inside an event of its forward method."""
    for event in events:
        if "::" in event.name:
            yield event
        else:
            yield from _operators(event.children)


def _kernel(event: Event) -> Event:
    """What did the work: autocast calls an operator again with inputs that it has cast; softmax calls ``_softmax``."""
    names = (event.name, event.name.replace("::", "::_"))
    inner = next((child for child in event.children if child.name in names), None)
    return event if inner is None else _kernel(inner)


def _cast_text(event: Event) -> str:
    """``FP32 to BF16``, or nothing for a copy that does not change a floating dtype."""
    copy = next((child for child in event.children if child.name == _COPY), None)
    if copy is None or len(copy.dtypes) < 2:
        return ""
    to, source = (_FLOATING.get(name) for name in copy.dtypes[:2])
    return f"{source} to {to}" if source and to and source != to else ""


def _counts(calls: Mapping[str, int]) -> str:
    return ", ".join(f"{dtype}: {count}" for dtype, count in calls.items()) or "none"
