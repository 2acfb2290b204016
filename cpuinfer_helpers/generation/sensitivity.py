"""Which layers of a model 8 bits are too few for, and what each of them is stored and multiplied in instead."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm

from cpuinfer_helpers.generation import linears
from cpuinfer_helpers.generation.closeness import closeness
from cpuinfer_helpers.generation.layout import named_arguments
from cpuinfer_helpers.generation.positions import positions_of

# From few bits to more: the same weights with twice the bits of what is multiplied, then weights of 16 bits.
_MORE_BITS: Mapping[str, tuple[type[linears.Replacing], ...]] = {
    "linear": (linears.Int8Linear, linears.Int8TwiceLinear, linears.Fp16Linear),
    "embedding": (linears.Int8Embedding, linears.Fp16Embedding),
}
# Of all that 8 bits cost, that of the other layers is not worth looking at any closer.
_SHARE = 0.98

Made = Mapping[str, type[linears.Replacing]]


@dataclass
class _Part:
    """A layer, and what each way of storing it costs: the square of the logits' relative error, it alone converted."""

    path: str
    ways: tuple[type[linears.Replacing], ...]
    costs: list[float]
    chosen: int = 0

    @property
    def cost(self) -> float:
        return self.costs[self.chosen]

    @property
    def gain(self) -> float:
        """By how much the next way costs less."""
        return self.cost - self.costs[self.chosen + 1] if self.chosen + 1 < len(self.costs) else 0.0


class Sensitivity:
    """What 8 bits cost in each layer of a decoder, as seen when it alone is converted.

    Errors of layers are taken to add up like independent ones: their squares do.

    Parameters
    ----------
    model
        In FP32; each layer is replaced for a moment, and put back.
    ids, mask
        Texts (rows, tokens) on which logits are compared, and 0 for padding.
    """

    def __init__(self, model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> None:
        self.model, self.mask = model, mask.bool()
        arguments = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": positions_of(mask, ids.shape[1]),
            "use_cache": False,
            "return_dict": True,
        }
        self.arguments = named_arguments(model, arguments)
        self.expected = self._logits()
        bar = tqdm(_paths(model), desc="8 bits, layer by layer", delay=5, leave=False)
        self.parts = [self._part(path, kind) for path, kind in bar]
        self._look_closer()

    def keeping(self, allowed: float) -> Made:
        """What the layers that 8 bits are too few for are to be, by path, so that the logits' mean error is allowed.

        Parameters
        ----------
        allowed
            Largest relative error of all logits together that is to be expected.
        """
        for part in self.parts:
            part.chosen = 0
        while math.sqrt(sum(part.cost for part in self.parts)) > allowed:
            most = max(self.parts, key=lambda part: part.gain)
            if most.gain <= 0:
                break
            most.chosen += 1
        return {part.path: part.ways[part.chosen] for part in self.parts if part.chosen}

    def _part(self, path: str, kind: str) -> _Part:
        ways = _MORE_BITS[kind]
        layer = self.model.get_submodule(path)
        if linears.saturated(layer):
            ways = ways[:-1]
        return _Part(path, ways, [self._cost(path, ways[0])])

    def _look_closer(self) -> None:
        """See what more bits cost where 8 cost most; a layer in 16 is taken to cost nothing."""
        total, seen = sum(part.cost for part in self.parts), 0.0
        for part in tqdm(sorted(self.parts, key=lambda part: -part.cost), desc="with more bits", delay=5, leave=False):
            if seen > _SHARE * total:
                break
            seen += part.cost
            middle = [self._cost(part.path, way) for way in part.ways[1:] if way is linears.Int8TwiceLinear]
            part.costs += [*middle, *(0.0 for way in part.ways[1 + len(middle) :])]

    def _cost(self, path: str, way: type[linears.Replacing]) -> float:
        layer = self.model.get_submodule(path)
        linears.put(self.model, path, linears.made_of(layer, way))
        try:
            return closeness(self.expected, self._logits(), 1.0).mean ** 2
        finally:
            linears.put(self.model, path, layer)

    def _logits(self) -> torch.Tensor:
        with torch.no_grad():
            return self.model(**self.arguments).logits[self.mask].float()


def _paths(model: torch.nn.Module) -> Sequence[tuple[str, str]]:
    """Linear layers and the token embedding."""
    found = [(path, "linear") for path in linears.linear_layers(model)]
    embedding = model.get_input_embeddings()
    return found + [(path, "embedding") for path, part in model.named_modules() if part is embedding and path]


def told(made: Made) -> str:
    """How many layers are what, and which."""
    texts = {linears.Int8TwiceLinear: "multiplied in two parts", linears.Fp16Linear: "in FP16"}
    groups: dict[str, list[str]] = {}
    for path, way in made.items():
        groups.setdefault(texts.get(way, "embedding in FP16"), []).append(path)
    return "; ".join(f"{len(paths)} {how} ({_first(paths)})" for how, paths in groups.items())


def _first(paths: Sequence[str], most: int = 3) -> str:
    return ", ".join(paths[:most]) + (" ..." if len(paths) > most else "")
