"""A status is a kind and a reason; its text is written, and read from a file, in one place."""

from __future__ import annotations

import json

import pytest

from cpuinfer_helpers.processes.status import SUCCESSFUL, Kind, Status, failure


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("reason", ["", "prepare took more than 60 s", "ValueError: too long: 4"])
def test_its_text_tells_all_of_it(kind, reason):
    status = Status(kind, reason)
    assert str(status) == (f"{kind.value}: {reason}" if reason else kind.value)
    assert Status.from_text(str(status)) == status


@pytest.mark.parametrize("text", ["", "nonsense", "lack: of words", "LACKS: it", 5, None, {"kind": "lacks"}])
def test_a_text_of_no_kind_is_refused_with_what_it_says(text):
    with pytest.raises(ValueError, match="should begin with one of: successful, lacks, ") as refused:
        Status.from_text(text)
    assert repr(text) in str(refused.value)


def test_a_kind_is_its_text_however_it_is_written():
    assert Kind.TIMED_OUT == "timed out" and f"{Kind.TIMED_OUT}" == str(Kind.TIMED_OUT) == "timed out"
    assert json.dumps(Kind.TIMED_OUT) == '"timed out"'


def test_what_was_not_begun_or_given_up_is_no_failure():
    failed = {kind for kind in Kind if Status(kind, "because").failed}
    assert set(Kind) - failed == {Kind.SUCCESSFUL, Kind.LACKS, Kind.NOT_TRIED, Kind.SLOWER}
    assert SUCCESSFUL.successful and not any(Status(kind).successful for kind in failed)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("RuntimeError: shapes differ", "fell back: RuntimeError: shapes differ"),
        ("DefaultCPUAllocator: can't allocate memory", "out of memory: DefaultCPUAllocator: can't allocate memory"),
        ("std::bad_alloc", "out of memory: std::bad_alloc"),
        (None, "fell back: no reason given"),
    ],
)
def test_a_reason_that_speaks_of_memory_decides(reason, expected):
    assert str(failure(Kind.FELL_BACK, reason)) == expected
