"""Read data files."""

from __future__ import annotations

import json
import os
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
