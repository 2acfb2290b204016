from __future__ import annotations

import pytest
import torch

from cpuinfer_helpers.verification.agreement import label_agreement, max_error

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


def test_classes_of_rows():
    expected = {"logits": torch.tensor([[0.0, 1.0, 0.5], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])}
    seen = {"logits": expected["logits"].clone()}
    seen["logits"][1] = torch.tensor([0.9, 1.0, 0.0])
    assert label_agreement([expected], [seen], [{}]) == (75.0, 4)


def test_classes_of_tokens_count_only_where_there_is_no_padding():
    expected = {"logits": torch.zeros(2, 4, 3)}
    expected["logits"][..., 0] = 1.0
    seen = {"logits": expected["logits"].clone()}
    seen["logits"][1, 2:, 2] = 5.0  # padding
    seen["logits"][0, 3, 1] = 5.0
    percent, labels = label_agreement([expected], [seen], [{"attention_mask": MASK}])
    assert labels == 6 and percent == pytest.approx(100 * 5 / 6)


def test_places_in_the_text_are_chosen_among_valid_tokens():
    expected = {"start_logits": torch.tensor([[0.0, 3.0, 1.0, 2.0], [1.0, 2.0, 0.0, 0.0]])}
    seen = {"start_logits": torch.tensor([[0.0, 3.0, 1.0, 2.0], [1.0, 2.0, 9.0, 9.0]])}
    assert label_agreement([expected], [seen], [{"attention_mask": MASK}]) == (100.0, 2)
    assert label_agreement([expected], [seen], [{}]) == (50.0, 2)


def test_only_logits_count_where_there_are_any_and_all_floating_outputs_otherwise():
    logits, hidden = torch.eye(3), torch.rand(3, 4, 8)
    expected = {"logits": logits, "scores": hidden}
    seen = {"logits": logits, "scores": -hidden}
    assert label_agreement([expected], [seen], [{}]) == (100.0, 3)
    del expected["logits"]
    percent, labels = label_agreement([expected], [seen], [{}])
    assert labels == 12 and percent < 100


def test_a_regression_and_integers_have_no_labels():
    outputs = {"logits": torch.ones(3, 1), "ids": torch.ones(3, 4, dtype=torch.long)}
    assert label_agreement([outputs], [outputs], [{}]) == (None, 0)


@pytest.mark.parametrize(
    "name", ["last_hidden_state", "pooler_output", "hidden_states.0", "text_embeds", "encoder_last_hidden_state"]
)
def test_a_vector_is_no_choice_among_labels(name):
    vectors = {name: torch.tensor([[0.1, 0.9, 0.3]])}
    assert label_agreement([vectors], [vectors], [{}]) == (None, 0)
    assert label_agreement([{**vectors, "logits": torch.eye(2)}], [{**vectors, "logits": torch.eye(2)}], [{}]) == (
        100.0,
        2,
    )


def test_all_inputs_count_together():
    one, other = {"logits": torch.tensor([[0.0, 1.0]])}, {"logits": torch.tensor([[1.0, 0.0]])}
    assert label_agreement([one, one], [one, other], [{}, {}]) == (50.0, 2)
    assert max_error([one, one], [one, other], [{}, {}]) == 1.0


def test_errors_under_padding_do_not_count_and_what_is_not_a_number_does():
    expected = {"logits": torch.zeros(2, 4)}
    seen = {"logits": torch.zeros(2, 4)}
    seen["logits"][1, 3] = 7.0
    seen["logits"][0, 0] = -0.5
    assert max_error([expected], [seen], [{"attention_mask": MASK}]) == 0.5
    seen["logits"][0, 1] = float("nan")
    assert max_error([expected], [seen], [{"attention_mask": MASK}]) == float("inf")
    assert max_error([expected], [{"logits": torch.zeros(2, 5)}], [{}]) == float("inf")
