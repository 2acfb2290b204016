"""What was seen of one module: its graph before and after optimisation, and which kernels ran in one call."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from cpuinfer_helpers import graph
from cpuinfer_helpers.fusion.events import Event, Profile, profile_call
from cpuinfer_helpers.fusion.patterns import PATTERNS, Kernel, Pattern


@dataclass(frozen=True)
class Fused:
    """A fused operator of the executed graph, and the events that show it run.

    Attributes
    ----------
    node
        The node.
    kernel
        The kernel that it should be.
    events
        Its own events; empty if it did not run, or if the profiler's events cannot be told apart.
    """

    node: graph.Node
    kernel: Kernel
    events: tuple[Event, ...]

    @property
    def fast_events(self) -> tuple[Event, ...]:
        """The events in which the fast branch ran."""
        return tuple(event for event in self.events if is_fast(self.kernel, event))

    @property
    def ran_fast(self) -> bool:
        """Whether it ran, and always by the fast branch."""
        return bool(self.events) and len(self.fast_events) == len(self.events)


@dataclass(frozen=True)
class Evidence:
    """Everything that a report is made from.

    Attributes
    ----------
    before
        Nodes of the module's own graph, not optimised.
    executed
        Nodes that the last call ran, in order.
    profile
        Events of the last call.
    inputs
        What the module was called with.
    unfrozen
        How often the executed graph reads an attribute, such as a weight: not at all in a frozen module.
    graphs
        The graphs themselves: a node lives only as long as its graph.
    """

    before: tuple[object, ...]
    executed: tuple[graph.Node, ...]
    profile: Profile
    inputs: Mapping[str, torch.Tensor]
    unfrozen: int
    graphs: tuple[torch.Graph, ...]

    @cached_property
    def kinds(self) -> Counter[str]:
        """How often each kind of node stands in the executed graph."""
        return Counter(node.kind for node in self.executed)

    @property
    def has_ipex(self) -> bool:
        """Whether IPEX, which changes the optimiser of the whole process, has been imported."""
        return "intel_extension_for_pytorch" in sys.modules

    @cached_property
    def _assigned(self) -> dict[int, tuple[Event, ...]]:
        """Events by position of the node in ``executed``; nodes whose events cannot be told apart are left out."""
        by_event: dict[str, list[int]] = {}
        for position, node in enumerate(self.executed):
            name = _event_name(node)
            if name:
                by_event.setdefault(name, []).append(position)
        assigned: dict[int, tuple[Event, ...]] = {}
        for name, positions in by_event.items():
            events = self.events_named(name)
            if len(events) == len(positions) and all(self.executed[position].certain for position in positions):
                assigned.update((p, (event,)) for p, event in zip(positions, events, strict=True))
            elif len(positions) == 1 or not events:
                assigned.update((position, tuple(events)) for position in positions)
        return assigned

    def fused(self, pattern: Pattern) -> list[Fused]:
        """The pattern's operators in the executed graph."""
        found = []
        for position, node in enumerate(self.executed):
            kernel = pattern.kernel_of(node.node)
            if kernel:
                found.append(Fused(node, kernel, self._assigned.get(position, ())))
        return found

    def events_named(self, name: str) -> list[Event]:
        """Events of a name, or of all names that begin like it if it ends in ``*``; none inside another of them."""
        return list(_outermost(self.profile.roots, name))

    def own_events(self, node: object) -> tuple[Event, ...]:
        """Events of a plain operator, by order among those of its kind; empty if they cannot be told apart."""
        same = [found for found in self.executed if found.kind == node.kind()]
        events = self.events_named(node.kind())
        if len(same) != len(events) or not all(found.certain for found in same):
            return ()
        return tuple(event for found, event in zip(same, events, strict=True) if found.node == node)


def gather(module: torch.jit.ScriptModule, inputs: Mapping[str, torch.Tensor], calls: int) -> Evidence:
    """Call a module, the last time under the profiler, and read the graph that this call ran."""
    before = module.inlined_graph
    with torch.no_grad():
        for _ in range(calls - 1):
            module(**inputs)
    profile = profile_call(module, inputs)
    executed = torch.jit.last_executed_optimized_graph()
    return Evidence(
        before=tuple(graph.walk(before)),
        executed=tuple(graph.executed_nodes(executed)),
        profile=profile,
        inputs=inputs,
        unfrozen=sum(node.kind() == "prim::GetAttr" for node in graph.walk(executed)),
        graphs=(before, executed),
    )


def is_fast(kernel: Kernel, event: Event) -> bool:
    """Whether what ran inside a kernel's event is its fast branch."""
    inside = {child.name for child in event.inside()}
    return (not kernel.fast or kernel.fast in inside) and inside.isdisjoint(kernel.slow)


def _event_name(node: graph.Node) -> str | None:
    """The event that a node shows as, if any pattern's kernel is of its kind, fused or not."""
    for pattern in PATTERNS:
        for kernel in pattern.kernels:
            if kernel.node == node.kind:
                return kernel.event_of(node.node)
    return None


def _outermost(events: Sequence[Event], name: str) -> Iterator[Event]:
    for event in events:
        if event.name.startswith(name[:-1]) if name.endswith("*") else event.name == name:
            yield event
        else:
            yield from _outermost(event.children, name)
