"""Which models and inputs can be used, and what is said of those that cannot."""

from __future__ import annotations

import pytest
import torch

from cpuinfer_helpers import InputError
from cpuinfer_helpers.interface.inputs import argument_names, bind_inputs, check_model

IDS = torch.ones(2, 5, dtype=torch.long)


class Takes(torch.nn.Module):
    def forward(self, first: torch.Tensor, second: torch.Tensor | None = None, *, flag: bool = False) -> torch.Tensor:
        return first


class TakesAnything(torch.nn.Module):
    def forward(self, first: torch.Tensor, *rest: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
        return first


def test_model_in_evaluation_mode_is_returned(bert: torch.nn.Module) -> None:
    assert check_model(bert) is bert


def test_model_in_training_mode(new_bert) -> None:
    with pytest.raises(InputError, match=r"training mode \(the model itself and \d+ more\); call model.eval\(\)"):
        check_model(new_bert().train())


def test_part_of_a_model_in_training_mode(new_bert) -> None:
    model = new_bert()
    model.bert.encoder.layer[1].output.dropout.train()
    with pytest.raises(InputError, match=r"training mode \(bert\.encoder\.layer\.1\.output\.dropout\)"):
        check_model(model)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.jit.trace(torch.nn.Linear(2, 2).eval(), torch.ones(1, 2)),
        lambda: torch.jit.script(torch.nn.Linear(2, 2).eval()),
        lambda: torch.jit.freeze(torch.jit.script(torch.nn.Linear(2, 2).eval())),
    ],
)
def test_script_module(make) -> None:
    with pytest.raises(InputError, match="traced or scripted already; give the eager model"):
        check_model(make())


@pytest.mark.parametrize("thing", [None, "bert-base-uncased", lambda x: x])
def test_what_is_no_model(thing: object) -> None:
    with pytest.raises(InputError, match=f"model is a {type(thing).__name__}, not a torch.nn.Module"):
        check_model(thing)


def test_tensors_and_constants_are_sorted(bert: torch.nn.Module) -> None:
    bound = bind_inputs(
        bert, {"token_type_ids": IDS, "input_ids": IDS, "attention_mask": None, "output_hidden_states": True}
    )
    assert list(bound.tensors) == ["token_type_ids", "input_ids"]
    assert bound.constants == {"output_hidden_states": True}


def test_tokenizer_output_can_be_given_as_it_is(bert: torch.nn.Module, tokenizer) -> None:
    bound = bind_inputs(bert, tokenizer(["the cat sat on the mat ."], return_tensors="pt"))
    assert set(bound.tensors) == {"input_ids", "attention_mask", "token_type_ids"}


def test_callers_tensors_are_not_held(bert: torch.nn.Module) -> None:
    ids = IDS.clone()
    bound = bind_inputs(bert, {"input_ids": ids})
    ids.zero_()
    assert torch.equal(bound.tensors["input_ids"], IDS)


def test_tensor_that_requires_gradients_is_taken_without_them() -> None:
    bound = bind_inputs(Takes(), {"first": torch.ones(1, 2, requires_grad=True)})
    assert not bound.tensors["first"].requires_grad


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "holds no tensor"),
        ({"first": None}, "holds no tensor"),
        ({"flag": True}, "holds no tensor"),
        ((IDS,), "is a tuple; give a mapping"),
        (IDS, "is a Tensor; give a mapping"),
        (None, "is a NoneType; give a mapping"),
        ({"first": IDS, "unknown": IDS}, "has 'unknown', which Takes does not take; it takes first, second, flag"),
        ({"first": IDS, "unknown": 1}, "has 'unknown'"),
        ({"first": IDS, "second": [[1, 2]]}, r"\['second'\] is a list.*return_tensors='pt'"),
        ({"first": IDS, "second": IDS.numpy()}, r"\['second'\] is a ndarray"),
        ({"first": IDS[:0]}, r"\['first'\] has no rows"),
        ({"first": torch.tensor(3)}, r"\['first'\] is a single number"),
        ({"first": IDS, "second": torch.tensor(3)}, r"\['second'\] is a single number"),
    ],
)
def test_inputs_that_cannot_be_used_are_named(inputs: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bind_inputs(Takes(), inputs)


def test_unknown_key_of_a_transformers_model(bert: torch.nn.Module) -> None:
    """Version 5 takes further keyword arguments, but not just any."""
    with pytest.raises(InputError, match="'input_idz', which BertForQuestionAnswering does not take"):
        bind_inputs(bert, {"input_ids": IDS, "input_idz": IDS})


def test_keys_that_transformers_takes_without_naming_them(bert: torch.nn.Module) -> None:
    assert bind_inputs(bert, {"input_ids": IDS, "output_attentions": True}).constants == {"output_attentions": True}


def test_model_that_takes_any_key() -> None:
    assert list(bind_inputs(TakesAnything(), {"first": IDS, "whatever": IDS}).tensors) == ["first", "whatever"]


def test_argument_names_stand_in_their_order(bert: torch.nn.Module) -> None:
    assert argument_names(Takes()) == ("first", "second", "flag")
    assert argument_names(TakesAnything()) == ("first",)
    assert argument_names(bert)[:3] == ("input_ids", "attention_mask", "token_type_ids")
