"""Outputs taken apart and put together again."""

from __future__ import annotations

import json
import logging
import sys
from collections import OrderedDict, namedtuple
from pathlib import Path

import pytest
import torch

from cpuinfer_helpers import TraceError
from cpuinfer_helpers.interface.outputs import OutputSpec, builder, take_apart

Pair = namedtuple("Pair", ["left", "right"])
A, B, C = torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([3.0])


def rebuilt(output: object) -> object:
    """Through names and tensors, and through JSON, back to an output."""
    tensors, spec = take_apart(output)
    return builder(OutputSpec.from_dict(json.loads(json.dumps(spec.to_dict()))))(tensors)


def names(output: object) -> list[str]:
    tensors, spec = take_apart(output)
    assert list(tensors) == list(spec.tensor_names())
    return list(tensors)


def test_single_tensor() -> None:
    assert names(A) == ["output"]
    assert rebuilt(A) is A


def test_tuple() -> None:
    assert names((A, B)) == ["0", "1"]
    assert rebuilt((A, B)) == (A, B)


def test_list_stays_a_list() -> None:
    assert rebuilt([A, B]) == [A, B]


def test_named_tuple() -> None:
    result = rebuilt(Pair(A, (B, C)))
    assert isinstance(result, Pair)
    assert result == Pair(A, (B, C))


def test_dictionaries() -> None:
    assert names({"logits": A, "extra": B}) == ["logits", "extra"]
    assert rebuilt({"logits": A}) == {"logits": A}
    ordered = rebuilt(OrderedDict(second=B, first=A))
    assert isinstance(ordered, OrderedDict)
    assert list(ordered) == ["second", "first"]


def test_model_output() -> None:
    from transformers.modeling_outputs import QuestionAnsweringModelOutput

    output = QuestionAnsweringModelOutput(start_logits=A, end_logits=B, hidden_states=(C, A))
    assert names(output) == ["start_logits", "end_logits", "hidden_states.0", "hidden_states.1"]
    result = rebuilt(output)
    assert isinstance(result, QuestionAnsweringModelOutput)
    assert result.start_logits is A
    assert result.hidden_states == (C, A)
    assert result.loss is None


def test_flat_model_output() -> None:
    from transformers.modeling_outputs import SequenceClassifierOutput

    result = rebuilt(SequenceClassifierOutput(logits=A))
    assert isinstance(result, SequenceClassifierOutput)
    assert result.to_tuple() == (A,)


def test_nested_tuples_with_none_in_between() -> None:
    nested = ((A, None), [B, ((C,), None)])
    assert names(nested) == ["0.0", "1.0", "1.1.0.0"]
    assert rebuilt(nested) == nested


def test_objects_that_are_no_tensors_are_left_out_and_named() -> None:
    tensors, spec = take_apart({"logits": A, "cache": object(), "more": (B, "text", {"deep": 3})})
    assert list(tensors) == ["logits", "more.0"]
    assert spec.left_out() == ("cache", "more.1", "more.2.deep")
    result = builder(spec)(tensors)
    assert result == {"logits": A, "more": (B, None, {})}


def test_nothing_is_left_out_of_tensors_and_none() -> None:
    assert take_apart((A, None))[1].left_out() == ()


def test_mapping_with_keys_that_are_no_texts_is_left_out() -> None:
    _, spec = take_apart((A, {1: B}))
    assert spec.left_out() == ("1",)


def test_cache_of_a_decoder_is_left_out() -> None:
    from transformers import DynamicCache
    from transformers.modeling_outputs import CausalLMOutputWithPast

    cache = DynamicCache()
    cache.update(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4), layer_idx=0)
    tensors, spec = take_apart(CausalLMOutputWithPast(logits=A, past_key_values=cache, hidden_states=(B,)))
    assert list(tensors) == ["logits", "hidden_states.0"]
    assert spec.left_out() == ("past_key_values",)
    result = builder(spec)(tensors)
    assert isinstance(result, CausalLMOutputWithPast)
    assert result.past_key_values is None
    assert result.hidden_states == (B,)


@pytest.mark.parametrize("output", [None, (), {}, "text", (None, 3), {"loss": None}])
def test_output_without_any_tensor_cannot_be_traced(output: object) -> None:
    with pytest.raises(TraceError, match="holds no tensor"):
        take_apart(output)


@pytest.fixture
def unknown_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that could be imported, and leaves a mark if it is."""
    marker = "open(__file__ + '.imported', 'w').close()\n"
    (tmp_path / "somebody_elses_outputs.py").write_text(f"{marker}class Output(dict): pass\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "somebody_elses_outputs"


def test_class_of_a_module_that_is_not_imported_becomes_a_dict(
    unknown_module: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = take_apart({"logits": A})[1].to_dict()
    data["output_class"] = f"{unknown_module}:Output"
    with caplog.at_level(logging.WARNING, logger="cpuinfer_helpers"):
        result = builder(OutputSpec.from_dict(data))({"logits": A})
    assert type(result) is dict
    assert result == {"logits": A}
    assert unknown_module not in sys.modules
    assert not list(tmp_path.glob("*.imported"))
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert f"{unknown_module}:Output" in caplog.text


def test_tuple_class_of_a_module_that_is_not_imported_becomes_a_tuple(
    unknown_module: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = take_apart(Pair(A, B))[1].to_dict()
    data["output_class"] = f"{unknown_module}:Output"
    with caplog.at_level(logging.WARNING, logger="cpuinfer_helpers"):
        result = builder(OutputSpec.from_dict(data))({"0": A, "1": B})
    assert result == (A, B)
    assert f"{unknown_module}:Output" in caplog.text


def test_class_of_a_module_that_the_caller_has_imported_is_found() -> None:
    assert Pair.__module__ in sys.modules
    assert isinstance(rebuilt(Pair(A, B)), Pair)


@pytest.mark.parametrize(
    "path",
    [
        "transformers.a_module_of_another_version:Output",
        "transformers.modeling_outputs:AClassOfAnotherVersion",
        "builtins:eval",
        "builtins:str",
        "os:system",
        "sys:exit",
        ":",
    ],
)
def test_class_that_does_not_exist_or_is_no_container_becomes_a_dict(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = take_apart({"logits": A})[1].to_dict()
    data["output_class"] = path
    with caplog.at_level(logging.WARNING, logger="cpuinfer_helpers"):
        result = builder(OutputSpec.from_dict(data))({"logits": A})
    assert type(result) is dict
    assert caplog.records
