"""What a model carries beside its class and configuration: hooks, attributes, replaced methods, parametrisations."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

import cpuinfer_helpers as cpu
from cpuinfer_helpers.interface.copies import attention_of, with_attention

SPECIAL = 7
IN_PROCESS = ("torchscript", "onednn-graph", "openvino", "onnxruntime", "bettertransformer")


class Rule(BertForSequenceClassification):
    bias = 0.0

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        output = super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        output.logits = torch.where(has_special(input_ids), output.logits + self.bias, output.logits)
        return output


def has_special(ids: torch.Tensor) -> torch.Tensor:
    return (ids == SPECIAL).any(1, keepdim=True)


def new(kind: type = BertForSequenceClassification) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return kind(BertConfig(vocab_size=100, num_labels=3, **sizes)).eval()


def with_attribute() -> torch.nn.Module:
    model = new(Rule)
    model.bias = 5.0
    return model


def with_hooks() -> torch.nn.Module:
    model, seen = new(), {}
    embeddings = model.bert.embeddings
    embeddings.register_forward_pre_hook(lambda _, __, named: seen.update(ids=named["input_ids"]), with_kwargs=True)
    model.classifier.register_forward_hook(lambda _, __, out: torch.where(has_special(seen["ids"]), out.flip(1), out))
    return model


def with_forward() -> torch.nn.Module:
    model = new()

    def forward(self: torch.nn.Module, input_ids=None, attention_mask=None, **kwargs: Any) -> Any:
        output = type(self).forward(self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        output.logits = torch.where(has_special(input_ids), -output.logits, output.logits)
        return output

    model.forward = types.MethodType(forward, model)
    return model


class Doubled(torch.nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def with_parametrisation() -> torch.nn.Module:
    model = new()
    torch.nn.utils.parametrize.register_parametrization(model.classifier, "weight", Doubled())
    return model.eval()


def with_replaced_attention() -> torch.nn.Module:
    """A hook on a part that other attention would replace."""
    model = new()
    model.bert.encoder.layer[0].attention.self.register_forward_hook(lambda _, __, out: (3 * out[0], *out[1:]))
    return model


def batch(rows: int, length: int, *, special: bool) -> dict[str, torch.Tensor]:
    ids = torch.randint(8, 99, (rows, length), generator=torch.Generator().manual_seed(0))
    if special:
        ids[:, 4] = SPECIAL
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("backend", IN_PROCESS)
@pytest.mark.parametrize(
    "make", [with_attribute, with_hooks, with_forward, with_parametrisation, with_replaced_attention]
)
def test_it_is_kept_or_the_recipe_falls_back(make, backend) -> None:
    if not cpu.get_recipe(f"{backend}-fp32").can_run:
        pytest.skip("not installed")
    model = make()
    prepared = cpu.prepare(f"{backend}-fp32", model, batch(2, 12, special=False))
    for special in (True, False):
        inputs = batch(3, 9, special=special)
        with torch.no_grad():
            expected = model(**inputs).logits
        # The same products and sums in another order, on answers below ten; what is lost makes more than 1e-3.
        torch.testing.assert_close(prepared(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
    usual = make is not with_replaced_attention
    assert prepared.prepared or (backend == "bettertransformer" and not usual), prepared.reason


@pytest.mark.parametrize("make", [with_attribute, with_hooks, with_forward, with_parametrisation])
def test_attention_is_changed_all_the_same(make) -> None:
    assert attention_of(with_attention(make(), "eager")) == "eager"


def test_the_fast_path_refuses_layers_whose_code_it_would_lose() -> None:
    def reason(model: torch.nn.Module) -> str:
        return cpu.prepare("bettertransformer-fp32", model, batch(2, 12, special=False)).reason or ""

    assert "has hooks on attention.self, which the fast path would lose" in reason(with_replaced_attention())
    model = new()
    layer = model.bert.encoder.layer[1]
    layer.forward = types.MethodType(lambda self, *given, **named: type(self).forward(self, *given, **named), layer)
    assert "a forward of its own" in reason(model)

    class Own(type(layer)):
        def forward(self, *given: Any, **named: Any) -> Any:
            return super().forward(*given, **named)

    model = new()
    model.bert.encoder.layer[0].__class__ = Own
    assert "a forward of Own's own" in reason(model)
