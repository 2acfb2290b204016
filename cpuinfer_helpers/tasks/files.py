"""Read data files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from cpuinfer_helpers.errors import DataError
from cpuinfer_helpers.machine.paths import given_path


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file.

    Raises
    ------
    DataError
        If the file cannot be read or is not valid JSON; the message names it.
    """
    source = given_path(path)
    try:
        return json.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source} is not valid JSON: {error}") from error


def read_records(path: str | os.PathLike[str], keys: tuple[str, ...]) -> list[tuple[str, Mapping[str, Any]]]:
    """The records of a JSON list, each with where it stands, checked for the keys.

    Raises
    ------
    DataError
        If the file is no such list, or a record lacks a key; the message names it.
    """
    source, records = os.fspath(path), read_json(path)
    if not isinstance(records, list) or not records:
        raise DataError(f"{source} is not a list of records, or an empty one")
    for number, record in enumerate(records):
        missing = [key for key in keys if not isinstance(record, Mapping) or key not in record]
        if missing:
            raise DataError(f"{source}, record {number} has no {missing[0]!r}")
    return [(f"{source}, record {number}", record) for number, record in enumerate(records)]


def is_text(value: object) -> bool:
    """Whether it is a text with more than spaces in it."""
    return isinstance(value, str) and bool(value.strip())
