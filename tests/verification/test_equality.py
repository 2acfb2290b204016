"""What counts as the same answer, with cases on both sides of the line."""

from __future__ import annotations

import pytest
import torch

from cpuinfer_helpers.verification.equality import difference, largest_error

FAR_BELOW, FAR_ABOVE = (
    1e-6,
    1e-3,
)  # FP32: units in the last place add up to about 1e-6; a wrong mask makes 1e-2 and more


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("dtype", "factor", "same"),
    [
        (torch.float32, 1 + FAR_BELOW, True),
        (torch.float32, 1 + FAR_ABOVE, False),
        (torch.float64, 1 + 1e-8, True),
        (torch.float64, 1 + 1e-4, False),
        (torch.bfloat16, 1.01, True),
        (torch.bfloat16, 1.5, False),
    ],
)
def test_the_tolerance_separates_rounding_from_another_answer(dtype, factor, same):
    expected = torch.linspace(-3, 3, 50).to(dtype)
    assert difference(expected, (expected.double() * factor).to(dtype)).passed is same


def test_integers_must_be_equal_and_nan_only_equals_nan():
    assert difference(torch.tensor([1, 2]), torch.tensor([1, 2])).passed
    assert not difference(torch.tensor([1, 2]), torch.tensor([1, 3])).passed
    nan, infinite = torch.tensor([float("nan"), 1.0]), torch.tensor([float("-inf"), 1.0])
    for special in (nan, infinite):
        assert difference(special, special).passed and largest_error(special, special) == 0.0
        for other in (torch.tensor([0.0, 1.0]), -special if special is infinite else infinite):
            assert not difference(special, other).passed and not difference(other, special).passed
            assert largest_error(special, other) == float("inf")


def test_only_valid_positions_are_compared():
    valid = torch.tensor([[True, False]])
    assert largest_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 9.0]]), valid) == 0.0
    assert difference(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 9.0]]), valid).passed


def with_mask(value: float, count: int = 2) -> torch.Tensor:
    scores = 5 * numbers(4, 8)
    scores.view(-1)[3 : 3 + 5 * count : 5] = value
    return scores


@pytest.mark.parametrize("value", [-1e4, -1e9, torch.finfo(torch.float32).min, 1.7e9])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_masking_constant_hides_no_error_in_the_other_answers(value, count):
    expected = with_mask(value, count)
    rounded = torch.where(expected == value, expected, expected * (1 + FAR_BELOW))
    assert difference(expected, rounded).passed
    wrong = expected.clone()
    wrong[0, 0] += 0.02  # 0.1% of the largest of them
    assert not difference(expected, wrong).passed


@pytest.mark.parametrize("value", [-1e4, -1e9, torch.finfo(torch.float32).min])
def test_a_repeated_masking_constant_must_be_that_number(value):
    expected = with_mask(value)
    other = torch.where(expected == value, expected * (1 - 1e-5), expected)
    assert not difference(expected, other).passed


def test_a_bf16_mask_is_rounded_as_bf16_is():
    expected = with_mask(-1e9)
    assert difference(expected, expected.bfloat16().float(), precision="bf16").passed
    assert not difference(expected, torch.where(expected == -1e9, 0.9 * expected, expected), precision="bf16").passed


def test_boxes_in_pixels_hide_no_error_in_scores_beside_them():
    boxes = torch.cat([500 * numbers(20, 4).abs(), numbers(20, 1, seed=1).sigmoid()], dim=1)
    assert difference(boxes, boxes * (1 + FAR_BELOW)).passed
    wrong = boxes.clone()
    wrong[7, 4] += 0.002
    assert not difference(boxes, wrong).passed


def test_time_stamps_hide_no_error_in_a_score_beside_them():
    rows = torch.tensor([[1.7e9, 0.5], [1.7e9 + 512, 0.25]])
    wrong = rows.clone()
    wrong[0, 1] += 0.001
    assert difference(rows, rows).passed and not difference(rows, wrong).passed


def test_answers_near_zero_carry_the_rounding_of_those_beside_them():
    """Noise of three units in the last place of the largest, on outputs of a few numbers: never another answer."""
    for seed in range(300):
        expected = 30 * numbers(2, 3, seed=seed)
        noise = 3e-7 * expected.abs().max() * numbers(2, 3, seed=seed + 1000).clamp(-2, 2)
        assert difference(expected, expected + noise).passed, seed


def test_a_column_is_measured_by_its_own_scale():
    columns = numbers(40, 3) * torch.tensor([100.0, 1.0, 1.0])
    wrong = columns.clone()
    wrong[3, 1] += 5e-3  # far below 1e-4 of the first column's scale
    assert not difference(columns, wrong).passed
    assert difference(columns, columns * (1 + FAR_BELOW)).passed


def test_int8_errs_by_a_share_of_the_largest():
    expected = numbers(40, 3) * torch.tensor([10.0, 1.0, 1.0])
    assert difference(expected, expected + 2.0, precision="int8").passed
    assert not difference(expected, expected + 20.0, precision="int8").passed
    assert not difference(expected, expected + 2.0, precision="bf16").passed


def test_a_tolerance_of_ones_own_is_a_share_of_the_scale():
    expected = numbers(4, 4)
    moved = expected + 0.01 * expected.abs().max()
    assert difference(expected, moved, tolerance=0.02).passed and not difference(expected, moved, tolerance=5e-3).passed


def test_complex_and_empty_answers():
    complex_answers = torch.complex(numbers(3, 3), numbers(3, 3, seed=1))
    assert difference(complex_answers, complex_answers * (1 + FAR_BELOW)).passed
    assert not difference(complex_answers, complex_answers.conj()).passed
    assert difference(torch.zeros(0, 3), torch.zeros(0, 3)).passed and difference(torch.zeros(3), torch.zeros(3)).passed


def test_a_few_answers_near_zero_are_measured_by_what_is_typical():
    expected, seen = torch.tensor([[0.16]]), torch.tensor([[0.18]])
    assert not difference(expected, seen, precision="bf16").passed
    assert difference(expected, seen, precision="bf16", typical=12.0).passed
    assert not difference(expected, seen, typical=12.0).passed
    assert not difference(expected, seen, precision="bf16", tolerance=1e-3, typical=12.0).passed
    assert not difference(expected, expected + 2.0, precision="bf16", typical=12.0).passed


def test_large_answers_of_which_two_meet_by_chance_are_no_masks():
    # Around 1e6, FP32's numbers are 1/16 apart: among some hundreds of answers a few are the same.
    expected = 1e6 + torch.arange(230.0).reshape(-1, 2) / 16
    expected[5] = expected[90]
    rounded = torch.nextafter(expected, torch.tensor(torch.inf))
    assert difference(expected, rounded).passed
    assert not difference(expected, expected * 1.001).passed


def test_masks_among_large_answers_must_be_that_number():
    expected = 1e4 + torch.arange(40.0).reshape(-1, 2)
    expected[::2] = -1e9
    assert difference(expected, expected).passed
    seen = expected.clone()
    seen[0, 0] = -1.001e9
    assert not difference(expected, seen).passed
