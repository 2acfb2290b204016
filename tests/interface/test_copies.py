"""Copies that share the weights and nothing else."""

from __future__ import annotations

from collections import OrderedDict

import torch

from cpuinfer_helpers.interface.copies import shared_copy
from tests.conftest import make_bert


def test_what_is_added_to_a_copy_is_not_in_the_model():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3))
    model.seen = model[0].seen = OrderedDict()
    model.filled = OrderedDict(a=[1])
    new = shared_copy(model)
    new.register_forward_hook(lambda *_: None)
    new[0].seen["b"] = 2
    new.filled["a"].append(2)
    assert not model._forward_hooks and not model.seen and model.filled == {"a": [1]}
    assert new.seen is new[0].seen and list(new.seen) == ["b"]
    assert new[0].weight is model[0].weight


def test_a_hook_of_the_model_is_one_of_its_copy():
    model = make_bert()
    model.register_forward_pre_hook(lambda module, arguments: None)
    new = shared_copy(model)
    assert len(new._forward_pre_hooks) == 1 and new._forward_pre_hooks is not model._forward_pre_hooks
    assert [name for name, _ in new.named_modules()] == [name for name, _ in model.named_modules()]
    assert all(
        own is not other for (_, own), (_, other) in zip(new.named_modules(), model.named_modules(), strict=True)
    )
