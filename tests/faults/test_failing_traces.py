"""A trace that fails at another shape is an exception, never the end of the process."""

from __future__ import annotations

import textwrap

import pytest
import transformers

from cpuinfer_helpers.recipes import get_recipe
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
@pytest.mark.parametrize("recipe", ["onednn-graph-fp32", "onednn-graph-bf16"])
@pytest.mark.parametrize("names", [tuple(BROADCAST), tuple(map(str, range(len(ATTENTION))))], ids=["sums", "attention"])
def test_what_onednn_graph_compiles_wrongly_does_not_end_the_process(recipe, names) -> None:
    if not get_recipe(recipe).can_run:
        pytest.skip(get_recipe(recipe).why_not)
    seen = seen_in_child("-m", "tests.faults.crashing_graphs", recipe, *names, OMP_NUM_THREADS="1")
    assert seen.keys() == set(names)
    for name, (reason, error, partitions) in seen.items():
        # FP32 kernels add in another order; BF16 has 8 bits, which each of three operations may round.
        assert reason is None and error < (3e-2 if recipe.endswith("bf16") else 1e-5), (name, reason, error)
        # What is left is fused all the same.
        assert int(partitions) >= 1, (name, partitions)
