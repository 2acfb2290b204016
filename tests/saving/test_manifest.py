"""Sizes in a manifest: what was compared is written and read again, and what nobody has written is refused."""

from __future__ import annotations

import json

import pytest
import torch

from cpuinfer_helpers.saving.manifest import read_sizes
from cpuinfer_helpers.saving.plain import write
from cpuinfer_helpers.verification.sizes import Sizes

EXAMPLE = {"x": torch.rand(2, 12, 8), "mask": torch.ones(2, 12)}
LONGER = {"x": torch.rand(1, 20, 8), "mask": torch.ones(1, 20)}
SIZES = Sizes.seen_in(EXAMPLE, [LONGER])
# As folders have it that were saved before.
WRITTEN = {
    "ranges": {"x": [[12, 20], [8, 8]], "mask": [[12, 20]]},
    "equal": [[["x", 0], ["mask", 0]], [["x", 1], ["mask", 1]]],
}


def test_sizes_are_written_as_always_and_read_again():
    written = json.loads(json.dumps(write(SIZES)))
    assert written == WRITTEN
    assert read_sizes({"sizes": written}, EXAMPLE) == SIZES


def test_older_folders_tell_fixed_sizes_or_none():
    assert read_sizes({}, EXAMPLE) == Sizes()
    assert read_sizes({"fixed_sizes": {"x": [12, 8]}}, EXAMPLE).fixed == {"x": torch.Size([12, 8])}


@pytest.mark.parametrize("fixed", [None, {"x": [13, 8]}, {"x": [12]}, {"y": [12]}, {"x": [12.0, 8]}, {"x": "12"}, []])
def test_fixed_sizes_that_nobody_has_written_are_refused(fixed):
    with pytest.raises(ValueError, match="sizes"):
        read_sizes({"fixed_sizes": fixed}, EXAMPLE)


@pytest.mark.parametrize(
    "change",
    [
        {"ranges": {"y": [[1, 2]]}},
        {"ranges": {"x": [[13, 20], [8, 8]]}},
        {"ranges": {"x": [[20, 1], [8, 8]]}},
        {"ranges": {"x": [[-1, 20], [8, 8]]}},
        {"ranges": {"x": [[1, 10**400], [8, 8]]}},
        {"ranges": {"x": [[1, True], [8, 8]]}},
        {"ranges": {"x": [[1, 20]]}},
        {"ranges": {"x": [[1, 20, 30], [8, 8]]}},
        {"ranges": {"x": "12"}},
        {"ranges": None},
        {"equal": [[["x", 1], ["mask", 5]]]},
        {"equal": [[["x", -1], ["mask", 1]]]},
        {"equal": [[["x", 1], ["mask", 0]]]},
        {"equal": [[["y", 1]]]},
        {"equal": [[]]},
        {"equal": 3},
        {"more": 1},
    ],
)
def test_sizes_that_nobody_has_written_are_refused(change):
    with pytest.raises(ValueError, match="sizes"):
        read_sizes({"sizes": {**WRITTEN, **change}}, EXAMPLE)


@pytest.mark.parametrize("sizes", [None, [], {}, {"ranges": {}}, "12"])
def test_what_are_no_sizes_is_refused(sizes):
    with pytest.raises(ValueError, match="sizes"):
        read_sizes({"sizes": sizes}, EXAMPLE)
