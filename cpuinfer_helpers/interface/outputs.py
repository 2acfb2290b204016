"""Take a model's output apart into named tensors, which a trace can return, and put it together again."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from cpuinfer_helpers.errors import TraceError

logger = logging.getLogger("cpuinfer_helpers")

_SINGLE_OUTPUT = "output"
_KINDS = ("tensor", "none", "sequence", "mapping", "left out")


@dataclass(frozen=True)
class OutputSpec:
    """The structure of a model's output, without its tensors.

    Attributes
    ----------
    kind
        ``tensor``, ``none``, ``sequence``, ``mapping`` or ``left out``.
    name
        For a tensor: its name among the tensors, such as ``start_logits`` or ``hidden_states.0``.
    output_class
        For sequences and mappings: the class to build.
    children
        For sequences and mappings: key and structure of each entry.
    """

    kind: str
    name: str = ""
    output_class: type | None = None
    children: tuple[tuple[str, OutputSpec], ...] = ()

    def tensor_names(self) -> tuple[str, ...]:
        """Names of all tensors, in order."""
        if self.kind == "tensor":
            return (self.name,)
        return tuple(name for _, child in self.children for name in child.tensor_names())

    def left_out(self, path: str = "") -> tuple[str, ...]:
        """Paths of the entries that are not tensors and cannot be returned by a trace."""
        if self.kind == "left out":
            return (path or _SINGLE_OUTPUT,)
        return tuple(p for key, child in self.children for p in child.left_out(_join(path, key)))

    # Not by saving.plain: which classes a path may name, and what stands in for others, is decided only here.
    def to_dict(self) -> dict[str, Any]:
        """The structure in types that JSON knows; classes by their import path."""
        path = f"{self.output_class.__module__}:{self.output_class.__qualname__}" if self.output_class else ""
        children = [[key, child.to_dict()] for key, child in self.children]
        return {"kind": self.kind, "name": self.name, "output_class": path, "children": children}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> OutputSpec:
        """The structure that :meth:`to_dict` wrote.

        A class that may not be imported becomes ``dict``, or ``tuple`` for a sequence, with a WARNING.
        """
        if data["kind"] not in _KINDS or not isinstance(data["name"], str) or not isinstance(data["children"], list):
            raise ValueError(f"{data['kind']!r} is no part of an output")
        children = tuple((key, cls.from_dict(child)) for key, child in data["children"])
        if not all(isinstance(key, str) for key, _ in children) or len(dict(children)) != len(children):
            raise ValueError("an output names its parts by texts, each once")
        plain = tuple if data["kind"] == "sequence" else dict
        output_class = _find_class(data["output_class"], plain) if data["output_class"] else None
        return cls(data["kind"], data["name"], output_class, children)


def take_apart(output: Any) -> tuple[dict[str, torch.Tensor], OutputSpec]:
    """Name every tensor of a model's output.

    Parameters
    ----------
    output
        A tensor, a mapping such as a transformers ``ModelOutput``, a named tuple, or nested tuples and lists of these.

    Returns
    -------
    tensors : dict of str to Tensor
        Every tensor by its path: ``start_logits``, ``hidden_states.0`` ...
    spec : OutputSpec
        What :func:`builder` needs to put them together again. Entries that are neither tensors nor containers, such as
        a key-value cache, are noted in it as left out.

    Raises
    ------
    TraceError
        If there is no tensor at all.
    """
    tensors: dict[str, torch.Tensor] = {}
    spec = _describe(output, "", tensors)
    if not tensors:
        raise TraceError(f"the model's output, a {type(output).__name__}, holds no tensor, so a trace cannot return it")
    return tensors, spec


def builder(spec: OutputSpec) -> Callable[[Mapping[str, torch.Tensor]], Any]:
    """A function that puts named tensors together again, into the class that the model returns."""
    if spec.kind == "tensor":
        name = spec.name
        return lambda tensors: tensors[name]
    if spec.kind == "sequence":
        return _sequence_builder(spec)
    if spec.kind == "mapping":
        return _mapping_builder(spec)
    return lambda tensors: None


def _sequence_builder(spec: OutputSpec) -> Callable[[Mapping[str, torch.Tensor]], Any]:
    build = [builder(child) for _, child in spec.children]
    output_class = spec.output_class or tuple
    if hasattr(output_class, "_fields"):
        return lambda tensors: output_class(*(entry(tensors) for entry in build))
    return lambda tensors: output_class(entry(tensors) for entry in build)


def _mapping_builder(spec: OutputSpec) -> Callable[[Mapping[str, torch.Tensor]], Any]:
    output_class = spec.output_class or dict
    # A flat output of tensors is by far the most frequent one, and this runs on every call.
    if all(child.kind == "tensor" for _, child in spec.children):
        names = [(key, child.name) for key, child in spec.children]
        return lambda tensors: output_class(**{key: tensors[name] for key, name in names})
    build = [(key, builder(child)) for key, child in spec.children if child.kind != "left out"]
    return lambda tensors: output_class(**{key: entry(tensors) for key, entry in build})


def _describe(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> OutputSpec:
    if isinstance(value, torch.Tensor):
        name = path or _SINGLE_OUTPUT
        tensors[name] = value
        return OutputSpec("tensor", name=name)
    if value is None:
        return OutputSpec("none")
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        children = [(key, _describe(entry, _join(path, key), tensors)) for key, entry in value.items()]
        return OutputSpec("mapping", output_class=type(value), children=tuple(children))
    if isinstance(value, (tuple, list)):
        entries = [(str(i), _describe(entry, _join(path, str(i)), tensors)) for i, entry in enumerate(value)]
        return OutputSpec("sequence", output_class=type(value), children=tuple(entries))
    return OutputSpec("left out")


def _find_class(path: str, plain: type) -> type:
    """Only classes of transformers, of Python itself, or of modules that the user has imported already."""
    module_name, _, qualified_name = path.partition(":")
    trusted = module_name == "builtins" or module_name.split(".")[0] in ("transformers", "collections")
    found: Any = _import_if_there(module_name) if trusted else sys.modules.get(module_name)
    for part in qualified_name.split("."):
        found = getattr(found, part, None)
    if isinstance(found, type) and issubclass(found, Mapping if plain is dict else (tuple, list)):
        return found
    logger.warning(
        "output class %s is not imported here: calls return a plain %s; import its module first", path, plain.__name__
    )
    return plain


def _import_if_there(name: str) -> Any:
    try:
        return import_module(name)
    except Exception:  # another version of the library has no such module, or it is the name of none
        return None


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
