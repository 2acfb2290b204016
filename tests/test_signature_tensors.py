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
    with pytest.raises(cpu.InputError, match=told):
        CALLS[call](torch.nn.Linear(4, 2).eval(), {"input": value})
