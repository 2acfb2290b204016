"""Every family that can be converted runs the fast path and gives its own answers, however it is padded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import cpuinfer_helpers as cpu
from tests.bettertransformer.families import (
    AUDIO,
    AUDIOS,
    IMAGE,
    IMAGES,
    PADDINGS,
    TEXTS,
    TOLERANCE,
    check,
    largest_error,
    make,
    tokens,
)
from tests.conftest import make_inputs


@pytest.mark.parametrize("name", TEXTS)
def test_text_encoders_give_their_own_answers_on_the_fast_path(name):
    model = make(name, TEXTS[name])
    converted = cpu.to_bettertransformer(model)

    for mask in PADDINGS.values():
        check(model, converted, tokens(mask))
    use = cpu.fast_path_use(converted, tokens(PADDINGS["right"]))
    # ALBERT calls one layer several times, and each call is a pass of its own.
    assert (use.layers, use.nested) == (2, 2 if name.startswith("Albert") else 1)
    assert list(use.products) == ["FP32"]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["BertForQuestionAnswering", "DistilBertForQuestionAnswering"])
def test_masks_are_read_as_either_attention_writes_them(name, attention):
    model = make(name, TEXTS[name], attention)
    converted = cpu.to_bettertransformer(model)

    for mask in PADDINGS.values():
        check(model, converted, tokens(mask))
    check(model, converted, {"input_ids": tokens(PADDINGS["none"])["input_ids"]})
    assert cpu.fast_path_use(converted, tokens(PADDINGS["right"])).nested == 1


@pytest.mark.parametrize("name", IMAGES)
def test_image_encoders_give_their_own_answers_on_the_fast_path(name):
    model = make(name, IMAGE, "sdpa")
    converted = cpu.to_bettertransformer(model)

    for batch in (1, 3):
        inputs = {"pixel_values": torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(batch))}
        check(model, converted, inputs)
        assert cpu.fast_path_use(converted, inputs).layers == 2


def test_queries_without_a_bias_are_converted_and_back():
    model = make("ViTForImageClassification", {**IMAGE, "qkv_bias": False})
    converted = cpu.to_bettertransformer(model)

    check(model, converted, {"pixel_values": torch.randn(2, 3, 16, 16)})
    assert cpu.reverse_bettertransformer(converted).state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("stable", [False, True], ids=["norms last", "norms first"])
@pytest.mark.parametrize("name", AUDIOS)
def test_audio_encoders_give_their_own_answers_on_the_fast_path(name, stable):
    norms = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"} if stable else {}
    if stable and name == "Data2VecAudioForCTC":
        pytest.skip("Data2VecAudio has no such variant")
    model = make(name, {**AUDIO, **norms}, "sdpa")
    converted = cpu.to_bettertransformer(model)
    waves = torch.randn(3, 900, generator=torch.Generator().manual_seed(0))

    check(model, converted, {"input_values": waves})
    mask = torch.ones(3, 900, dtype=torch.long)
    mask[1, 500:], mask[2, 300:] = 0, 0
    with torch.no_grad():
        inputs = {"input_values": waves * mask, "attention_mask": mask}
        wanted, seen = model(**inputs).logits, converted(**inputs).logits
    frames = model._get_feat_extract_output_lengths(mask.sum(1))
    for row, count in enumerate(frames):
        assert (seen - wanted)[row, :count].abs().max() < TOLERANCE * wanted.abs().max()
    use = cpu.fast_path_use(converted, inputs)
    assert (use.layers, use.nested) == (2, 1)


@pytest.mark.parametrize("padding", PADDINGS)
def test_nested_tensors_serve_padding_on_the_right_only(pair, padding):
    use = cpu.fast_path_use(pair[1], tokens(PADDINGS[padding]))

    assert use.layers == 2
    expected = padding in ("right", "all but one row", "every row", "one row", "a row of nothing else")
    assert bool(use.nested) == expected


@pytest.mark.parametrize("padding", ["right", "left", "holes"])
def test_tokens_under_the_padding_do_not_matter(pair, padding):
    inputs = tokens(PADDINGS[padding])
    valid = inputs["attention_mask"].bool()
    other = dict(inputs, input_ids=torch.where(valid, inputs["input_ids"], 7))

    with torch.no_grad():
        first, second = pair[1](**inputs), pair[1](**other)
    assert largest_error(first, second, valid) < 1e-6


def test_any_batch_and_length_after_conversion(pair):
    for batch, length, padding in ((1, 1, 0), (5, 33, 8), (2, 64, 40), (3, 2, 1), (1, 17, 4)):
        check(*pair, make_inputs(batch, length, padding=padding))


def test_threads_share_a_converted_model(pair):
    model, converted = pair
    rows = [make_inputs(3, 10 + length, padding=length, seed=length) for length in range(1, 9)]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda inputs: check(model, converted, inputs), rows * 3))


def test_without_no_grad_the_fast_path_runs_all_the_same(pair):
    output = pair[1](**make_inputs(padding=3))

    assert not output.start_logits.requires_grad
