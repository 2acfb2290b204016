"""Give a model named tensor inputs and a flat dictionary of tensors as output: what traces and exporters can hold."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from cpuinfer_helpers.interface.inputs import BoundInputs, argument_names
from cpuinfer_helpers.interface.outputs import OutputSpec, take_apart


class NamedInputs(torch.nn.Module):
    """A model behind a forward that takes tensors by name and returns a flat dictionary of tensors.

    Attributes
    ----------
    model
        The model.
    constants
        Plain values that every call hands to it.
    spec
        Structure of its output; None until it has run.
    """

    def __init__(self, model: torch.nn.Module, constants: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.constants = dict(constants)
        self.spec: OutputSpec | None = None

    def run_model(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Call the model and take its output apart."""
        named, self.spec = take_apart(self.model(**tensors, **self.constants))
        return named


def named_inputs(model: torch.nn.Module, inputs: BoundInputs, *, is_copy: bool = False) -> NamedInputs:
    """An adapter whose forward has the inputs' names: torch.jit.trace and exporters read them from the signature.

    The model is asked for no key-value cache, unless the inputs ask for one: it is of no use to a single pass, and no
    trace can return it.

    Parameters
    ----------
    model
        Any module.
    inputs
        The example: tensors by name, and the plain values that every call hands over.
    is_copy
        Nobody else has the model, so that its configurations may be changed: models whose ``forward`` takes no
        ``use_cache`` read from those whether to make a cache. It begins as a tensor without dimensions that others are
        appended to, which not every backend can convert.
    """
    names = tuple(inputs.tensors)

    def forward(self: NamedInputs, *by_position: torch.Tensor, **by_name: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.run_model({**dict(zip(names, by_position, strict=False)), **by_name})

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    forward.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in ("self", *names)])
    constants = dict(inputs.constants)
    if "use_cache" in argument_names(model):
        constants.setdefault("use_cache", False)
    if is_copy and not constants.get("use_cache"):
        for part in model.modules():
            config = getattr(part, "config", None)
            if getattr(config, "use_cache", None) is True:
                config.use_cache = False
    adapter = type("NamedInputs", (NamedInputs,), {"forward": forward})(model, constants)
    adapter.training = False
    return adapter
