"""Calls with arrays, lists or nothing: one clear line of ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import cpuinfer_helpers as cpu

CALLS = {
    "trace_model": lambda model, inputs: cpu.trace_model(model, inputs),
    "prepare": lambda model, inputs: cpu.prepare("eager-fp32", model, inputs),
    "traced": lambda model, inputs: cpu.trace_model(model, {"input": torch.ones(2, 4)})(**inputs),
    "prepared": lambda model, inputs: cpu.prepare("eager-fp32", model, {"input": torch.ones(2, 4)})(**inputs),
    "compare": lambda model, inputs: cpu.compare(model, inputs, ["eager-fp32"]),
    "optimize": lambda model, inputs: cpu.optimize(model, inputs, recipes=["eager-fp32"]),
    "count_flops": lambda model, inputs: cpu.count_flops(model, inputs),
    **{
        f"calibration of {name}": lambda model, inputs, call=call: call(
            model, {"input": torch.ones(2, 4)}, calibration=[{"input": torch.ones(1, 4)}, inputs]
        )
        for name, call in {
            "compare": cpu.compare,
            "optimize": cpu.optimize,
            "prepare": lambda *given, **named: cpu.prepare("eager-fp32", *given, **named),
        }.items()
    },
    **{
        f"agreement inputs of {call.__name__}": lambda model, inputs, call=call: call(
            model, {"input": torch.ones(2, 4)}, agreement_inputs=[{"input": torch.ones(1, 4)}, inputs]
        )
        for call in (cpu.compare, cpu.optimize)
    },
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("value", "told"),
    [
        (np.ones((2, 4), dtype=np.float32), "return_tensors='pt'"),
        ([[1.0, 1.0, 1.0, 1.0]], "torch.from_numpy"),
        (torch.ones(2, 0), r"shape \[2, 0\] and holds nothing"),
        (torch.ones(0, 4), r"no rows, shape \[0, 4\]"),
    ],
    ids=["array", "list", "no columns", "no rows"],
)
def test_what_is_no_tensor_or_holds_nothing_is_refused(call, value, told):
    with pytest.raises(cpu.InputError, match=told) as caught:
        CALLS[call](torch.nn.Linear(4, 2).eval(), {"input": value})
    assert "input" in str(caught.value)
    if "of" in call.split():
        assert "[1]: " in str(caught.value), "which of the rows"


@pytest.mark.parametrize(
    "rows", [3, "text", {"input": torch.ones(1, 4)}, [3], [None], ["text"], np.ones(3), torch.ones(3)]
)
@pytest.mark.parametrize("argument", ["calibration", "agreement_inputs"])
@pytest.mark.parametrize("call", [cpu.compare, cpu.optimize])
def test_rows_that_are_no_mappings_are_refused(call, argument, rows):
    with pytest.raises(cpu.InputError, match=rf"{argument}(\[0\])? is a .*; give a .*mapping"):
        call(torch.nn.Linear(4, 2).eval(), {"input": torch.ones(2, 4)}, **{argument: rows})


@pytest.mark.parametrize("value", [None, 3, "text", [1], np.ones(3), torch.ones(3)])
def test_what_cannot_be_measured_is_refused(value):
    for call in (
        cpu.measure,
        cpu.seconds_of,
        cpu.measure_interleaved,
        lambda one: cpu.measure_interleaved({"one": one}),
    ):
        with pytest.raises(cpu.InputError, match=f"{type(value).__name__}"):
            call(value)
    for name in ("budget_s", "relative_width", "max_calls"):
        if not isinstance(value, int):
            with pytest.raises(cpu.InputError, match=name):
                cpu.measure(lambda: None, **{name: value})


@pytest.mark.parametrize("value", [None, 3, b"bytes", "", " ", "\0", [], object()])
def test_what_is_no_path_is_refused(value, tmp_path):
    traced = cpu.trace_model(torch.nn.Linear(4, 2).eval(), {"input": torch.ones(2, 4)})
    for call in (traced.save, cpu.TracedModel.load, cpu.load_optimized, cpu.Comparison.load):
        with pytest.raises(cpu.InputError, match=r"give a path|give another path"):
            call(value)
    with pytest.raises(cpu.InputError):
        cpu.load_model(value, "text-classification")


@pytest.mark.parametrize("recipe", [None, 3, ["eager-fp32"], object()])
def test_what_is_no_recipe_is_refused(recipe):
    layer, inputs = torch.nn.Linear(4, 2).eval(), {"input": torch.ones(2, 4)}
    with pytest.raises(cpu.InputError, match="recipe is a"):
        cpu.prepare(recipe, layer, inputs)
    for call in (cpu.compare, cpu.optimize):
        with pytest.raises(cpu.InputError, match="recipes"):
            call(layer, inputs, recipes=3 if recipe is None else [recipe])


class Branching(torch.nn.Module):
    """Takes ids, a mask and numbers; no trace of it is right, as it looks at values."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.layer = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 4)

    def forward(self, ids, mask, numbers, other=None):
        found = self.layer(self.words(ids) + numbers) * mask[..., None]
        return {"found": found * (2 if int(ids.sum()) % 2 else 1)}


