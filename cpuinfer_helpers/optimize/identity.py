"""A number for what a function does: equal only if its code and everything that it holds are."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))
# What Python itself makes of slots and properties in C; their names say all.
_DESCRIPTORS = (
    types.MemberDescriptorType,
    types.GetSetDescriptorType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.ClassMethodDescriptorType,
    types.MethodWrapperType,
)


def identity_of(value: Any, known: Mapping[int, str] | None = None) -> str | None:
    """A sha256 of all that decides what a value does or is, the same in every process.

    Of a function: its bytecode and constants, its defaults, what it has closed over, and the globals that it names; of
    an object: its class and its state; of a tensor: its numbers. What comes with an installed library is known by its
    name and version.

    Parameters
    ----------
    value
        Such as a metric: a function, a ``functools.partial``, an object that can be called.
    known
        Names by ``id`` for objects that are described elsewhere, such as the model.

    Returns
    -------
    str or None
        None if some of it cannot be seen: an open file, a generator, a lock.
    """
    digest = _Digest(known or {})
    try:
        digest.add(value)
    except Exception:  # whatever cannot be described says so with errors of its own
        return None
    return digest.hexdigest()


class _Digest:
    """Takes in values one after the other, each with what belongs to it."""

    def __init__(self, known: Mapping[int, str]) -> None:
        self._hash = hashlib.sha256()
        self._known = known
        # By id, with the object itself so that no other gets its id meanwhile.
        self._seen: dict[int, tuple[int, Any]] = {}

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def add(self, value: Any) -> None:
        """Take in a value; one that has come before by its number only."""
        if isinstance(value, _PLAIN):
            self._words(type(value).__name__, repr(value))
        elif id(value) in self._known:
            self._words("known", self._known[id(value)])
        elif id(value) in self._seen:
            self._words("again", self._seen[id(value)][0])
        else:
            # Of what cannot change, a process may keep one or several.
            if not isinstance(value, (tuple, frozenset, types.CodeType)):
                self._seen[id(value)] = (len(self._seen), value)
            self._add_new(value)

    def _add_new(self, value: Any) -> None:
        if type(value) in _CONTAINERS:
            return _CONTAINERS[type(value)](self, value)
        for kind, add in _ADDERS:
            if isinstance(value, kind):
                return add(self, value)
        self._words("object")
        self._each(_reduced(value))

    def _words(self, *words: object) -> None:
        self._hash.update("".join(f"{len(str(word))}:{word}" for word in words).encode("utf-8", "surrogatepass"))

    def _each(self, values: Iterable[Any]) -> None:
        listed = list(values)
        self._words("sequence", len(listed))
        for value in listed:
            self.add(value)

    def _tensor(self, tensor: torch.Tensor) -> None:
        flat = tensor.detach().cpu().contiguous().flatten()
        self._words("tensor", tensor.dtype, tuple(tensor.shape))
        if flat.numel():
            self._hash.update(flat.view(torch.uint8).numpy().data)

    def _mapping(self, mapping: Mapping[Any, Any]) -> None:
        self._words(type(mapping).__qualname__)
        self._each(part for item in mapping.items() for part in item)

    def _sequence(self, values: Iterable[Any]) -> None:
        self._words(type(values).__qualname__)
        self._each(values)

    def _set(self, values: Iterable[Any]) -> None:
        # Texts of a set come in another order in every process.
        parts = [identity_of(value, self._known) for value in values]
        self._words("set")
        self._each(sorted(part for part in parts if part is not None))
        if None in parts:
            raise TypeError("a set holds what cannot be seen")

    def _code(self, code: types.CodeType) -> None:
        self._words("code", code.co_name, code.co_argcount, code.co_kwonlyargcount, code.co_flags, code.co_names)
        self._words(code.co_varnames, code.co_freevars, code.co_cellvars)
        self._hash.update(code.co_code)
        self._each(code.co_consts)

    def _function(self, function: types.FunctionType) -> None:
        self._words("function", function.__module__, function.__qualname__)
        if _comes_with_a_library(function.__module__):
            return self._words(_version(function.__module__))
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        given = {name: function.__globals__[name] for name in _names(function.__code__, function.__globals__)}
        self._each((function.__code__, function.__defaults__, function.__kwdefaults__, cells, given))

    def _method(self, method: types.MethodType) -> None:
        self._words("method")
        self._each((method.__func__, method.__self__))

    def _built_in(self, function: types.BuiltinFunctionType) -> None:
        self._words("built in", function.__module__, function.__qualname__)
        if not isinstance(function.__self__, (types.ModuleType, type)):
            self.add(function.__self__)

    def _partial(self, partial: functools.partial[Any]) -> None:
        self._words("partial")
        self._each((partial.func, partial.args, partial.keywords))

    def _module(self, module: types.ModuleType) -> None:
        self._words("module", module.__name__, _version(module.__name__))
        if not _comes_with_a_library(module.__name__) and module.__file__:
            self._hash.update(Path(module.__file__).read_bytes())

    def _class(self, kind: type) -> None:
        self._words("class", kind.__module__, kind.__qualname__)
        if _comes_with_a_library(kind.__module__):
            return self._words(_version(kind.__module__))
        own = {
            name: part
            for name, part in sorted(vars(kind).items())
            if not name.startswith("__") or isinstance(part, types.FunctionType)
        }
        own.pop("_abc_impl", None)
        self._each((kind.__bases__, own))

    def _wrapped(self, wrapped: staticmethod[..., Any] | classmethod[Any, ..., Any]) -> None:
        self._words(type(wrapped).__name__)
        self.add(wrapped.__func__)

    def _property(self, wrapped: property) -> None:
        self._words("property")
        self._each((wrapped.fget, wrapped.fset, wrapped.fdel))

    def _descriptor(self, descriptor: Any) -> None:
        self._words("descriptor", descriptor.__qualname__)


_ADDERS: tuple[tuple[Any, Callable[[_Digest, Any], None]], ...] = (
    (torch.nn.Parameter, _Digest._tensor),
    (torch.Tensor, _Digest._tensor),
    (types.FunctionType, _Digest._function),
    (types.CodeType, _Digest._code),
    (types.MethodType, _Digest._method),
    (types.BuiltinFunctionType, _Digest._built_in),
    (types.ModuleType, _Digest._module),
    (functools.partial, _Digest._partial),
    ((staticmethod, classmethod), _Digest._wrapped),
    (property, _Digest._property),
    (_DESCRIPTORS, _Digest._descriptor),
    (type, _Digest._class),
    (types.MappingProxyType, _Digest._mapping),
)
_CONTAINERS: Mapping[type, Callable[[_Digest, Any], None]] = {
    dict: _Digest._mapping,
    list: _Digest._sequence,
    tuple: _Digest._sequence,
    set: _Digest._set,
    frozenset: _Digest._set,
}


def _reduced(value: Any) -> tuple[Any, ...]:
    """What pickle would write of an object: how it is made, and its state."""
    reduced = value.__reduce_ex__(4)
    if isinstance(reduced, str):
        return (type(value), reduced)
    made, arguments, *rest = reduced
    entries = [list(part) if index else part for index, part in enumerate(rest[:3]) if part is not None]
    return (made, arguments, *entries)


def _names(code: types.CodeType, known: Mapping[str, Any]) -> list[str]:
    """Globals that code names, functions inside of it included."""
    found = {name for name in code.co_names if name in known}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found.update(_names(constant, known))
    return sorted(found)


@functools.cache
def _comes_with_a_library(module: str | None) -> bool:
    top = (module or "").partition(".")[0]
    if top in sys.stdlib_module_names or top == "cpuinfer_helpers":
        return True
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    places = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
    return file is not None and any(Path(place) in Path(file).parents for place in places)


@functools.cache
def _version(module: str) -> str:
    try:
        return importlib.metadata.version(module.partition(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return ""
