"""One profiled call as a tree of events: which kernels ran, inside which, and for how long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from cpuinfer_helpers.machine.switches import native_stderr_logged


@dataclass
class Event:
    """Something that the profiler saw run.

    Attributes
    ----------
    name
        The operator's or kernel's name.
    seconds
        From its start to its end, what it called included.
    dtypes, shapes
        Of its inputs, as the profiler writes them; empty where an input is no tensor.
    children
        What it called, in order.
    """

    name: str
    start: int
    end: int
    dtypes: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    children: list[Event] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Time from start to end, in seconds."""
        return (self.end - self.start) * 1e-9

    def inside(self) -> Iterator[Event]:
        """Every event that ran inside this one."""
        for child in self.children:
            yield child
            yield from child.inside()


@dataclass(frozen=True)
class Profile:
    """The events of one call, in the order in which they started; ``roots`` ran inside no other."""

    roots: tuple[Event, ...]

    @property
    def seconds(self) -> float:
        """Time in all events together, in seconds; nested ones count once."""
        return sum(root.seconds for root in self.roots)

    def events(self) -> Iterator[Event]:
        """All events, nested ones after the one that they ran in."""
        for root in self.roots:
            yield root
            yield from root.inside()


def profile_call(module: torch.jit.ScriptModule, inputs: Mapping[str, torch.Tensor]) -> Profile:
    """Call a module once, without gradients, under PyTorch's profiler.

    Parameters
    ----------
    module
        A ScriptModule that takes ``inputs`` by name.
    inputs
        Tensors by name.
    """
    with (
        torch.no_grad(),
        native_stderr_logged(),
        profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler,
    ):
        module(**inputs)
    return Profile(tuple(_nested(profiler.profiler.kineto_results.events())))


def _nested(seen: Iterable[Any]) -> list[Event]:
    """Put each event into the one that was running on its thread when it started."""
    by_thread: dict[int, list[Event]] = {}
    for event in seen:
        if not event.is_async():
            by_thread.setdefault(event.start_thread_id(), []).append(_event(event))
    roots = [root for events in by_thread.values() for root in _nested_on_one_thread(events)]
    return sorted(roots, key=lambda event: event.start)


def _nested_on_one_thread(events: list[Event]) -> Iterator[Event]:
    open_events: list[Event] = []
    for event in sorted(events, key=lambda event: (event.start, -event.end)):
        while open_events and open_events[-1].end <= event.start:
            open_events.pop()
        if open_events:
            open_events[-1].children.append(event)
        else:
            yield event
        open_events.append(event)


def _event(seen: Any) -> Event:
    start = seen.start_ns()
    return Event(
        name=seen.name(),
        start=start,
        end=start + seen.duration_ns(),
        dtypes=tuple(str(dtype) for dtype in seen.dtypes()),
        shapes=tuple(tuple(shape) for shape in seen.shapes()),
    )
