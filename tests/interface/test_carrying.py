"""A prepared model in another process: copied, pickled, forked, or refused in one line."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.recipes import get_recipe
from cpuinfer_helpers.recipes.backends.ipex_variants import IPEX_VARIANTS
from tests.conftest import make_bert, make_inputs
from tests.forks import OK, REFUSED, call_in_a_fork
from tests.optimize.saving_cases import by_hand

RECIPES = (
    "eager-fp32",
    "eager-bf16",
    "torchscript-fp32",
    "onednn-graph-fp32",
    "bettertransformer-fp32",
    "compile-fp32",
    "openvino-fp32",
    "onnxruntime-fp32",
)
# One layer: torch.compile takes seconds for each.
SMALL = {"num_hidden_layers": 1}


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
    "eager in place of a recipe": lambda: cpu.prepare("torchscript-fp32", Unfit().eval(), make_inputs()),
    "optimized": lambda: by_hand("torchscript-fp32", make_bert(**SMALL), make_inputs()),
    "optimized, eager": lambda: by_hand("eager-fp32", make_bert(**SMALL), make_inputs()),
    **{name: lambda name=name: prepared(name) for name in RECIPES},
    "the Trainer's, traced": lambda: stand_in(jit_mode_eval=True),
    "the Trainer's, in BF16": lambda: stand_in(bf16=True),
    "the Trainer's, as it is": lambda: stand_in(),
}
# What is eager, and what prepares anew wherever it is.
GOES_ELSEWHERE = ("eager", *(name for name in MAKERS if name.startswith(("eager in", "the Trainer's"))))


def prepared(name: str):
    return cpu.prepare(name, make_bert(**SMALL), make_inputs(), verify=False)


def stand_in(**flags):
    from cpuinfer_helpers.trainer.plan import plan_of
    from cpuinfer_helpers.trainer.stand_in import StandIn

    return StandIn(make_bert(**SMALL), plan_of(SimpleNamespace(**flags), ("start_positions", "end_positions")))


@pytest.fixture(autouse=True)
def one_thread():
    """What is made for one thread and then called with more needs more: no other test's call may decide here."""
    with cpu.threads(1):
        yield


@pytest.fixture(scope="module")
def made():
    kept: dict[tuple[str, int], object] = {}

    def make(name: str, threads: int = 1):
        if name in RECIPES and not get_recipe(name).can_run:
            pytest.skip(get_recipe(name).why_not)
        # It takes long, and a fork refuses it however many threads there were.
        key = (name, 1 if name == "compile-fp32" else threads)
        if key not in kept:
            with cpu.threads(threads):
                kept[key] = MAKERS[name]()
                # More often than until TorchScript has made its plan.
                for _ in range(4):
                    answer(kept[key])
        return kept[key]

    return make


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("name", MAKERS)
def test_a_copy_answers_alike(made, name, copied):
    original = made(name)
    new = copied(original)
    assert type(new) is type(original) and new is not original
    # A first call may run another plan than the second, which adds in another order.
    torch.testing.assert_close(answer(new), answer(original), rtol=0, atol=1e-5)
    if not isinstance(new, torch.nn.Module):
        assert new.input_names == original.input_names


@pytest.mark.parametrize("name", MAKERS)
def test_what_was_compiled_is_not_pickled_and_the_rest_is(made, name):
    original = made(name)
    if name in GOES_ELSEWHERE:
        torch.testing.assert_close(answer(pickle.loads(pickle.dumps(original))), answer(original), rtol=0, atol=1e-5)
        return
    with pytest.raises(cpu.ArtifactError, match="cannot be pickled") as refused:
        pickle.dumps(original)
    assert "\n" not in str(refused.value) and "other process" in str(refused.value)


def test_what_can_be_sent_answers_alike_in_a_spawned_process(made):
    sent = {name: made(name) for name in GOES_ELSEWHERE}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply_async(answers, (sent,)).get(timeout=300)
    for name, original in sent.items():
        torch.testing.assert_close(torch.tensor(found[name]), answer(original).float(), rtol=0, atol=1e-5)


def answers(sent):
    """In the other process; as lists, which need no memory that both share."""
    return {name: answer(one).tolist() for name, one in sent.items()}


@pytest.mark.parametrize("name", ["onednn-graph-fp32", "ipex-untraced-fp32"])
def test_a_recipe_of_this_package_is_sent_by_its_name(name):
    recipe = IPEX_VARIANTS.get(name) or get_recipe(name)
    assert pickle.loads(pickle.dumps(recipe)) is recipe
    own = replace(recipe, build=len, obstacle=len)
    assert pickle.loads(pickle.dumps(replace(own, export=None, restore=None))).build is len


def test_a_copy_of_a_fallback_has_a_model_of_its_own():
    fallback = MAKERS["eager"]()
    assert copy.deepcopy(fallback)._model is not fallback._model


def test_a_copy_has_shapes_of_its_own(made):
    original = made("each shape")
    new = copy.deepcopy(original)
    before = original.shapes
    new(**make_inputs(2, 5))
    assert original.shapes == before and len(new.shapes) == len(before) + 1


# What needs threads that are not in a fork: the compiler's, and where it was made for more than one.
COMPILER = ("compile-fp32",)
OF_A_NUMBER = ("openvino-fp32", "onnxruntime-fp32", "onednn-graph-fp32")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("made_for, called_with", [(1, 1), (2, 2), (2, 1)])
@pytest.mark.parametrize("name", MAKERS)
def test_a_call_in_a_fork_answers_or_is_refused(made, name, made_for, called_with):
    original = made(name, made_for)
    ended = call_in_a_fork(lambda: answer(original), called_with)
    refused = called_with > 1 or name in COMPILER or (made_for > 1 and name in OF_A_NUMBER)
    assert ended == (REFUSED if refused else OK)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_what_was_compiled_for_more_threads_by_a_later_call_is_refused_in_a_fork():
    late = prepared("onednn-graph-fp32")
    longer = make_inputs(2, 40)
    with cpu.threads(2):
        for _ in range(4):
            late(**longer)
    assert call_in_a_fork(lambda: answer(late), 1) == REFUSED
