"""What an error says in one line is what tells the reader something."""

from __future__ import annotations

import logging

import pytest

import cpuinfer_helpers as cpu
from cpuinfer_helpers.display import Table
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


@pytest.mark.parametrize("text", ["\x1b[2J", "\x07", "\u202egpj.exe", "\ud800", "\x9b31m", "\r", "\u2028"])
def test_nothing_that_moves_the_cursor_is_shown_or_logged(text: str, caplog: pytest.LogCaptureFixture) -> None:
    """Names of files of others stand in errors, tables and logs."""
    logging.getLogger("cpuinfer_helpers").warning("%s is strange, and ü — 東京 are not", f"a{text}b")
    shown = [str(cpu.ArtifactError(f"a{text}b")), Table(("name",), ((f"a{text}b",),)).as_text(), caplog.messages[0]]
    assert all(text not in seen and "a\\" in seen for seen in shown)
    assert "ü — 東京 are not" in caplog.messages[0] and str(cpu.InputError("two\nlines")) == "two\nlines"
