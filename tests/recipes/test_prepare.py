"""What every recipe shares: the registry, preparing and falling back, the drop-in model, copies that share weights."""

from __future__ import annotations

import copy
import logging
import re
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.errors import InputError, RecipeError
from cpuinfer_helpers.interface.copies import attention_of, cast_copy, shared_copy, with_attention
from cpuinfer_helpers.recipes import Build, Recipe, Request, base, get_recipe, list_recipes, prepare
from cpuinfer_helpers.recipes import registry as registry_module
from tests.conftest import MaskDroppedWhenFull, make_bert, make_inputs

OWN = ("eager-fp32", "eager-bf16", "torchscript-fp32", "torchscript-bf16")
# FP32: another order of the same operations. BF16 keeps 8 bits, and this model's answers are below one.
TOLERANCE = {"fp32": 1e-5, "bf16": 5e-2}


def state_of(model: torch.nn.Module) -> dict[str, Any]:
    return {name: (tensor.data_ptr(), tensor.dtype, tensor.clone()) for name, tensor in model.state_dict().items()}


def assert_unchanged(model: torch.nn.Module, before: dict[str, Any]) -> None:
    after = state_of(model)
    assert after.keys() == before.keys()
    for name, (address, dtype, values) in before.items():
        assert after[name][:2] == (address, dtype), name
        assert torch.equal(after[name][2], values), name
    assert not any(part.training for part in model.modules())


def recipe_of(answer: Callable[..., Any], name: str = "mine-fp32", **settings: Any) -> Recipe:
    """A recipe whose model calls ``answer(model, tensors)``."""

    def build(request: Request) -> Build:
        return Build(lambda tensors: answer(request.model, tensors), runs="a test")

    return Recipe(name, "for a test", build, **settings)


