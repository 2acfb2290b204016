"""The loss from logits is the model's own, or there is none."""

from __future__ import annotations

import pytest
import torch

from cpuinfer_helpers.trainer.losses import loss_of, split_loss, with_loss
from tests.conftest import make_bert, make_inputs

LABELS = {
    "BertForQuestionAnswering": {"start_positions": torch.tensor([1, 90]), "end_positions": torch.tensor([4, 5])},
    "BertForSequenceClassification": {"labels": torch.tensor([1, 0])},
    "BertForTokenClassification": {"labels": torch.tensor([[0, 1] * 6, [1] * 8 + [-100] * 4])},
    "BertForMaskedLM": {"labels": torch.tensor([[7] * 12, [9] * 8 + [-100] * 4])},
}


@pytest.mark.parametrize("model_class", LABELS)
@pytest.mark.parametrize("as_tuple", [False, True])
def test_it_is_the_models_own_on_any_batch(model_class, as_tuple):
    model, labels = make_bert(model_class, return_dict=not as_tuple), LABELS[model_class]
    with torch.no_grad():
        found = loss_of(model, model(**make_inputs(), **labels), labels)
        assert found is not None
        for seed in range(3):
            inputs = make_inputs(seed=seed)
            expected = model(**inputs, **labels)
            plain = model(**inputs)
            torch.testing.assert_close(found(plain, labels), split_loss(expected)[0])
            again = with_loss(plain, found(plain, labels))
            assert type(again) is type(expected) and len(again) == len(expected)
            for one, other in zip(again, expected, strict=True):
                assert one == other if isinstance(one, str) else torch.equal(one, other)


@pytest.mark.parametrize("kind", ["regression", "several labels"])
def test_other_kinds_of_problem(kind):
    problem = {"regression": "regression", "several labels": "multi_label_classification"}[kind]
    model = make_bert("BertForSequenceClassification", num_labels=3, problem_type=problem)
    labels = {"labels": torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])}
    with torch.no_grad():
        expected = model(**make_inputs(), **labels)
        found = loss_of(model, expected, labels)
        torch.testing.assert_close(found(model(**make_inputs()), labels), expected.loss)


class Weighted(torch.nn.Module):
    """A BERT whose loss is not the usual one."""

    def __init__(self, bert):
        super().__init__()
        self.bert, self.config = bert, bert.config
        self.loss_type, self.loss_function = "ForSequenceClassification", bert.loss_function

    def forward(self, labels=None, **inputs):
        output = self.bert(**inputs, labels=labels)
        if labels is not None:
            output["loss"] = output["loss"] * 2
        return output


def test_another_loss_is_not_taken_for_the_usual_one():
    model, labels = Weighted(make_bert("BertForSequenceClassification")), {"labels": torch.tensor([1, 0])}
    with torch.no_grad():
        assert loss_of(model, model(**make_inputs(), **labels), labels) is None
        assert loss_of(model.bert, model.bert(**make_inputs(), **labels), labels) is not None


def test_a_loss_that_is_no_number_proves_nothing():
    model = make_bert("BertForTokenClassification")
    labels = {"labels": torch.full((2, 12), -100)}
    with torch.no_grad():
        assert loss_of(model, model(**make_inputs(), **labels), labels) is None
