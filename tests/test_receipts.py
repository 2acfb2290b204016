"""What a receipt says about a success and a fallback."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cpuinfer_helpers.receipts import Check, Receipt
from cpuinfer_helpers.saving.plain import read, write

PASSED = Check("other batch size", "3 x 12", True, 1.5e-7, 1e-4)
LEFT_OUT = Check("longer", "", None, note="the model takes no more than 62 tokens")
FAILED = Check("padding", "3 x 12", False, 0.25, 1e-4, "call 2: start_logits differs")
SUCCESS = Receipt(
    requested={"model": "BertForQuestionAnswering", "recipe": "torchscript", "freeze": True},
    script_module=True,
    frozen=True,
    graph_nodes={"aten::linear": 13, "aten::add": 20, "aten::gelu": 2, "a": 1, "b": 1, "c": 1, "d": 1},
    weight_dtypes={"float32": 39},
    linear_dtypes={"float32": 13},
    attention_implementation="sdpa",
    isa=("AVX2", "AVX512"),
    threads=2,
    versions={"torch": "2.8.0"},
    outputs_left_out=("past_key_values",),
    checks=(PASSED, LEFT_OUT),
    warnings=("TracerWarning: a length became a constant",),
    prepare_seconds=1.25,
)
FALLBACK = Receipt(
    requested=SUCCESS.requested, script_module=False, checks=(PASSED, FAILED), reason="the trace fails on 'padding'"
)


@pytest.mark.parametrize("receipt", [SUCCESS, FALLBACK, Receipt(requested={}, script_module=False)])
def test_round_trip_through_json(receipt: Receipt) -> None:
    assert read(Receipt, json.loads(json.dumps(write(receipt))), "receipt") == receipt


def test_it_is_read_again_with_every_field() -> None:
    """A field that is lost on the way would come back as its default."""
    restored = read(Receipt, json.loads(json.dumps(write(SUCCESS))), "receipt")
    assert restored.checks == (PASSED, LEFT_OUT)
    assert isinstance(restored.checks[0], Check)
    assert restored.isa == ("AVX2", "AVX512")
    assert restored.warnings == SUCCESS.warnings


@pytest.mark.parametrize(
    ("checks", "verified"),
    [
        ((), False),
        ((LEFT_OUT,), False),
        ((PASSED,), True),
        ((PASSED, LEFT_OUT), True),
        ((PASSED, FAILED), False),
        ((FAILED,), False),
    ],
)
def test_verified_means_that_a_check_ran_and_none_failed(checks: tuple[Check, ...], verified: bool) -> None:
    assert replace(SUCCESS, checks=checks).verified is verified


def test_table_of_a_success() -> None:
    rows = dict(SUCCESS.table().rows)
    assert rows["runs"] == "ScriptModule, frozen"
    assert rows["prepared in"] == "1.25 s"
    assert rows["verified"] == "1 of 1 checks, largest error 1.5e-07, 1 left out"
    assert rows["graph"].startswith("aten::add 20, aten::linear 13, aten::gelu 2")
    assert rows["weights"] == "float32 39"
    assert rows["linear layers ran in"] == "float32 13"
    assert rows["attention"] == "sdpa"
    assert rows["left out"] == "past_key_values"
    assert rows["warnings"] == "1, first: TracerWarning: a length became a constant"
    assert rows["machine"] == "AVX2/AVX512, 2 threads"
    assert rows["versions"] == "torch 2.8.0"


def test_table_of_a_fallback_says_why_and_shows_no_graph() -> None:
    rows = dict(FALLBACK.table().rows)
    assert rows["runs"] == "the eager model, because the trace fails on 'padding'"
    assert rows["verified"] == "1 of 2 checks, largest error 2.5e-01"
    assert not {"graph", "weights", "linear layers ran in"} & set(rows)


def test_not_frozen_and_not_verified_are_said() -> None:
    rows = dict(replace(SUCCESS, frozen=False, checks=()).table().rows)
    assert rows["runs"] == "ScriptModule, not frozen"
    assert rows["verified"] == "no"


def test_table_of_the_checks() -> None:
    rows = replace(SUCCESS, checks=(PASSED, LEFT_OUT, FAILED)).checks_table().rows
    assert rows == (
        ("other batch size", "3 x 12", "same", "1.5e-07", "1.0e-04", ""),
        ("longer", "", "left out", "", "", "the model takes no more than 62 tokens"),
        ("padding", "3 x 12", "DIFFERS", "2.5e-01", "1.0e-04", "call 2: start_logits differs"),
    )


def test_what_an_older_version_did_not_write_gets_its_default() -> None:
    written = json.loads(json.dumps(write(SUCCESS)))
    del written["evidence"]
    assert read(Receipt, written, "receipt", older=True).evidence == {}
    with pytest.raises(ValueError, match=r"receipt\.evidence should be there"):
        read(Receipt, written, "receipt")
    del written["requested"]
    with pytest.raises(ValueError, match=r"receipt\.requested should be there"):
        read(Receipt, written, "receipt", older=True)
