"""The padding is read from every form of a mask, or the mask is refused."""

from __future__ import annotations

import pytest
import torch

from cpuinfer_helpers.bettertransformer.padding import valid_positions
from cpuinfer_helpers.errors import RecipeError


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (torch.zeros(2, 4, 4), "padding masks only"),
        (torch.zeros(2, 1, 4, 3), "padding masks only"),
        ("a block mask", "padding masks only"),
        (torch.full((2, 1, 1, 4), -1.0), "adds a bias"),
        (torch.full((2, 4), 0.5), "other numbers"),
        (torch.ones(2, 1, 1, 4, dtype=torch.long), "int64"),
        (torch.ones(2, 1, 4, 4, dtype=torch.bool).tril(), "differs from query to query"),
        (torch.eye(4).bool().expand(2, 4, 4)[:, :, None], "differs"),
    ],
)
def test_masks_that_do_more_than_hide_padding_are_refused(mask, reason):
    with pytest.raises(RecipeError, match=reason):
        valid_positions(mask, 2, 4)


def test_masks_are_read_in_all_their_forms():
    keep = torch.tensor([[True, True, False], [False, False, False]])
    # A row of nothing but padding keeps its first position.
    wanted = torch.tensor([[True, True, False], [True, False, False]])
    additive = torch.zeros(2, 1, 1, 3).masked_fill(~keep[:, None, None], torch.finfo(torch.float32).min)
    infinite = torch.zeros(2, 1, 1, 3).masked_fill(~keep[:, None, None], float("-inf"))
    forms = [keep, keep.long(), keep.float(), keep[:, None, None], additive, infinite, additive.bfloat16()]
    forms += [additive.expand(2, 4, 3, 3), additive.repeat(1, 4, 3, 1), keep[:, None, None].repeat(1, 1, 3, 1)]
    for mask in forms:
        assert torch.equal(valid_positions(mask, 2, 3), wanted), mask
    assert valid_positions(None, 2, 3) is None
    assert valid_positions(torch.ones(2, 3), 2, 3) is None
    assert torch.equal(valid_positions(keep[:1, None, None], 2, 3), keep[:1].expand(2, 3))
