"""Sizes that were compared, and what happens to others."""

from __future__ import annotations

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.verification.sizes import Sizes

EXAMPLE = {"x": torch.rand(2, 12, 8), "mask": torch.ones(2, 12)}


def seen(*groups: dict[str, torch.Tensor], parts=()) -> Sizes:
    return Sizes.seen_in(EXAMPLE, groups, parts)


def test_sizes_between_those_that_were_compared_may_come_and_no_others():
    sizes = seen(
        {"x": torch.rand(1, 4, 8), "mask": torch.ones(1, 4)}, {"x": torch.rand(1, 20, 8), "mask": torch.ones(1, 20)}
    )
    sizes.refuse_others({"x": torch.rand(7, 13, 8), "mask": torch.ones(7, 13)})
    for length in (3, 21):
        with pytest.raises(
            cpu.InputError, match=f"each row of x is {length} x 8; .* at 4 to 20 x 8 only: .*prepare the model anew"
        ):
            sizes.refuse_others({"x": torch.rand(2, length, 8), "mask": torch.ones(2, length)})
    with pytest.raises(cpu.InputError, match=r"each row of x is 12 x 9; .* at 4 to 20 x 8 only"):
        sizes.refuse_others({"x": torch.rand(2, 12, 9), "mask": torch.ones(2, 12)})
    with pytest.raises(cpu.InputError, match="x has 2 dimensions, and had 3"):
        sizes.refuse_others({"x": torch.rand(2, 12), "mask": torch.ones(2, 12)})


def test_sizes_that_were_equal_stay_equal_unless_a_part_was_compared_alone():
    longer = {"x": torch.rand(2, 20, 8), "mask": torch.ones(2, 20)}
    with pytest.raises(cpu.InputError, match="x has 20 and mask 13 as dimension 1"):
        seen(longer).refuse_others({"x": torch.rand(2, 20, 8), "mask": torch.ones(2, 13)})
    with pytest.raises(cpu.InputError, match="x has 2 and mask 1 rows"):
        seen(longer).refuse_others({"x": torch.rand(2, 12, 8), "mask": torch.ones(1, 12)})
    seen(longer, parts=[(("x", 1),)]).refuse_others({"x": torch.rand(2, 20, 8), "mask": torch.ones(2, 13)})


def test_an_input_of_one_size_is_fixed():
    assert seen().fixed == {"x": torch.Size([12, 8]), "mask": torch.Size([12])}
    with pytest.raises(cpu.InputError, match=r"each row of x is 13 x 8; .* at 12 x 8 only"):
        seen().refuse_others({"x": torch.rand(2, 13, 8), "mask": torch.ones(2, 13)})
