"""The one reference: a fresh copy for each comparison, and a plain reason where nothing can be compared."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import cpuinfer_helpers as cpu

RECIPES = (None, "eager-fp32", "torchscript-fp32", "onednn-graph-fp32", "openvino-fp32", "onnxruntime-fp32")


def made(recipe, model, inputs, **options):
    if recipe is None:
        return cpu.trace_model(model, inputs, **options)
    return cpu.prepare(recipe, model, inputs, **options)


def can_run(recipe) -> bool:
    return recipe is None or cpu.get_recipe(recipe).can_run


@pytest.fixture(params=[recipe for recipe in RECIPES if can_run(recipe)], ids=str)
def recipe(request):
    return request.param


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(8, 3)

    def forward(self, x):
        return self.linear(x)


class Counts(Layer):
    """Writes into a buffer, an attribute and a list at every call; its answers do not depend on them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.seen, self.lengths = 0, [0]

    def forward(self, x):
        self.calls += 1
        self.seen += 1
        self.lengths = [*self.lengths, 1]
        return super().forward(x)


class Remembers(Layer):
    """Answers by what it has seen before: full of zeros for good after one small batch."""

    def __init__(self):
        super().__init__()
        self.on = True

    def forward(self, x):
        if x.shape[0] < 2:
            self.on = False
        return super().forward(x) * float(self.on)


class Sparse(Layer):
    def forward(self, x):
        return super().forward(x).to_sparse()


class Nested(Layer):
    def forward(self, x):
        return torch.nested.nested_tensor(list(super().forward(x)))


class Quantised(Layer):
    def forward(self, x):
        return torch.quantize_per_tensor(super().forward(x), 0.1, 0, torch.qint8)


class InPlace(Layer):
    def forward(self, x):
        x *= 2
        return super().forward(x)


class NotANumber(Layer):
    def forward(self, x):
        return super().forward(x) / 0 * 0


class Infinite(Layer):
    def forward(self, x):
        return super().forward(x).abs() / 0


class AlwaysDropout(Layer):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.5, training=True)


def rows(count: int = 3) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(count, 8, generator=torch.Generator().manual_seed(count))}


def test_the_users_model_is_left_as_it_was(recipe):
    model = Counts().eval()
    made(recipe, model, rows())(**rows(2))
    assert (model.calls.item(), model.seen, model.lengths) == (0, 0, [0])


def test_what_a_call_remembers_decides_no_other_call(recipe):
    """Whatever is prepared, or falls back, answers a batch as the model does that has seen nothing before."""
    model = Remembers().eval()
    prepared = made(recipe, model, rows())
    for count in (3, 1, 3):
        expected = Remembers().eval()(**rows(count)).detach()
        try:
            # The same products in another order.
            torch.testing.assert_close(prepared(**rows(count)), expected, atol=1e-6, rtol=1e-5)
        except cpu.InputError:
            assert prepared.reason is None
    assert model.on


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Sparse, "'output' is a sparse_coo tensor, which cannot be compared"),
        (Nested, "'output' is a nested tensor, which cannot be compared"),
        (Quantised, "'output' is a quantised tensor, which cannot be compared"),
        (InPlace, r"writes into its own inputs \(x\)"),
        (NotANumber, r"not numbers \(output holds NaN\)"),
        (Infinite, r"are infinite \(output holds no finite number\)"),
        (AlwaysDropout, "under another random seed.*is a dropout always on"),
    ],
)
def test_what_cannot_be_compared_has_its_own_reason(recipe, kind, reason):
    import re

    prepared = made(recipe, kind().eval(), rows())
    assert prepared.reason and re.search(reason, prepared.reason), prepared.reason
    prepared(**rows())
    with pytest.raises((cpu.TraceError, cpu.RecipeError), match=reason):
        made(recipe, kind().eval(), rows(), on_failure="raise")


def test_a_model_made_under_inference_mode(recipe):
    with torch.inference_mode():
        model, inputs = Layer().eval(), rows()
        prepared = made(recipe, model, inputs)
    assert prepared.reason is None, prepared.reason
    torch.testing.assert_close(prepared(**rows(5)), model.linear(rows(5)["x"]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fp32_of_a_model_in_less_is_not_called_fp32(dtype):
    prepared = cpu.prepare("torchscript-fp32", Layer().eval().to(dtype), {"x": rows()["x"].to(dtype)})
    assert f"no: the model's own weights are {str(dtype).removeprefix('torch.')}" in prepared.receipt.evidence["FP32"]
    assert "FP32" not in cpu.prepare("torchscript-fp32", Layer().eval(), rows()).receipt.evidence


class TextsAndImages(nn.Module):
    """As CLIP does, compares every text with every image."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.text, self.image = nn.Embedding(60, 8), nn.Linear(12, 8)

    def forward(self, input_ids, pixels):
        return {"logits": self.text(input_ids).mean(1) @ self.image(pixels).T}


def test_inputs_with_different_numbers_of_rows(recipe):
    def inputs(texts, images, length=6):
        generator = torch.Generator().manual_seed(texts + images)
        ids = torch.randint(0, 60, (texts, length), generator=generator)
        return {"input_ids": ids, "pixels": torch.randn(images, 12, generator=generator)}

    model = TextsAndImages().eval()
    prepared = made(recipe, model, inputs(2, 1))
    assert prepared.reason is None, prepared.reason
    for sizes in ((2, 1), (5, 1), (1, 3), (4, 4, 9)):
        expected = model(**inputs(*sizes))["logits"].detach()
        torch.testing.assert_close(prepared(**inputs(*sizes))["logits"], expected, atol=1e-5, rtol=1e-5)


class Branches(Layer):
    def forward(self, x):
        y = super().forward(x)
        return y if x.sum() > -1e9 else -y


def test_a_branch_of_the_models_own_code_stands_in_its_text():
    traced = cpu.trace_model(Branches().eval(), rows())
    assert traced.traced and "the example has decided a branch at test_reference.py:" in str(traced)
    assert "branch" not in str(cpu.trace_model(Layer().eval(), rows()))


class TurnsNegative(Layer):
    def forward(self, x):
        y = super().forward(x)
        return y if x[0, 0] > 0 else -y


def test_a_branch_on_values_is_met(recipe):
    inputs = {"x": rows()["x"].abs()}
    prepared = made(recipe, TurnsNegative().eval(), inputs)
    expected = TurnsNegative().eval()(-inputs["x"]).detach()
    torch.testing.assert_close(prepared(x=-inputs["x"]), expected, atol=1e-6, rtol=1e-5)
