"""What the profiler saw of PyTorch's fast path in a call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from cpuinfer_helpers.display import Displayed, Table, format_seconds
from cpuinfer_helpers.fusion.events import Event, profile_call

FAST_LAYER = "aten::_transformer_encoder_layer_fwd"
NESTED = "aten::_nested_tensor_from_mask"
_PRODUCTS = ("aten::addmm", "aten::mm", "aten::_addmm_activation", "aten::bmm")
# The profiler's names.
_DTYPES = {"float": "FP32", "double": "FP64", "c10::BFloat16": "BF16", "c10::Half": "FP16"}


@dataclass(frozen=True, repr=False)
class FastPathUse(Displayed):
    """How often the fast path and nested tensors were used in a call; made by :func:`fast_path_use`.

    Attributes
    ----------
    layers
        Encoder layers that the fused kernel computed (``aten::_transformer_encoder_layer_fwd``).
    nested
        Batches that were turned into nested tensors (``aten::_nested_tensor_from_mask``).
    products
        Matrix products inside of those layers, by dtype.
    """

    layers: int
    nested: int
    products: Mapping[str, int]

    def __str__(self) -> str:
        return f"{self.layers} layers in {' and '.join(self.products) or 'nothing'}, {self._nested_text()}"

    def table(self) -> Table:
        """A row for each event that was looked for."""
        rows = (
            ("layers on the fast path", FAST_LAYER, str(self.layers)),
            ("batches made nested tensors", NESTED, str(self.nested)),
            ("matrix products in these layers", "aten::addmm and the like", _counts(self.products)),
        )
        return Table(("seen by the profiler", "event", "times"), rows)

    def _nested_text(self) -> str:
        return "nested tensors" if self.nested else "no nested tensors"


def fast_path_use(model: Callable[..., Any], inputs: Mapping[str, torch.Tensor]) -> FastPathUse:
    """Call a model once under the profiler, without gradients, and count what PyTorch's fast path did in it.

    Parameters
    ----------
    model
        What :func:`~cpuinfer_helpers.to_bettertransformer` returned, a prepared model, or any other.
    inputs
        Tensors by argument name.

    Returns
    -------
    FastPathUse

    Examples
    --------
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    >>> print(fast_path_use(layer, {"src": torch.zeros(1, 3, 8)}))
    1 layers in FP32, no nested tensors
    """
    events = list(profile_call(model, inputs).events())
    layers = [event for event in events if event.name == FAST_LAYER]
    products = [event for layer in layers for event in layer.inside() if event.name in _PRODUCTS]
    dtypes = Counter(_DTYPES.get(event.dtypes[0], event.dtypes[0]) for event in products if event.dtypes)
    return FastPathUse(
        layers=len(layers),
        nested=sum(event.name == NESTED for event in events),
        products=dict(dtypes.most_common()),
    )


@dataclass(frozen=True, repr=False)
class KernelsInside(Displayed):
    """What the fused kernel calls; made by :func:`kernels_inside`.

    Attributes
    ----------
    layers
        Number of layers that it computed.
    calls
        Calls of each kernel in all layers together, by its name without ``aten::``, longest time first.
    seconds
        Time in each, without what it called in turn.
    """

    layers: int
    calls: Mapping[str, int]
    seconds: Mapping[str, float]

    def table(self) -> Table:
        """A row for each kernel that takes at least 1% of the time, and one for all others."""
        total = sum(self.seconds.values())
        shown = [name for name, seconds in self.seconds.items() if seconds >= 0.01 * total]
        rows = [self._row(name, self.calls[name], self.seconds[name] / total) for name in shown]
        others = [name for name in self.calls if name not in shown]
        share = sum(self.seconds[name] for name in others) / total if total else 0.0
        rows.append(self._row(f"({len(others)} others)", sum(self.calls[name] for name in others), share))
        note = f"{self.layers} layers on the fast path, one call under the profiler, {format_seconds(total)} in them."
        columns = ("kernel", "calls a layer", "share of time")
        return Table(columns, tuple(rows), note=note, numeric=columns[1:])

    def _row(self, name: str, calls: int, share: float) -> tuple[str, str, str]:
        return (name, f"{calls / max(self.layers, 1):.0f}", f"{100 * share:.1f}%")


def kernels_inside(model: Callable[..., Any], inputs: Mapping[str, torch.Tensor]) -> KernelsInside:
    """Call a converted model twice, the second time under the profiler, and tell what its fused kernel called.

    Parameters
    ----------
    model, inputs
        As for :func:`fast_path_use`.

    Returns
    -------
    KernelsInside
    """
    with torch.no_grad():
        model(**inputs)
    layers = [event for event in profile_call(model, inputs).events() if event.name == FAST_LAYER]
    calls: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for event in (event for layer in layers for event in layer.inside()):
        name = event.name.removeprefix("aten::")
        calls[name] += 1
        seconds[name] += _own_seconds(event)
    return KernelsInside(len(layers), dict(calls), dict(seconds.most_common()))


def _own_seconds(event: Event) -> float:
    return max(0.0, event.seconds - sum(child.seconds for child in event.children))


def _counts(products: Mapping[str, int]) -> str:
    return ", ".join(f"{dtype}: {count}" for dtype, count in products.items()) or "none"
