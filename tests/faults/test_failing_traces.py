"""A trace that fails at another shape is an exception, never the end of the process."""

from __future__ import annotations

import textwrap

import pytest
import transformers

from tests.conftest import seen_in_child

# Goes through its tokens one by one, so that each shape needs a trace of its own; the first fails on fewer tokens.
RWKV = """
import json, torch, cpuinfer_helpers as cpu
from transformers import RwkvConfig, RwkvForCausalLM
torch.manual_seed(0)
model = RwkvForCausalLM(RwkvConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, context_length=256)).eval()
model.config.use_cache = False
ids = torch.randint(3, 99, (2, 24))
inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
traced = cpu.trace_model(model, inputs, each_shape=True)
shapes = [(1, 9), (3, 8)]
for rows, length in shapes:
    traced(**{name: tensor[:1].repeat(rows, 1)[:, :length] for name, tensor in inputs.items()})
print("SEEN", json.dumps([traced.traced, len(traced.shapes)]))
"""


@pytest.mark.skipif(not hasattr(transformers, "RwkvForCausalLM"), reason="this version of transformers has no RWKV")
def test_a_trace_that_fails_inside_its_submodules_does_not_end_the_process() -> None:
    assert seen_in_child("-c", textwrap.dedent(RWKV), OMP_NUM_THREADS="1") == [True, 3]
