"""Operators that a trace cannot hold are traced in a form that it can, and everything is put back."""

from __future__ import annotations

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.tracing.traceable import traceable_operators


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(context, value):
        context.save_for_backward(value)
        return value * 2

    @staticmethod
    def backward(context, gradient):
        return gradient * 2


class PythonOperator(torch.nn.Module):
    def forward(self, input_ids):
        return _Doubled.apply(input_ids.float())


class ScattersTruth(torch.nn.Module):
    def forward(self, input_ids):
        mask = torch.zeros(input_ids.shape, dtype=torch.bool)
        return mask.scatter(1, input_ids.argmax(dim=1, keepdim=True), True)


class SplitsBySizesInATensor(torch.nn.Module):
    """As mixtures of experts do: how many rows each part gets is computed from the input."""

    def forward(self, input_ids):
        small = (input_ids < 60).long().sum(dim=1)
        sizes = torch.stack([small.sum(), (input_ids.shape[1] - small).sum()]).tolist()
        low, high = input_ids.flatten().sort().values.float().split(sizes, dim=0)
        return torch.stack([low.sum(), high.sum()]).expand(input_ids.shape[0], 2)


class LoopsOverExpertsHit(torch.nn.Module):
    class config:
        num_experts = 4

    def forward(self, input_ids):
        chosen = torch.nn.functional.one_hot(input_ids % 4, num_classes=4)
        total = torch.zeros(input_ids.shape)
        for expert in (chosen.sum(dim=(0, 1)) > 0).nonzero():
            total = total + chosen[..., expert[0]] * (expert[0] + 1) * input_ids.float()
        return total


class SeedsItself(torch.nn.Module):
    def forward(self, input_ids):
        torch.manual_seed(3)
        return input_ids.float() @ torch.randn(input_ids.shape[1], 4)


class SeedsItselfInPlace(torch.nn.Module):
    """Its trace draws other numbers under every seed but the model's own, which is the seed of the comparison too."""

    def forward(self, input_ids):
        torch.manual_seed(0)
        return input_ids.float()[:, :1] * torch.empty(4).normal_()


class CallsVmap(torch.nn.Module):
    def forward(self, input_ids):
        return torch.vmap(lambda row: row.float() * 2)(input_ids)


def ids(batch: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(5, 120, (batch, length), generator=torch.Generator().manual_seed(batch * 100 + length))


@pytest.mark.parametrize(
    "model",
    [PythonOperator(), ScattersTruth(), SplitsBySizesInATensor(), LoopsOverExpertsHit()],
    ids=lambda m: type(m).__name__,
)
def test_what_had_no_form_in_a_trace_is_traced_saved_and_right(model, tmp_path):
    traced = cpu.trace_model(model.eval(), {"input_ids": ids()})
    assert traced.traced, traced.reason
    traced.save(tmp_path / "saved")
    loaded = cpu.TracedModel.load(tmp_path / "saved")
    for inputs in (ids(3, 5), ids(1, 31), torch.full((2, 3), 61)):
        for answer in (traced, loaded):
            # The same operators on the same numbers.
            torch.testing.assert_close(answer(input_ids=inputs), model(inputs))


def test_random_numbers_of_a_model_that_seeds_itself_stay_the_same():
    model = SeedsItself().eval()
    traced = cpu.trace_model(model, {"input_ids": ids()}, each_shape=True)
    torch.manual_seed(1)
    torch.testing.assert_close(traced(input_ids=ids()), model(ids()))


def test_a_trace_that_is_right_under_one_seed_only_is_refused():
    answered = cpu.trace_model(SeedsItselfInPlace().eval(), {"input_ids": ids()})
    assert not answered.traced and "'example'" in answered.reason


def test_vmap_is_refused_because_running_a_trace_of_it_may_end_the_process():
    assert "torch.vmap" in cpu.trace_model(CallsVmap().eval(), {"input_ids": ids()}).reason


def test_everything_is_put_back_also_after_an_error():
    before = (vars(torch.autograd.Function)["apply"], torch._functorch.vmap._flat_vmap)
    with pytest.raises(KeyError), traceable_operators(experts=4):
        raise KeyError
    assert (vars(torch.autograd.Function)["apply"], torch._functorch.vmap._flat_vmap) == before
    value = torch.ones(2, requires_grad=True)
    _Doubled.apply(value).sum().backward()
    assert value.grad.tolist() == [2.0, 2.0]
    assert torch.tensor([3, 4]).tolist() == [3, 4]
