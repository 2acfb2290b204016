"""What an error says in one line is what tells the reader something."""

from __future__ import annotations

import pytest

from cpuinfer_helpers.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("7 is too large\nfor this"), "ValueError: 7 is too large"),
        (ValueError("ValueError: once is enough"), "ValueError: once is enough"),
        (KeyError(), "KeyError: no message"),
        (RuntimeError("\n  \n"), "RuntimeError: no message"),
        (RuntimeError("Traceback:\n  code\nRuntimeError: shapes differ"), "RuntimeError: shapes differ"),
        (
            RuntimeError("the compiler raised:\nTypeError: no kernel\nmore"),
            "RuntimeError: the compiler raised: TypeError: no kernel",
        ),
        (RuntimeError("the compiler raised:"), "RuntimeError: the compiler raised:"),
    ],
)
def test_the_first_telling_line(error: Exception, line: str) -> None:
    assert first_line(error) == line
