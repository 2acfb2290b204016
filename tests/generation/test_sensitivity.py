"""Which layers 8 bits are too few for is seen layer by layer, and those are given more."""

from __future__ import annotations

import pytest
import torch

from cpuinfer_helpers.generation import linears
from cpuinfer_helpers.generation.sensitivity import Sensitivity, told
from tests.generation.models import make_language_model, make_prompts


@pytest.fixture(scope="module")
def model():
    return make_language_model("llama")


@pytest.fixture(scope="module")
def sensitivity(model):
    prompts = make_prompts(3, 20)
    return Sensitivity(model, prompts["input_ids"], prompts["attention_mask"])


def test_two_parts_lose_far_less_of_what_is_multiplied():
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(48, 64, generator=generator), torch.randn(5, 7, 64, generator=generator)
    once, twice = linears.Int8Linear.of(weight, None), linears.Int8TwiceLinear.of(weight, None)
    whole, scales = linears.in_8_bits(weight)
    exact = x @ (whole.float() * scales[:, None]).T
    errors = [(layer(x) - exact).square().mean().sqrt() / exact.square().mean().sqrt() for layer in (once, twice)]
    # 7 or 8 bits of what is multiplied against twice as many.
    assert errors[0] > 3e-3 and errors[1] < 2e-4


def test_a_row_is_multiplied_as_if_it_were_alone():
    generator = torch.Generator().manual_seed(1)
    layer = linears.Int8TwiceLinear.of(torch.randn(48, 64, generator=generator), torch.randn(48, generator=generator))
    x = torch.randn(3, 64, generator=generator) * torch.tensor([[1.0], [1000.0], [1e-4]])
    together = layer(x)
    for row in range(3):
        assert torch.equal(layer(x[row : row + 1])[0], together[row])
    assert torch.equal(linears.Int8TwiceLinear.from_tensors(layer.tensors())(x), together)


def test_the_model_is_put_back(model, sensitivity):
    assert not any(isinstance(part, linears.Replacing) for part in model.modules())
    assert len(sensitivity.parts) == len(linears.linear_layers(model)) + 1


def test_less_error_takes_more_layers(sensitivity):
    assert sensitivity.keeping(1.0) == {}
    few, many = sensitivity.keeping(0.02), sensitivity.keeping(0.005)
    assert len(few) <= len(many) and many
    assert told(many)
    # Errors are taken to add up by their squares.
    left = sum(part.cost for part in sensitivity.parts) ** 0.5
    assert left <= 0.005 or all(part.gain <= 0 for part in sensitivity.parts)


def test_what_fp16_has_no_number_for_is_not_kept_in_it():
    model, prompts = make_language_model("llama"), make_prompts()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = 1e5
    found = Sensitivity(model, prompts["input_ids"], prompts["attention_mask"])
    assert found.keeping(0.0).get("lm_head") is not linears.Fp16Linear