class Plain(Branching):
    """The same, and can be traced."""

    def forward(self, ids, mask, numbers, other=None):
        return {"found": self.layer(self.words(ids) + numbers) * mask[..., None]}


def inputs(rows: int = 2, length: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return {
        "ids": torch.randint(0, 9, (rows, length), generator=generator),
        "mask": torch.ones(rows, length, dtype=torch.long),
        "numbers": torch.rand(rows, length, 4, generator=generator),
    }


def refuse(request):
    raise ValueError("not this model")


MODELS = {
    "traced": lambda: cpu.trace_model(Plain().eval(), inputs()),
    "traced each shape": lambda: cpu.trace_model(Plain().eval(), inputs(), each_shape=True),
    "fallback of a trace": lambda: cpu.trace_model(Branching().eval(), inputs()),
    "prepared": lambda: cpu.prepare("torchscript-fp32", Plain().eval(), inputs()),
    "eager": lambda: cpu.prepare("eager-fp32", Plain().eval(), inputs()),
    "fallback of a recipe": lambda: cpu.prepare(cpu.Recipe("no-fp32", "for a test", refuse), Plain().eval(), inputs()),
}


@pytest.fixture(scope="module", params=MODELS)
def answering(request):
    answering = MODELS[request.param]()
    assert (answering.reason is not None) == request.param.startswith("fallback")
    return answering


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"nonsense": torch.ones(2, 6)}, "'nonsense' was not among the inputs"),
        ({"other": torch.ones(2, 6)}, "'other' was not among the inputs"),
        ({"ids": np.ones((2, 6), dtype=np.int64)}, "ids is a ndarray, not a tensor"),
        ({"numbers": np.ones((2, 6, 4), dtype=np.float32)}, "numbers is a ndarray, not a tensor"),
        ({"mask": [[1] * 6] * 2}, "mask is a list, not a tensor"),
        ({"mask": 1}, "mask is a int, and was a tensor"),
        ({"mask": "ones"}, "mask is a str, and was a tensor"),
        ({"mask": None}, "'mask' is missing"),
        ({"ids": torch.ones(2, 6)}, "ids is of float32, and was of int64"),
        ({"ids": torch.ones(2, 6, dtype=torch.complex64)}, "ids is of complex64, and was of int64"),
        ({"numbers": torch.ones(2, 6, 4, dtype=torch.long)}, "numbers is of int64, and was of float32"),
        ({"numbers": torch.ones(2, 6, 4, dtype=torch.float64)}, "numbers is of float64, and was of float32"),
        ({"ids": torch.ones(2, 6, dtype=torch.int8)}, "ids is of int8, and was of int64"),
        ({"ids": torch.ones(2, dtype=torch.long)}, "ids has 1 dimensions, and had 2 in the example"),
        ({"ids": torch.ones(0, 6, dtype=torch.long)}, r"ids has no rows, shape \[0, 6\]"),
        ({"ids": torch.ones(2, 0, dtype=torch.long)}, r"ids is of shape \[2, 0\]"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_whatever_answers_inputs_are_met_alike(answering, given, told):
    with pytest.raises(cpu.InputError, match=told):
        answering(**{**inputs(), **given})


def test_whatever_answers_what_the_model_takes_is_taken(answering):
    expected = answering(**inputs())["found"]
    for given in ({"other": None}, {"ids": inputs()["ids"].int()}, {"mask": inputs()["mask"].bool()}):
        torch.testing.assert_close(answering(**{**inputs(), **given})["found"], expected)
    for rows, length in ((1, 6), (3, 9)):
        assert answering(**inputs(rows, length))["found"].shape == (rows, length, 4)


def test_a_fallback_takes_sizes_that_no_comparison_had():
    for name in ("fallback of a trace", "fallback of a recipe"):
        assert MODELS[name]()(**inputs(70, 900))["found"].shape == (70, 900, 4)


def test_a_fallback_does_without_what_its_model_does_without(bert, bert_inputs):
    fallback = cpu.prepare(cpu.Recipe("no-fp32", "for a test", refuse), bert, bert_inputs)
    with torch.no_grad():
        expected = bert(input_ids=bert_inputs["input_ids"]).start_logits
    torch.testing.assert_close(fallback(input_ids=bert_inputs["input_ids"]).start_logits, expected)


def test_an_error_that_no_input_is_to_blame_for_stays_as_it_is(answering):
    """The ids are of the example's dtype, and beyond the words that there are."""
    with pytest.raises((IndexError, RuntimeError)) as caught:
        answering(**{**inputs(), "ids": torch.full((2, 6), 50)})
    assert not isinstance(caught.value, cpu.InputError)
