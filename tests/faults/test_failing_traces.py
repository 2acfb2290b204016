"""A trace that fails at another shape is an exception, never the end of the process."""

from __future__ import annotations

import textwrap

import pytest
import transformers

from tests.conftest import seen_in_child
from tests.faults.crashing_graphs import ATTENTION, BROADCAST

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


@pytest.mark.cpu
@pytest.mark.parametrize("names", [tuple(BROADCAST), tuple(map(str, range(len(ATTENTION))))], ids=["sums", "attention"])
def test_what_onednn_graph_compiles_wrongly_does_not_end_the_process(names) -> None:
    seen = seen_in_child("-m", "tests.faults.crashing_graphs", *names, OMP_NUM_THREADS="1")
    assert seen.keys() == set(names)
    for name, (reason, error, partitions) in seen.items():
        # The answers are of the size of 1 to 10; FP32 kernels add in another order.
        assert reason is None and error < 1e-4, (name, reason, error)
        # What is left is fused all the same.
        assert int(partitions) >= 1, (name, partitions)
