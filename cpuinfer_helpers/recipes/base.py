"""What a recipe is, what a backend hands back, and how both become a drop-in model with a receipt."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cpuinfer_helpers.errors import InputError
from cpuinfer_helpers.interface.copies import EagerModel, attention_of, shared_copy, with_attention
from cpuinfer_helpers.interface.inputs import BoundInputs
from cpuinfer_helpers.machine.report import machine_report
from cpuinfer_helpers.machine.versions import release_of

Tensors = Mapping[str, torch.Tensor]
PRECISIONS = ("fp32", "bf16", "int8")

# What a recipe says of values that it has quantised for a CPU on which sums can overflow.
SEVEN_BITS = "7 of 8 bits in use, so that the sum of two products fits in 16 bits"


@dataclass(frozen=True)
class Request:
    """What a backend is given.

    Attributes
    ----------
    recipe
        Name of the recipe, such as ``ipex-bf16``.
    precision
        ``fp32``, ``bf16`` or ``int8``.
    model
        The eager model in evaluation mode: a copy with the user's own parameters, which a backend never changes; see
        :mod:`~cpuinfer_helpers.interface.copies`.
    inputs
        Example inputs: tensors by name, and plain values that become constants.
    calibration
        Inputs by name for static quantisation, a few dozen; empty where none were given.
    make_eager
        Makes :meth:`eager`'s result, by one who knows whether calls change the model.
    one_shape
        Only inputs of exactly the example's shape will come.
    verified
        The answers will be compared with the model's, so that a model with random ones is refused.
    """

    recipe: str
    precision: str
    model: torch.nn.Module
    inputs: BoundInputs
    calibration: tuple[dict[str, torch.Tensor], ...] = ()
    make_eager: Callable[[], EagerModel] | None = None
    one_shape: bool = False
    verified: bool = True

    def eager(self) -> EagerModel:
        """The model as it answers eagerly, unchanged by its calls."""
        return self.make_eager() if self.make_eager else EagerModel(self.model, fresh=False)

    def copy_with_attention(self, implementation: str) -> torch.nn.Module:
        """A copy of the model with another attention, or with its own where attention maps were asked for.

        Only eager attention can return those.
        """
        asked = self.inputs.constants.get("output_attentions", getattr(self.config, "output_attentions", False))
        keeps = asked and attention_of(self.model) == "eager"
        return shared_copy(self.model) if keeps else with_attention(self.model, implementation)

    @property
    def config(self) -> Any:
        """The model's configuration, or None."""
        return getattr(self.model, "config", None)


@dataclass(frozen=True)
class Build:
    """What a backend hands back.

    Attributes
    ----------
    answer
        Called with tensors by name, always the example's names; returns every output tensor by the name that
        :func:`~cpuinfer_helpers.interface.outputs.take_apart` gives it, in any floating dtype.
    runs
        What answers now, in a few words: ``ScriptModule, frozen``, ``OpenVINO compiled model`` ...
    module
        The ScriptModule that runs, where there is one.
    evidence
        What was seen to run, as texts by name: executed precisions, counts of kernels ...
    attention
        Attention implementation of what runs; None for models that have none.
    frozen, graph_nodes, weight_dtypes, linear_dtypes, warnings
        For the receipt; see :class:`~cpuinfer_helpers.receipts.Receipt`.
    otherwise
        Makes the same in another way, for when this one's answers turn out not to be the model's; None where there is
        no other.
    """

    answer: Callable[[dict[str, torch.Tensor]], Tensors]
    runs: str
    module: torch.jit.ScriptModule | None = None
    evidence: Mapping[str, str] = field(default_factory=dict)
    attention: str | None = None
    frozen: bool = False
    graph_nodes: Mapping[str, int] = field(default_factory=dict)
    weight_dtypes: Mapping[str, int] = field(default_factory=dict)
    linear_dtypes: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    otherwise: Callable[[], Build] | None = None


@dataclass(frozen=True)
class Stored:
    """What a backend is told when it is to run what it has exported.

    Attributes
    ----------
    inputs
        The example that it was made with.
    outputs
        Names of the output tensors, in order.
    details
        What the backend's ``export`` returned.
    """

    inputs: BoundInputs
    outputs: tuple[str, ...]
    details: Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """One way to run a model: a name, what it needs, and a function that prepares a model.

    Attributes
    ----------
    name
        ``backend-precision``.
    summary
        What it does, in one line.
    build
        Prepares a model; raises whatever its backend raises.
    needs
        Distributions that it imports, with the lowest version where one is needed: ``openvino>=2024.4``.
    obstacle
        Further reasons why it cannot run here, found without importing anything heavy; None if there are none.
    changes_process
        What using it does to the whole process, for as long as that lives; empty if it does nothing.
    export
        Writes what was made of a model into a folder; returns what ``restore`` must know beside, in types that JSON
        knows. None where there is nothing that could be written.
    restore
        Makes of that folder what answers; ``evidence`` and the like may stay empty.
    """

    name: str
    summary: str
    build: Callable[[Request], Build]
    needs: tuple[str, ...] = ()
    obstacle: Callable[[], str | None] = lambda: None
    changes_process: str = ""
    export: Callable[[Request, Build, Path], dict[str, Any]] | None = None
    restore: Callable[[Stored, Path], Build] | None = None

    @property
    def backend(self) -> str:
        """The part of the name before the precision."""
        return self.name.rpartition("-")[0]

    @property
    def precision(self) -> str:
        """``fp32``, ``bf16`` or ``int8``."""
        return self.name.rpartition("-")[2]

    @property
    def why_not(self) -> str | None:
        """Why it cannot run here, or None if it can."""
        for need in self.needs:
            reason = _missing(need)
            if reason:
                return reason
        return self.obstacle()

    @property
    def can_run(self) -> bool:
        """Whether what it needs is here."""
        return self.why_not is None

    @property
    def emulated(self) -> bool:
        """Whether this CPU lacks instructions for the recipe's precision."""
        return self.emulation is not None

    @property
    def emulation(self) -> str | None:
        """Which instructions for its precision this CPU lacks, and what that costs; None if it has them."""
        return machine_report().emulation(self.precision)


def _missing(need: str) -> str | None:
    """Why a requirement such as ``openvino>=2024.4`` is not met, or None if it is."""
    parts = re.fullmatch(r"([\w.-]+?)(?:(>=|==)([\d.]+))?", need)
    if parts is None:
        raise InputError(f"a recipe needs {need!r}, which is not understood; write name, name>=1.2 or name==1.2")
    name, operator, wanted = parts.groups()
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is not installed; pip install {shlex.quote(need)}"
    have, want = release_of(installed), release_of(wanted or "0")
    fits = have[: len(want)] == want if operator == "==" else have >= want
    return None if fits else f"{name} {installed} is installed, it needs {need}"
