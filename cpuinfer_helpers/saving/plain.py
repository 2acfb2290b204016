"""Dataclasses to JSON, and from it again with every type checked."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from cpuinfer_helpers.errors import printable

# JSON has no such numbers.
SPECIAL_NUMBERS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def write(value: Any) -> Any:
    """A value as JSON can hold it: dataclasses as objects, numbers that it has not as words, texts without escapes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: write(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return next(
            text for text, number in SPECIAL_NUMBERS.items() if number == value or (text == "NaN" and value != value)
        )
    if isinstance(value, str):
        return printable(value, keep="\n\t")
    if isinstance(value, Mapping):
        return {str(key): write(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [write(entry) for entry in value]
    return value


def read(wanted: Any, value: Any, where: str, *, older: bool = False) -> Any:
    """A value of the wanted type from what JSON gave: dataclasses, tuples, mappings, numbers and texts.

    Parameters
    ----------
    wanted
        A type, or a type hint of a dataclass' field.
    value
        What stands in its place.
    where
        The place's name, for the message.
    older
        What is read may be of an older version: fields of the dataclass that have a default may be missing.

    Raises
    ------
    ValueError
        If the value, or a part of it, is of another type; the message names the place.
    """
    if dataclasses.is_dataclass(wanted):
        return _read_class(wanted, value, where, older)
    if wanted is Any:
        return value
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else read(arguments[0], value, where)
    if origin is tuple:
        return _read_tuple(arguments, value, where)
    if origin is not None and issubclass(origin, Mapping):
        _expect(isinstance(value, dict), where, "an object", value)
        return {key: read(arguments[1], entry, f"{where}.{key}") for key, entry in value.items()}
    if wanted is float and isinstance(value, str):
        value = SPECIAL_NUMBERS.get(value, value)
    known = isinstance(value, (int, float) if wanted is float else wanted)
    name = "a number" if wanted is float else wanted.__name__
    _expect(known and (wanted is bool or not isinstance(value, bool)), where, name, value)
    if isinstance(value, int):
        _expect(abs(value) < 2**63, where, "a number of at most 64 bits", value)
    return float(value) if wanted is float else value


def check_fields(found: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """Compare the entries of an object with the types that they must have.

    Parameters
    ----------
    found
        What JSON gave.
    wanted
        A type or a type hint for each entry; those whose hint is ``... | None`` may be missing.
    where
        The object's name, for the message.

    Raises
    ------
    ValueError
        If an entry is missing or of another type; the message names the place.
    """
    for name, hint in wanted.items():
        # A field that newer versions write may be missing, and None may be what it says.
        if name in found or type(None) not in typing.get_args(hint):
            _expect(name in found, f"{where}.{name}", "there", "missing")
            read(hint, found[name], f"{where}.{name}")


def _read_class(wanted: type, value: Any, where: str, older: bool) -> Any:
    _expect(isinstance(value, dict), where, "an object", value)
    hints = typing.get_type_hints(wanted)
    fields = {field.name: field for field in dataclasses.fields(wanted)}
    for name, field in fields.items():
        _expect(name in value or (older and _has_default(field)), f"{where}.{name}", "there", "missing")
    for name in value:
        _expect(name in fields, f"{where}.{name}", "a known field", "unknown")
    return wanted(**{name: read(hints[name], entry, f"{where}.{name}") for name, entry in value.items()})


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _read_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    _expect(isinstance(value, list), where, "a list", value)
    if arguments[-1] is Ellipsis:
        return tuple(read(arguments[0], entry, f"{where}[{i}]") for i, entry in enumerate(value))
    _expect(len(value) == len(arguments), where, f"a list of {len(arguments)}", value)
    return tuple(read(t, entry, f"{where}[{i}]") for i, (t, entry) in enumerate(zip(arguments, value, strict=True)))


def _expect(holds: bool, where: str, what: str, seen: Any) -> None:
    if not holds:
        raise ValueError(f"{where[:100]} should be {what}, and is {_shown(seen)}")


def _shown(seen: Any) -> str:
    try:
        return f"{seen!r:.200}"
    except ValueError:  # Python does not write numbers of thousands of digits
        return f"a {type(seen).__name__}"
