"""A recipe carried out for each shape: made when it comes, verified before it answers, else the eager model."""

from __future__ import annotations

import copy
import logging
import pickle
import threading

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.interface import by_shape

RECIPES = ("torchscript-fp32", "onednn-graph-fp32", "openvino-fp32", "onnxruntime-fp32")


class LengthBakedIn(torch.nn.Module):
    """Divides by the length of the example, for ever."""

    def __init__(self):
        super().__init__()
        self.first, self.linear = torch.nn.Linear(1, 32), torch.nn.Linear(32, 16)

    def forward(self, input_ids, attention_mask):
        scores = (input_ids * attention_mask).float().cumsum(dim=1) / int(input_ids.shape[1])
        return {"logits": self.linear(torch.nn.functional.gelu(self.first(scores[..., None])))}


class TokenDecides(torch.nn.Module):
    """What Python does depends on a token: nothing that is made of it can hold that."""

    def forward(self, input_ids, attention_mask):
        return input_ids.float() * (2 if int(input_ids[0, 1]) % 2 else 3)


class FailsWhenOdd(torch.nn.Module):
    """Refuses an odd number of rows, with an error of its own."""

    def forward(self, input_ids, attention_mask):
        if input_ids.shape[0] % 2:
            raise ValueError("rows come in pairs")
        return input_ids.float() / int(input_ids.shape[1])


def batch(rows: int = 2, length: int = 12) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * 100 + length)
    ids = torch.randint(5, 120, (rows, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def made(model: torch.nn.Module | None = None, recipe="torchscript-fp32"):
    torch.manual_seed(0)
    model = (model or LengthBakedIn()).eval()
    return model, cpu.prepare(recipe, model, batch(), each_shape=True)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_shape_is_prepared_by_itself_and_is_right(recipe):
    model, prepared = made(recipe=recipe)
    assert prepared.prepared and prepared.shapes == ("2 x 12",)
    for rows, length in ((1, 5), (3, 31), (1, 5)):
        inputs = batch(rows, length)
        inputs["attention_mask"][-1, length // 2 :] = 0
        for _ in range(3):
            expected = model(**inputs)["logits"].detach()
            # FP32: the same few products, in another order.
            torch.testing.assert_close(prepared(**inputs)["logits"], expected, rtol=1e-5, atol=1e-4)
    assert prepared.shapes == ("2 x 12", "3 x 31", "1 x 5") and not prepared.eager_shapes
    assert prepared.receipt.verified


def test_without_it_the_eager_model_answers():
    prepared = cpu.prepare("torchscript-fp32", LengthBakedIn().eval(), batch())
    assert not prepared.prepared and "does not give the model's answers" in prepared.reason


def test_the_receipt_and_the_text_say_plainly_what_it_is():
    _, prepared = made()
    prepared(**batch(1, 5))
    assert "once for each shape, 2 so far (2 x 12, 1 x 5)" in str(prepared)
    evidence = prepared.receipt.evidence
    assert evidence["prepared"] == "by the recipe, once for each shape"
    assert evidence["shapes"].startswith("2 of at most 16") and "'shorter'" in evidence["not once for all"]


def test_once_for_all_is_preferred_where_it_is_right(bert, bert_inputs):
    prepared = cpu.prepare("torchscript-fp32", bert, bert_inputs, each_shape=True)
    assert type(prepared) is cpu.PreparedModel and "prepared" not in prepared.receipt.evidence


def test_what_no_shape_decides_falls_back(caplog):
    with caplog.at_level(logging.WARNING, logger="cpuinfer_helpers"):
        model, prepared = made(TokenDecides())
    assert not prepared.prepared and prepared.reason in caplog.text
    torch.testing.assert_close(prepared(**batch(3, 7)), model(**batch(3, 7)))


def test_a_shape_at_which_nothing_is_right_is_answered_by_the_eager_model(caplog, monkeypatch):
    model, prepared = made()

    def fails(inputs):
        raise cpu.RecipeError("no room")

    monkeypatch.setattr(prepared, "_make", fails)
    with caplog.at_level(logging.WARNING, logger="cpuinfer_helpers"):
        torch.testing.assert_close(prepared(**batch(1, 7))["logits"], model(**batch(1, 7))["logits"].detach())
    assert prepared.eager_shapes == {"1 x 7": "no room"} and "no room" in caplog.text
    assert prepared.receipt.evidence["eager model answers for"] == "1 x 7"


def test_inputs_that_the_model_refuses_do_not_condemn_their_shape():
    _, prepared = made(FailsWhenOdd())
    with pytest.raises(cpu.InputError, match="rows come in pairs"):
        prepared(**batch(3, 12))
    assert not prepared.eager_shapes


def test_no_more_are_kept_or_made_than_allowed(monkeypatch):
    monkeypatch.setattr(by_shape, "SHAPES_KEPT", 2)
    monkeypatch.setattr(by_shape, "TRACES_MADE", 3)
    model, prepared = made()
    for length in (5, 6, 7):
        torch.testing.assert_close(prepared(**batch(1, length))["logits"], model(**batch(1, length))["logits"].detach())
    assert prepared.shapes == ("1 x 5", "1 x 6") and "no more traces" in prepared.receipt.evidence


def test_names_and_constants_are_checked():
    _, prepared = made()
    with pytest.raises(cpu.InputError, match="token_type_ids"):
        prepared(**batch(), token_type_ids=batch()["input_ids"])


def test_a_copy_answers_and_pickling_says_what_to_do():
    model, prepared = made()
    copied = copy.deepcopy(prepared)
    torch.testing.assert_close(copied(**batch(1, 6))["logits"], model(**batch(1, 6))["logits"].detach())
    assert prepared.shapes == ("2 x 12",) and copied.shapes == ("2 x 12", "1 x 6")
    with pytest.raises(cpu.ArtifactError, match=r"load_optimized\(folder\) in the other process"):
        pickle.dumps(prepared)


def test_threads_that_ask_for_a_new_shape_at_once_make_it_once():
    model, prepared = made()
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(prepared(**batch(1, 9))["logits"])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = model(**batch(1, 9))["logits"].detach()
    assert len(answers) == 4 and all(torch.allclose(answer, expected, atol=1e-4) for answer in answers)
    assert prepared.receipt.evidence["traces made"].startswith("2 of")
