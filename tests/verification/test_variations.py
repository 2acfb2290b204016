"""What is asked does not depend on the names of inputs: every dimension, every part, content, padding."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch

from cpuinfer_helpers.verification.variations import Question, plan, same_shape_plan


def shapes_of(questions: Iterable[Question], name: str) -> set[tuple[int, ...]]:
    return {
        tuple(variation.inputs[name].shape)
        for question in questions
        for variation in question.alternatives
        if variation.inputs is not None
    }


def ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, 60, shape, generator=torch.Generator().manual_seed(seed))


def by_name(example: dict[str, torch.Tensor]) -> dict[str, Question]:
    return {question.alternatives[0].name: question for question in plan(None, example)}


def test_every_dimension_after_the_batch_is_tried_shorter_longer_and_far_longer():
    shapes = shapes_of(plan(None, {"x": torch.rand(2, 12, 8), "y": torch.rand(2, 5)}), "x")
    lengths, features = {shape[1] for shape in shapes}, {shape[2] for shape in shapes}
    assert {1, 2, 4, 15, 768} <= lengths and {1, 2, 11, 768} <= features
    assert {(3, 12, 8), (1, 12, 8)} <= shapes


def test_equal_sizes_are_varied_together_and_each_sequence_by_itself():
    example = {"input_ids": ids(2, 12), "attention_mask": torch.ones(2, 12), "decoder_input_ids": ids(2, 12, seed=1)}
    pairs = {
        (v.inputs["input_ids"].shape[1], v.inputs["attention_mask"].shape[1], v.inputs["decoder_input_ids"].shape[1])
        for question in plan(None, example)
        for v in question.alternatives
        if v.inputs is not None
    }
    assert {(15, 15, 15), (768, 768, 768), (12, 12, 15), (12, 12, 6), (15, 15, 12)} <= pairs
    # Nobody gives a mask that is longer than its tokens.
    assert not any(mask not in (tokens, decoded) for tokens, mask, decoded in pairs)


def test_choices_and_length_are_told_apart():
    example = {"input_ids": ids(2, 3, 12), "attention_mask": torch.ones(2, 3, 12, dtype=torch.long)}
    shapes = shapes_of(plan(None, example), "input_ids")
    assert {(2, 6, 12), (2, 3, 15)} <= shapes
    equal = {"input_ids": ids(2, 4, 4), "attention_mask": torch.ones(2, 4, 4, dtype=torch.long)}
    assert {(2, 7, 4), (2, 4, 7), (2, 7, 7)} <= shapes_of(plan(None, equal), "input_ids")


def test_masks_of_three_and_four_dimensions_go_with_the_sequence():
    example = {"x": torch.rand(2, 12, 8), "mask": torch.zeros(2, 1, 12, 12), "other": torch.ones(2, 12, 12)}
    longer = by_name(example)["longer (x, dimension 1)"].alternatives[0].inputs
    assert {name: tuple(tensor.shape) for name, tensor in longer.items()} == {
        "x": (2, 15, 8),
        "mask": (2, 1, 15, 15),
        "other": (2, 15, 15),
    }


def test_inputs_of_different_numbers_of_rows_are_varied_together_and_alone():
    example = {"input_ids": ids(2, 12), "pixel_values": torch.rand(1, 3, 32, 32)}
    rows = {
        (v.inputs["input_ids"].shape[0], v.inputs["pixel_values"].shape[0])
        for question in plan(None, example)
        for v in question.alternatives
        if v.inputs is not None
    }
    assert {(2, 1), (3, 2), (4, 1), (2, 3)} <= rows


def test_images_are_asked_at_larger_smaller_and_odd_sizes():
    shapes = shapes_of(plan(None, {"pixel_values": torch.rand(2, 3, 32, 32)}), "pixel_values")
    assert {(2, 3, 48, 48), (2, 3, 24, 24), (2, 3, 41, 41), (1, 3, 64, 64), (2, 3, 40, 32)} <= shapes
    images = [q for q in plan(None, {"x": torch.rand(2, 3, 32, 32)}) if "image" in q.alternatives[0].name]
    assert images and all(question.keeps_size for question in images)


def test_contents_are_drawn_anew_and_negated_and_masks_have_holes():
    example = {"x": torch.randn(2, 6), "tokens": ids(2, 6), "mask": torch.ones(2, 6, dtype=torch.long)}
    named = by_name(example)
    negated = named["negated"].alternatives[0].inputs
    assert torch.equal(negated["x"], -example["x"]) and not torch.equal(negated["tokens"], example["tokens"])
    drawn = [q.alternatives[0].inputs for q in plan(None, example) if q.alternatives[0].name == "redrawn"]
    assert len({tuple(inputs["tokens"].flatten().tolist()) for inputs in drawn}) == len(drawn) == 3
    assert all(torch.equal(inputs["mask"], example["mask"]) for inputs in drawn)
    holes = named["masks redrawn"].alternatives[0].inputs["mask"]
    assert bool((holes[:, 0] == 1).all()) and 0 < int(holes.sum()) < holes.numel()


def test_many_rows_are_asked_for_where_they_cost_little():
    assert by_name({"x": torch.rand(2, 12)})["many rows"].alternatives[0].inputs["x"].shape == (33, 12)
    assert "many rows" not in by_name({"pixel_values": torch.rand(1, 3, 224, 224)})


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_short_examples_are_varied_too(length):
    shapes = shapes_of(plan(None, {"input_ids": ids(2, length)}), "input_ids")
    assert any(shape[1] > length for shape in shapes) and (length == 1 or any(shape[1] < length for shape in shapes))


def test_without_a_mask_nothing_is_padded():
    padding = by_name({"input_ids": ids(2, 12)})["padding"].alternatives[0]
    assert padding.inputs is None and "no attention mask" in padding.note


def test_rows_of_mostly_padding_are_asked_at_the_examples_own_size_and_far_beyond():
    named = by_name({"input_ids": ids(2, 24), "attention_mask": torch.ones(2, 24, dtype=torch.long)})
    asked = (question.alternatives[0] for question in named.values())
    masks = {variation.name: variation.inputs["attention_mask"] for variation in asked if variation.inputs}
    assert masks["mostly padding"].shape == (2, 24) and masks["mostly padding"].sum(dim=1).tolist() == [12, 6]
    far = masks["far longer, mostly padding"]
    assert far.shape[1] > 100 and far.sum().item() == far.shape[1] // 4


def test_only_rows_that_are_equal_by_mistake_are_kept_together():
    texts, images = ids(2, 7), torch.rand(2, 3, 32, 32)
    same = {"input_ids": texts, "pixel_values": images}
    other = {"input_ids": texts[:1], "pixel_values": images}
    for example, kept in ((same, True), (other, False)):
        alone = [question for question in plan(None, example) if question.part and question.part[0][1] == 0]
        assert alone and all(question.keeps_rows is kept for question in alone)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_trace_of_one_shape_is_asked_for_mostly_padding_too(rows):
    given = {"input_ids": ids(rows, 24), "attention_mask": torch.ones(rows, 24, dtype=torch.long)}
    asked = [question.alternatives[0].inputs["attention_mask"] for question in same_shape_plan(None, given)]
    assert all(mask.shape == (rows, 24) for mask in asked)
    assert min(int(mask.sum(dim=1).min()) for mask in asked) == 6
