"""A prepared model in another process: copied, pickled, forked, or refused in one line."""

from __future__ import annotations

import copy
import os
import pickle

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.recipes import get_recipe
from tests.conftest import make_bert, make_inputs
from tests.test_switches import ends_with

RECIPES = ("eager-fp32", "torchscript-fp32", "onednn-graph-fp32", "openvino-fp32", "onnxruntime-fp32")


class Branches(torch.nn.Module):
    """No one trace is right."""

    def forward(self, input_ids, attention_mask, token_type_ids):
        return input_ids * 2.0 if input_ids.shape[1] > 6 else input_ids + 1.0


class Unfit(torch.nn.Module):
    """Cannot be traced: it answers with numbers of its own."""

    def forward(self, input_ids, attention_mask, token_type_ids):
        return torch.tensor(input_ids.numpy()).float()


def answer(made):
    output = made(**make_inputs())
    return output if isinstance(output, torch.Tensor) else output.start_logits


MAKERS = {
    "trace": lambda: cpu.trace_model(make_bert(), make_inputs(), verify=False),
    "unfrozen": lambda: cpu.trace_model(make_bert(), make_inputs(), verify=False, freeze=False),
    "each shape": lambda: cpu.trace_model(Branches().eval(), make_inputs(), each_shape=True),
    "eager": lambda: cpu.trace_model(Unfit().eval(), make_inputs()),
    **{name: lambda name=name: cpu.prepare(name, make_bert(), make_inputs(), verify=False) for name in RECIPES},
}


@pytest.fixture(scope="module")
def made():
    kept: dict[str, object] = {}

    def make(name: str):
        if name in RECIPES and not get_recipe(name).can_run:
            pytest.skip(get_recipe(name).why_not)
        if name not in kept:
            kept[name] = MAKERS[name]()
        return kept[name]

    return make


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("name", MAKERS)
def test_a_copy_answers_alike(made, name, copied):
    original = made(name)
    new = copied(original)
    assert type(new) is type(original) and new is not original
    # A first call may run another plan than the second, which adds in another order.
    torch.testing.assert_close(answer(new), answer(original), rtol=0, atol=1e-5)
    assert new.input_names == original.input_names


@pytest.mark.parametrize("name", MAKERS)
def test_what_was_compiled_is_not_pickled_and_the_rest_is(made, name):
    original = made(name)
    if name == "eager":
        assert torch.equal(answer(pickle.loads(pickle.dumps(original))), answer(original))
        return
    with pytest.raises(cpu.ArtifactError, match="cannot be pickled") as refused:
        pickle.dumps(original)
    assert "\n" not in str(refused.value) and "other process" in str(refused.value)


def test_a_copy_of_a_fallback_has_a_model_of_its_own():
    fallback = MAKERS["eager"]()
    assert copy.deepcopy(fallback)._model is not fallback._model


def test_a_copy_has_shapes_of_its_own(made):
    original = made("each shape")
    new = copy.deepcopy(original)
    before = original.shapes
    new(**make_inputs(2, 5))
    assert original.shapes == before and len(new.shapes) == len(before) + 1


class _Forked:
    """Runs a call in a fork and tells how it ended."""

    OK, REFUSED, OTHER = 0, 3, 4

    @classmethod
    def call(cls, made) -> int | None:
        child = os.fork()
        if child == 0:
            try:
                answer(made)
                os._exit(cls.OK)
            except cpu.ArtifactError as error:
                os._exit(cls.REFUSED if "fork" in str(error) and "\n" not in str(error) else cls.OTHER)
            finally:
                os._exit(cls.OTHER)
        return ends_with(child)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", MAKERS)
def test_a_call_in_a_fork_answers_or_is_refused(made, name, threads):
    original = made(name)
    with cpu.threads(threads):
        answer(original)
        ended = _Forked.call(original)
    own = name.startswith(("openvino", "onnxruntime")) and original.receipt.threads != 1
    assert ended == (_Forked.REFUSED if threads > 1 or own else _Forked.OK)