def logits(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    output = model(**tensors)
    return {"start_logits": output.start_logits, "end_logits": output.end_logits}


# The registry


def test_the_reference_comes_first_and_then_precisions_in_order() -> None:
    names = list_recipes().names
    assert names[0] == "eager-fp32"
    assert set(OWN) <= set(names)
    assert len(set(names)) == len(names)
    order = [base.PRECISIONS.index(name.rpartition("-")[2]) for name in names]
    assert order == sorted(order)


def test_every_recipe_says_whether_it_can_run_here() -> None:
    recipes = list_recipes()
    rows = {row[0]: row for row in recipes.table().rows}
    for recipe in recipes:
        assert recipe.summary and (recipe.why_not is None) == recipe.can_run == (recipe.name in recipes.can_run)
        assert rows[recipe.name][3].startswith("runs" if recipe.can_run else "cannot run: ")
        if not recipe.can_run:
            assert recipe.why_not in rows[recipe.name][3]
    assert set(OWN) <= set(recipes.can_run)
    assert "torchscript-bf16" in str(recipes)


def test_a_recipe_is_found_by_its_name() -> None:
    recipe = get_recipe("torchscript-bf16")
    assert (recipe.name, recipe.backend, recipe.precision) == ("torchscript-bf16", "torchscript", "bf16")
    with pytest.raises(InputError, match=r"'fastest'.*eager-fp32"):
        get_recipe("fastest")


def test_a_file_in_the_folder_is_all_that_a_new_recipe_needs(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "added_by_a_test.py").write_text(
        "from cpuinfer_helpers.recipes.base import Recipe\n"
        "RECIPES = (Recipe('added-fp32', 'does nothing', None), Recipe('added-int8', 'does nothing', None))\n",
        encoding="utf-8",
    )
    package = sys.modules["cpuinfer_helpers.recipes.backends"]
    try:
        with monkeypatch.context() as patched:
            patched.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
            registry_module._registry.cache_clear()
            names = list_recipes().names
    finally:
        registry_module._registry.cache_clear()
        sys.modules.pop("cpuinfer_helpers.recipes.backends.added_by_a_test", None)
    assert names.index("eager-fp32") < names.index("added-fp32") < names.index("added-int8")
    assert "added-fp32" not in list_recipes().names


# What a recipe needs


@pytest.mark.parametrize(
    ("need", "installed", "reason"),
    [
        ("some-thing", None, "some-thing is not installed; pip install some-thing"),
        ("some-thing>=2.1", None, "some-thing is not installed; pip install 'some-thing>=2.1'"),
        ("some-thing>=2.1", "2.0.9", "some-thing 2.0.9 is installed, it needs some-thing>=2.1"),
        ("some-thing>=2.1", "2.1.0", None),
        ("some-thing>=2.1", "2.10", None),
        ("some-thing>=2.1", "10.0+cpu", None),
        ("some-thing==2.8", "2.8.0+cpu", None),
        ("some-thing==2.8", "2.8.10", None),
        ("some-thing==2.8", "2.80", "some-thing 2.80 is installed, it needs some-thing==2.8"),
        ("some-thing==2.8", "2.7.1", "some-thing 2.7.1 is installed, it needs some-thing==2.8"),
        ("some-thing", "0.1", None),
    ],
)
def test_why_a_recipe_cannot_run(
    monkeypatch: pytest.MonkeyPatch, need: str, installed: str | None, reason: str | None
) -> None:
    def version(name: str) -> str:
        assert name == "some-thing"
        if installed is None:
            raise base.importlib.metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(base.importlib.metadata, "version", version)
    recipe = recipe_of(logits, needs=(need,))
    assert recipe.why_not == reason
    assert recipe.can_run == (reason is None)


def test_an_obstacle_is_looked_for_only_where_nothing_is_missing() -> None:
    asked: list[str] = []

    def obstacle() -> str:
        asked.append("asked")
        return "it is Monday"

    assert "not installed" in recipe_of(logits, needs=("no-such-distribution",), obstacle=obstacle).why_not
    assert asked == []
    assert recipe_of(logits, needs=("torch",), obstacle=obstacle).why_not == "it is Monday"


@pytest.mark.cpu
def test_a_precision_without_instructions_is_called_emulated(
    monkeypatch: pytest.MonkeyPatch, bert, bert_inputs
) -> None:
    here = base.machine_report()
    monkeypatch.setattr(base, "machine_report", lambda: replace(here, isa=("AVX2",)))
    emulated = {recipe.name: recipe.emulated for recipe in list_recipes() if recipe.name in OWN}
    assert emulated == {name: name.endswith("bf16") for name in OWN}
    assert recipe_of(logits, name="mine-int8").emulated
    assert "emulated" in prepare("eager-bf16", bert, bert_inputs).receipt.evidence["BF16"]
    monkeypatch.setattr(base, "machine_report", lambda: replace(here, isa=("AVX512_BF16", "AVX512_VNNI"), isa_caps={}))
    assert not get_recipe("eager-bf16").emulated and not recipe_of(logits, name="mine-int8").emulated
    assert "BF16" not in prepare("eager-bf16", bert, bert_inputs).receipt.evidence


# A drop-in model


@pytest.mark.parametrize("name", OWN)
def test_a_prepared_model_takes_the_place_of_the_model(name: str, bert, bert_inputs) -> None:
    before = state_of(bert)
    prepared = prepare(name, bert, bert_inputs)
    assert prepared.prepared and prepared.reason is None and prepared.recipe == name
    other = make_inputs(5, 7, padding=3, seed=4)
    with torch.no_grad():
        wanted = bert(**other)
    seen = prepared(**other)
    assert type(seen) is type(wanted) and tuple(seen.keys()) == tuple(wanted.keys())
    valid = other["attention_mask"].bool()
    for key in wanted:
        assert seen[key].dtype == torch.float32 and not seen[key].requires_grad
        error = (seen[key] - wanted[key])[valid].abs().max().item()
        assert error <= TOLERANCE[get_recipe(name).precision]
    assert_unchanged(bert, before)
    assert prepared.receipt.verified and prepared.receipt.prepare_seconds > 0
    assert prepared.receipt.requested["recipe"] == name
    assert prepared.input_names == tuple(bert_inputs) and prepared.config is bert.config
    assert name in str(prepared) and "verified" in str(prepared)


def test_bf16_recipes_really_compute_in_bf16(bert, bert_inputs) -> None:
    with torch.no_grad():
        wanted = bert(**bert_inputs).start_logits
    for name in ("eager-bf16", "torchscript-bf16"):
        error = (prepare(name, bert, bert_inputs)(**bert_inputs).start_logits - wanted).abs().max().item()
        assert error > 1e-5, name
    dtypes = prepare("torchscript-bf16", bert, bert_inputs).receipt.linear_dtypes
    assert set(dtypes) == {"bfloat16"} and dtypes["bfloat16"] >= 13


def test_what_ran_stands_in_the_receipt(eager_bert, bert_inputs) -> None:
    traced = prepare("torchscript-fp32", eager_bert, bert_inputs)
    assert isinstance(traced.module, torch.jit.ScriptModule)
    receipt = traced.receipt
    assert receipt.script_module and receipt.frozen and receipt.runs == "ScriptModule, frozen"
    assert receipt.attention_implementation == "eager" and receipt.graph_nodes["aten::softmax"] == 2
    eager = prepare("eager-fp32", eager_bert, bert_inputs)
    assert eager.module is None and not eager.receipt.script_module and eager.receipt.graph_nodes == {}
    assert eager.receipt.runs in str(eager) and "eager" in eager.receipt.runs


def test_without_verification_the_receipt_says_so(bert, bert_inputs) -> None:
    prepared = prepare("eager-fp32", bert, bert_inputs, verify=False)
    assert prepared.prepared and not prepared.receipt.verified and prepared.receipt.checks == ()
    assert "not verified" in str(prepared)


class Pair(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None, twice: bool = False) -> Any:
        out = self.layer(x if y is None else x + y)
        return (out * 2 if twice else out), [out.sum(-1), {"class": out.argmax(-1)}]


@pytest.mark.parametrize("name", ["eager-fp32", "torchscript-fp32"])
def test_a_module_of_your_own_with_nested_outputs(name: str) -> None:
    model = Pair().eval()
    prepared = prepare(name, model, {"x": torch.randn(3, 4), "y": torch.randn(3, 4)})
    assert prepared.prepared, prepared.reason
    assert prepared.config is None and prepared.receipt.attention_implementation is None
    x, y = torch.randn(5, 4), torch.randn(5, 4)
    first, (total, labels) = prepared(x=x, y=y)
    with torch.no_grad():
        wanted, (wanted_total, wanted_labels) = model(x, y)
    torch.testing.assert_close(first, wanted)
    torch.testing.assert_close(total, wanted_total)
    assert labels["class"].dtype == torch.int64 and torch.equal(labels["class"], wanted_labels["class"])


@pytest.mark.parametrize("name", ["eager-fp32", "torchscript-fp32"])
def test_plain_values_of_the_example_become_constants(name: str, bert, bert_inputs) -> None:
    prepared = prepare(name, bert, {**bert_inputs, "output_hidden_states": True})
    assert prepared.prepared, prepared.reason
    assert prepared.input_names == tuple(bert_inputs)
    output = prepared(**bert_inputs)
    assert len(output.hidden_states) == 3 and output.hidden_states[0].shape == (2, 12, 32)
    again = prepared(**bert_inputs, output_hidden_states=True, inputs_embeds=None)
    assert torch.equal(again.start_logits, output.start_logits)
    with pytest.raises(InputError, match="output_hidden_states"):
        prepared(**bert_inputs, output_hidden_states=False)


def test_a_call_with_other_inputs_is_refused(bert, bert_inputs) -> None:
    prepared = prepare("eager-fp32", bert, bert_inputs)
    with pytest.raises(InputError, match="'token_type_ids' is missing"):
        prepared(**{name: tensor for name, tensor in bert_inputs.items() if name != "token_type_ids"})
    with pytest.raises(InputError, match="position_ids"):
        prepared(**bert_inputs, position_ids=torch.arange(12).expand(2, 12))


@pytest.mark.parametrize("name", OWN)
def test_preparing_restores_the_state_of_the_process(name: str, bert, bert_inputs) -> None:
    def state() -> tuple[Any, ...]:
        return (
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.is_autocast_enabled("cpu"),
            torch.is_autocast_cache_enabled(),
            torch.get_rng_state().tolist(),
        )

    example = {key: tensor.clone() for key, tensor in bert_inputs.items()}
    before = state()
    prepared = prepare(name, bert, bert_inputs)
    prepared(**bert_inputs)
    assert state() == before
    assert all(torch.equal(bert_inputs[key], example[key]) for key in example)


def test_the_example_may_change_afterwards(bert, bert_inputs) -> None:
    prepared = prepare("torchscript-fp32", bert, bert_inputs)
    saved = make_inputs()
    for tensor in bert_inputs.values():
        tensor.zero_()
    with torch.no_grad():
        torch.testing.assert_close(prepared(**saved).start_logits, bert(**saved).start_logits)


# A recipe of your own, and what goes wrong


def test_a_recipe_object_works_like_a_name(bert, bert_inputs) -> None:
    prepared = prepare(recipe_of(logits), bert, bert_inputs)
    assert prepared.prepared and prepared.recipe == "mine-fp32" and prepared.receipt.runs == "a test"


def test_the_backend_is_given_what_was_asked_for(bert, bert_inputs) -> None:
    given: list[Request] = []

    def build(request: Request) -> Build:
        given.append(request)
        assert not torch.is_grad_enabled()
        return Build(lambda tensors: logits(request.model, tensors), runs="a test")

    rows = [make_inputs(1, 9, seed=seed) for seed in range(3)]
    prepare(
        Recipe("mine-int8", "for a test", build), bert, {**bert_inputs, "output_attentions": False}, calibration=rows
    )
    (request,) = given
    assert (request.recipe, request.precision) == ("mine-int8", "int8")
    assert type(request.model) is type(bert) and request.config.to_dict() == bert.config.to_dict()
    assert [p.data_ptr() for p in request.model.parameters()] == [p.data_ptr() for p in bert.parameters()]
    assert tuple(request.inputs.tensors) == tuple(bert_inputs) and request.inputs.constants == {
        "output_attentions": False
    }
    assert len(request.calibration) == 3 and isinstance(request.calibration, tuple)
    for row, wanted in zip(request.calibration, rows, strict=True):
        assert all(torch.equal(row[name], wanted[name]) for name in wanted)


def test_answers_come_back_in_the_models_own_dtype(bert, bert_inputs) -> None:
    def answer(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.double() for name, tensor in logits(model, tensors).items()}

    prepared = prepare(recipe_of(answer), bert, bert_inputs)
    assert prepared.prepared and prepared(**bert_inputs).start_logits.dtype == torch.float32


def broken(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    raise ValueError("the oven is cold")


def no_end(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"start_logits": logits(model, tensors)["start_logits"]}


def wrong_when_longer(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor + (tensor.shape[1] > 12) for name, tensor in logits(model, tensors).items()}


def wrong_shape(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor[:2] for name, tensor in logits(model, tensors).items()}


def looks_at_padding(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return logits(model, {**tensors, "attention_mask": torch.ones_like(tensors["attention_mask"])})


def not_a_number(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor * float("nan") for name, tensor in logits(model, tensors).items()}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (broken, "mine fails: ValueError: the oven is cold"),
        (no_end, "mine does not return 'end_logits'; it returns start_logits"),
        (wrong_when_longer, "does not give the model's answers on 'longer' .*start_logits differs.*largest error 1.0"),
        (wrong_shape, "does not give the model's answers on 'other batch size' .*shape"),
        (looks_at_padding, "does not give the model's answers on 'padding'"),
        (not_a_number, "does not give the model's answers on 'example'"),
    ],
)
def test_a_failure_falls_back_to_the_model_with_the_reason(
    caplog: pytest.LogCaptureFixture, bert, bert_inputs, answer: Callable[..., Any], reason: str
) -> None:
    with caplog.at_level(logging.WARNING, "cpuinfer_helpers"):
        prepared = prepare(recipe_of(answer), bert, bert_inputs)
    assert not prepared.prepared and prepared.module is None
    assert re.search(reason, prepared.reason), prepared.reason
    assert prepared.reason == prepared.receipt.reason and prepared.reason in str(prepared)
    assert "the eager model answers" in caplog.text and prepared.reason in caplog.text
    assert "because" in prepared.receipt.table().rows[1][1]
    with torch.no_grad():
        wanted = bert(**bert_inputs)
    seen = prepared(**bert_inputs)
    assert type(seen) is type(wanted) and torch.equal(seen.start_logits, wanted.start_logits)
    assert not seen.start_logits.requires_grad
    with pytest.raises(RecipeError, match=reason):
        prepare(recipe_of(answer), bert, bert_inputs, on_failure="raise")


def test_only_verification_finds_a_wrong_answer(bert, bert_inputs) -> None:
    assert prepare(recipe_of(wrong_when_longer), bert, bert_inputs, verify=False).prepared


def test_an_answer_that_turns_wrong_on_its_third_call_is_found(bert, bert_inputs) -> None:
    calls: list[int] = []

    def answer(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        calls.append(1)
        return {name: tensor + (len(calls) >= 4) for name, tensor in logits(model, tensors).items()}

    prepared = prepare(recipe_of(answer), bert, bert_inputs)
    assert not prepared.prepared and "call 3" in prepared.reason


def test_int8_and_bf16_may_err_more_than_fp32(bert, bert_inputs) -> None:
    def answer(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor + share * tensor.abs().max() for name, tensor in logits(model, tensors).items()}

    kept = {}
    for share in (0.0, 0.03, 0.2, 0.6):
        names = ("mine-fp32", "mine-bf16", "mine-int8")
        kept[share] = [prepare(recipe_of(answer, name), bert, bert_inputs).prepared for name in names]
    assert kept == {
        0.0: [True, True, True],
        0.03: [False, True, True],
        0.2: [False, False, True],
        0.6: [False, False, False],
    }


def test_a_recipe_that_cannot_run_is_not_built(bert, bert_inputs) -> None:
    built: list[Request] = []
    recipe = Recipe("mine-fp32", "for a test", built.append, obstacle=lambda: "it is Monday")
    prepared = prepare(recipe, bert, bert_inputs)
    assert prepared.reason == "it is Monday" and built == []
    with pytest.raises(RecipeError, match="Monday"):
        prepare(recipe, bert, bert_inputs, on_failure="raise")


def test_arguments_that_cannot_be_used_are_refused(bert, bert_inputs) -> None:
    with pytest.raises(InputError, match="on_failure is 'ignore'"):
        prepare("eager-fp32", bert, bert_inputs, on_failure="ignore")
    with pytest.raises(InputError, match="'eager-fp64'"):
        prepare("eager-fp64", bert, bert_inputs)
    with pytest.raises(InputError, match="training mode"):
        prepare("eager-fp32", make_bert().train(), bert_inputs)
    with pytest.raises(InputError, match="pixel_values"):
        prepare("eager-fp32", bert, {**bert_inputs, "pixel_values": torch.zeros(2, 3)})
    with pytest.raises(InputError, match="itself cannot run"):
        prepare("eager-fp32", bert, {**bert_inputs, "input_ids": bert_inputs["input_ids"] + 1000})


def test_an_interrupt_is_no_failure(bert, bert_inputs) -> None:
    def interrupted(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(recipe_of(interrupted), bert, bert_inputs)


def test_a_model_whose_output_holds_no_tensor_falls_back() -> None:
    class Words(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> str:
            return "no tensor"

    prepared = prepare("eager-fp32", Words().eval(), {"x": torch.zeros(1, 2)})
    assert "holds no tensor" in prepared.reason and prepared(x=torch.zeros(1, 2)) == "no tensor"


def test_outputs_that_cannot_be_returned_are_named() -> None:
    class WithCache(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, Any]:
            return {"logits": x * 2, "cache": {"states": object()}}

    prepared = prepare("eager-fp32", WithCache().eval(), {"x": torch.ones(2, 3)})
    assert prepared.prepared and prepared.receipt.outputs_left_out == ("cache.states",)
    assert torch.equal(prepared(x=torch.ones(1, 3))["logits"], torch.full((1, 3), 2.0))


def test_a_recipe_that_changes_the_process_says_so_first(caplog: pytest.LogCaptureFixture, bert, bert_inputs) -> None:
    recipe = recipe_of(logits, changes_process="paints the process blue")
    with caplog.at_level(logging.WARNING, "cpuinfer_helpers"):
        prepare(recipe, bert, bert_inputs)
    assert "mine-fp32 paints the process blue" in caplog.text


def test_a_process_with_ipex_in_it_is_no_place_for_a_comparison(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, bert, bert_inputs
) -> None:
    with caplog.at_level(logging.WARNING, "cpuinfer_helpers"):
        prepare("eager-fp32", bert, bert_inputs)
        assert caplog.text == ""
        name = "intel_extension_for_pytorch"
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        prepare("eager-fp32", bert, bert_inputs)
    assert "eager-fp32 is prepared in a process that has imported IPEX" in caplog.text


# Copies


def test_a_shared_copy_has_the_weights_and_not_the_modules(new_bert, bert_inputs) -> None:
    model = new_bert("BertForMaskedLM")
    before = state_of(model)
    copied = shared_copy(model)
    assert type(copied) is type(model) and copied is not model
    pairs = zip(model.named_parameters(), copied.named_parameters(), strict=True)
    assert all(name == other and a.data_ptr() == b.data_ptr() for (name, a), (other, b) in pairs)
    assert copied.cls.predictions.decoder.weight is copied.bert.embeddings.word_embeddings.weight
    own = {id(part) for part in model.modules()}
    assert not own & {id(part) for part in copied.modules()}
    copied.bert.encoder.layer[0] = torch.nn.Identity()
    copied.bert.pooler = None
    copied.train()
    assert_unchanged(model, before)
    with torch.no_grad():
        model(**bert_inputs)


def test_a_cast_copy_leaves_the_model_as_it_was(new_bert, bert_inputs) -> None:
    model = new_bert()
    before = state_of(model)
    half = cast_copy(model, torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert all(not parameter.isnan().any() for parameter in half.parameters())
    assert half.bert.embeddings.position_ids.dtype == torch.int64
    assert_unchanged(model, before)
    same = cast_copy(model, torch.float32)
    assert [p.data_ptr() for p in same.parameters()] == [p.data_ptr() for p in model.parameters()]
    with torch.no_grad():
        error = (half(**bert_inputs).start_logits.float() - model(**bert_inputs).start_logits).abs().max().item()
    assert 0 < error <= TOLERANCE["bf16"]


@pytest.mark.parametrize(("have", "want"), [("sdpa", "eager"), ("eager", "sdpa"), ("eager", "eager")])
def test_attention_is_changed_on_a_copy_that_shares_the_weights(new_bert, have: str, want: str) -> None:
    model = new_bert(attention=have)
    before = state_of(model)
    changed = with_attention(model, want)
    assert (attention_of(changed), attention_of(model)) == (want, have)
    assert changed is not model and not any(part.training for part in changed.modules())
    assert [p.data_ptr() for p in changed.parameters()] == [p.data_ptr() for p in model.parameters()]
    inputs = make_inputs(3, 11, padding=4)
    with torch.no_grad():
        seen, wanted = changed(**inputs).start_logits, model(**inputs).start_logits
    # The same products and sums in another order, on answers below one.
    torch.testing.assert_close(seen, wanted, atol=1e-5, rtol=0)
    trace = torch.jit.trace(changed, example_kwarg_inputs=inputs, strict=False)
    ran = str(trace.inlined_graph)
    assert ("aten::scaled_dot_product_attention" in ran) == (want == "sdpa")
    assert ("aten::softmax" in ran) == (want == "eager")
    assert_unchanged(model, before)


def test_attention_of_a_tied_model_stays_tied(new_bert) -> None:
    changed = with_attention(new_bert("BertForMaskedLM"), "eager")
    assert changed.cls.predictions.decoder.weight is changed.bert.embeddings.word_embeddings.weight


def test_a_model_with_another_head_than_its_configuration_keeps_it(new_bert, bert_inputs) -> None:
    model = new_bert()
    model.qa_outputs = torch.nn.Sequential(torch.nn.Linear(32, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).eval()
    changed = with_attention(model, "eager")
    with torch.no_grad():
        torch.testing.assert_close(
            changed(**bert_inputs).end_logits, model(**bert_inputs).end_logits, atol=1e-5, rtol=0
        )
    assert attention_of(changed) in ("sdpa", "eager")


def test_a_model_without_attention_is_copied_as_it_is() -> None:
    model = Pair().eval()
    changed = with_attention(model, "eager")
    assert attention_of(model) is attention_of(changed) is None
    assert changed is not model and changed.layer.weight is model.layer.weight


def test_a_model_that_cannot_be_built_anew_keeps_its_attention(
    caplog: pytest.LogCaptureFixture, new_bert, bert_inputs
) -> None:
    model = new_bert()
    type_with_arguments = type("NeedsMore", (type(model),), {"__init__": lambda self, config, more: None})
    model.__class__ = type_with_arguments
    with caplog.at_level(logging.INFO, "cpuinfer_helpers"):
        changed = with_attention(model, "eager")
    assert attention_of(changed) == "sdpa" and "keeps its sdpa attention" in caplog.text
    with torch.no_grad():
        assert torch.equal(changed(**bert_inputs).start_logits, model(**bert_inputs).start_logits)


def test_copies_are_recognised_as_new_by_deepcopy(bert) -> None:
    """The memo that shares tensors must not leak into later copies."""
    copied = copy.deepcopy(shared_copy(bert))
    assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in bert.parameters()}
    assert attention_of(copied) == "sdpa"


def test_a_recipe_that_changes_the_users_model_is_an_error(new_bert, bert_inputs):
    def cast_in_place(request):
        request.model.to(torch.bfloat16)
        return cpu.get_recipe("eager-fp32").build(request)

    careless = cpu.Recipe("careless-fp32", "casts the model it was given", cast_in_place)

    with pytest.raises(cpu.CpuInferError, match="changed the model"):
        cpu.prepare(careless, new_bert(), bert_inputs)


def test_a_need_that_cannot_be_read_is_an_error():
    with pytest.raises(cpu.InputError, match="~=1"):
        cpu.Recipe("odd-fp32", "", lambda request: None, needs=("package~=1",)).why_not  # noqa: B018


# Other ways


def in_ways(*changes: Callable[[torch.Tensor], torch.Tensor]) -> tuple[Recipe, list[int]]:
    """A recipe with a way for each change of the answers, and the numbers of those that were built."""
    built: list[int] = []

    def way(request: Request, number: int) -> Build:
        built.append(number)

        def answer(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {name: changes[number](tensor) for name, tensor in logits(request.model, tensors).items()}

        more = number + 1 < len(changes)
        otherwise = (lambda: way(request, number + 1)) if more else None
        return Build(answer, runs=f"way {number}", otherwise=otherwise)

    return Recipe("ways-fp32", "for a test", lambda request: way(request, 0)), built


def test_another_way_is_taken_where_the_answers_differ(bert, bert_inputs) -> None:
    recipe, built = in_ways(lambda tensor: tensor + 1, lambda tensor: tensor, lambda tensor: tensor)
    prepared = prepare(recipe, bert, bert_inputs)
    assert prepared.receipt.runs == "way 1" and built == [0, 1] and prepared.receipt.verified
    # It would keep the eager model in memory.
    assert prepared.build.otherwise is None


def test_without_a_right_way_the_first_one_says_why(bert, bert_inputs) -> None:
    recipe, built = in_ways(lambda tensor: tensor + 1, lambda tensor: tensor + 2)
    prepared = prepare(recipe, bert, bert_inputs)
    assert not prepared.prepared and built == [0, 1]
    assert "largest error 1.0e+00" in prepared.reason


@pytest.mark.parametrize("name", ["torchscript-fp32", "onednn-graph-fp32"])
def test_padding_in_the_trace_is_tried_where_the_model_looks_for_it(name: str) -> None:
    model = MaskDroppedWhenFull().eval()
    inputs = {key: tensor for key, tensor in make_inputs().items() if key != "token_type_ids"}
    prepared = prepare(name, model, inputs)
    assert prepared.prepared and prepared.receipt.evidence["traced with"] == "padding in the example"
    other = {key: tensor for key, tensor in make_inputs(3, 9, padding=4).items() if key != "token_type_ids"}
    torch.testing.assert_close(prepared(**other), model(**other))
