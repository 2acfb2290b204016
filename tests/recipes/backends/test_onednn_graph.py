from __future__ import annotations

import logging
from contextlib import contextmanager

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.interface.inputs import bind_inputs
from cpuinfer_helpers.machine import switches
from cpuinfer_helpers.recipes import Request, get_recipe
from cpuinfer_helpers.recipes.backends import onednn_graph
from cpuinfer_helpers.recipes.base import Stored
from tests.conftest import make_inputs
from tests.isa import needs_bf16_kernels

pytestmark = pytest.mark.cpu
NAMES = [
    "onednn-graph-fp32",
    pytest.param("onednn-graph-bf16", marks=needs_bf16_kernels),
]
# FP32: the same products summed in another order. BF16: 8 bits of each of the few products in a row.
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}


@pytest.fixture(scope="module", params=NAMES)
def prepared(request, bert):
    return cpu.prepare(request.param, bert, _inputs(2, 12), on_failure="raise")


def _inputs(batch, length, padding=0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 120, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    if padding:
        mask[1:, -padding:] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def _error(prepared, model, inputs):
    with torch.no_grad():
        expected = model(**inputs)
    seen = prepared(**inputs)
    valid = inputs["attention_mask"].bool()
    return max((seen[name] - expected[name])[valid].abs().max().item() for name in ("start_logits", "end_logits"))


@pytest.mark.parametrize(("batch", "length", "padding"), [(1, 1, 0), (1, 16, 0), (3, 17, 4), (2, 33, 0), (5, 64, 20)])
def test_any_shape_gives_the_models_answers_in_the_models_shape(prepared, bert, batch, length, padding):
    inputs = _inputs(batch, length, padding, seed=length)

    for _ in range(4):
        assert prepared(**inputs).start_logits.shape == (batch, length)
        assert _error(prepared, bert, inputs) < TOLERANCE[prepared.recipe.rpartition("-")[2]]


def test_the_receipt_tells_what_was_packed_and_fused(prepared):
    receipt = prepared.receipt
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[prepared.recipe.rpartition("-")[2]]

    # Two layers with four products each: queries, keys and values in one; output; GELU; the second addition.
    assert receipt.evidence["linear layers"] == "8 packed, 2 of them several in one, 2 with GELU, 4 with addition"
    assert receipt.linear_dtypes[dtype] >= 8
    assert list(receipt.weight_dtypes) == [dtype]
    assert int(receipt.evidence["oneDNN Graph partitions"]) >= 2
    assert receipt.attention_implementation == "eager"
    assert receipt.verified


def test_global_switches_and_the_model_are_left_as_they_were(bert):
    before = {name: (tensor.dtype, tensor.data_ptr()) for name, tensor in bert.state_dict().items()}
    autocast = torch._C._jit_set_autocast_mode(True)
    try:
        for name in ("onednn-graph-fp32", "onednn-graph-bf16"):
            cpu.prepare(name, bert, _inputs(2, 12), verify=False)(**_inputs(1, 9))
        assert not torch.jit.onednn_fusion_enabled()
        assert torch._C._jit_set_autocast_mode(True) is True
    finally:
        torch._C._jit_set_autocast_mode(autocast)

    assert {name: (tensor.dtype, tensor.data_ptr()) for name, tensor in bert.state_dict().items()} == before


def test_shapes_share_one_copy_of_the_weights(bert, monkeypatch):
    packed = []
    pack = torch.ops.mkldnn._reorder_linear_weight

    def counted(weight, batch):
        packed.append(weight.shape)
        return pack(weight, batch)

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", counted)
    prepared = cpu.prepare("onednn-graph-fp32", bert, _inputs(2, 12), verify=False, on_failure="raise")
    for length in (5, 20, 40):
        prepared(**_inputs(1, length))

    assert len(packed) == 8


def test_no_more_shapes_are_kept_than_allowed(bert, monkeypatch):
    monkeypatch.setattr(onednn_graph, "_SHAPES_KEPT", 2)
    prepared = cpu.prepare("onednn-graph-fp32", bert, _inputs(2, 12), verify=False, on_failure="raise")

    for batch in (1, 3, 4, 5, 1):
        assert _error(prepared, bert, _inputs(batch, 12)) < 1e-5
    assert len(prepared.build.answer.answer._functions) == 2


def test_a_shape_is_compiled_only_if_it_comes_again(bert):
    prepared = cpu.prepare("onednn-graph-fp32", bert, _inputs(2, 12), verify=False, on_failure="raise")
    functions = prepared.build.answer.answer._functions
    for call in range(1, 6):
        assert _error(prepared, bert, _inputs(3, 20)) < 1e-5
        latest = list(functions.values())[-1]
        assert (latest is None) == (call == 1)


def test_an_addition_that_broadcasts_is_not_fused():
    class Broadcasting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)

        def forward(self, features, offset):
            return self.second(self.first(features) + offset)

    torch.manual_seed(0)
    model = Broadcasting().eval()
    inputs = {"features": torch.randn(4, 6, 32), "offset": torch.randn(4, 1, 32)}
    prepared = cpu.prepare("onednn-graph-fp32", model, inputs, on_failure="raise")

    assert prepared.receipt.evidence["linear layers"].endswith("0 with addition")
    torch.testing.assert_close(prepared(**inputs), model(**inputs), atol=1e-5, rtol=0)


def test_weights_used_twice_and_models_without_a_mask_work():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(32, 32, bias=False)

        def forward(self, features):
            once = self.layer(features)
            return {"once": once, "sum": self.layer(torch.nn.functional.gelu(once, approximate="tanh")) + once}

    torch.manual_seed(0)
    model = Twice().eval()
    prepared = cpu.prepare("onednn-graph-fp32", model, {"features": torch.randn(3, 32)}, on_failure="raise")

    for rows in (1, 3, 8):
        features = torch.randn(rows, 32)
        torch.testing.assert_close(prepared(features=features), model(features), atol=1e-5, rtol=0)


def test_a_cpu_without_bf16_kernels_is_told_so(monkeypatch, bert, caplog):
    monkeypatch.setattr(onednn_graph.torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    prepared = cpu.prepare("onednn-graph-bf16", bert, _inputs(2, 12))

    assert not prepared.prepared
    assert "BF16" in prepared.reason
    assert "BF16" in caplog.text


def test_another_thread_gets_the_same_answers(prepared, bert):
    from concurrent.futures import ThreadPoolExecutor

    inputs = _inputs(2, 21, 3)
    with ThreadPoolExecutor(1) as pool:
        errors = [pool.submit(_error, prepared, bert, inputs).result() for _ in range(4)]

    assert max(errors) < TOLERANCE[prepared.recipe.rpartition("-")[2]]


def test_a_call_does_not_wait_until_another_thread_has_prepared_its_model(bert, bert_inputs) -> None:
    import threading

    from cpuinfer_helpers.machine import switches

    prepared = cpu.prepare("onednn-graph-fp32", bert, bert_inputs)
    entered, leave, answers = threading.Event(), threading.Event(), []

    def hold() -> None:
        with switches.held():
            entered.set()
            leave.wait(60)

    holding = threading.Thread(target=hold)
    holding.start()
    assert entered.wait(10)
    inputs = make_inputs(3, 29)
    calling = threading.Thread(target=lambda: answers.extend(prepared(**inputs).start_logits for _ in range(4)))
    calling.start()
    calling.join(30)
    leave.set()
    holding.join()
    with torch.no_grad():
        expected = bert(**inputs).start_logits
    assert len(answers) == 4
    for answer in answers:
        # The same products in another order, on answers below one.
        torch.testing.assert_close(answer, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [3, 5, 7])
def test_an_example_of_few_tokens_is_no_worse_than_a_long_one(bert, length) -> None:
    prepared = cpu.prepare("onednn-graph-fp32", bert, make_inputs(2, length))
    assert prepared.prepared, prepared.reason
    for other in (2, length, 9, 30):
        inputs = make_inputs(3, other)
        with torch.no_grad():
            expected = bert(**inputs).start_logits
        torch.testing.assert_close(prepared(**inputs).start_logits, expected, atol=1e-5, rtol=0)


@contextmanager
def _refused(error):
    """As if oneDNN Graph could make nothing of what is called inside."""
    raise error
    yield


@pytest.mark.parametrize("error", [RuntimeError("partition compile failed"), IndexError("vector::_M_range_check")])
def test_what_onednn_graph_cannot_compile_runs_without_it_and_says_so(bert, monkeypatch, error):
    fusion = switches.onednn_fusion
    monkeypatch.setattr(onednn_graph.switches, "onednn_fusion", lambda **_: _refused(error))
    prepared = cpu.prepare("onednn-graph-fp32", bert, _inputs(2, 12))
    monkeypatch.setattr(onednn_graph.switches, "onednn_fusion", fusion)

    assert prepared.prepared and prepared.receipt.verified
    assert prepared.receipt.evidence["linear layers"].startswith("8 packed")
    assert prepared.receipt.evidence["oneDNN Graph partitions"] == f"0: oneDNN Graph fails: {_text(error)}"
    assert "prim::oneDNNFusionGroup" not in prepared.receipt.graph_nodes
    for length in (7, 12, 7, 12, 7, 12):
        assert _error(prepared, bert, _inputs(2, length)) < 1e-5


def _text(error):
    return f"{type(error).__name__}: {error}"


def test_a_shape_that_onednn_graph_cannot_compile_runs_as_it_is(bert, monkeypatch, caplog):
    prepared = cpu.prepare("onednn-graph-fp32", bert, _inputs(2, 12), verify=False, on_failure="raise")
    error = RuntimeError("could not add op to the graph")
    monkeypatch.setattr(onednn_graph.switches, "onednn_fusion", lambda **_: _refused(error))
    with caplog.at_level(logging.INFO, "cpuinfer_helpers"):
        for _ in range(5):
            assert _error(prepared, bert, _inputs(3, 20)) < 1e-5
    assert caplog.text.count("could not add op to the graph") == 1


def test_a_shape_whose_plan_gives_other_answers_runs_as_it_is(bert, monkeypatch):
    prepared = cpu.prepare("onednn-graph-fp32", bert, _inputs(2, 12), verify=False, on_failure="raise")
    per_shape = prepared.build.answer.answer
    wrong = per_shape._new_function

    def off_by_a_percent():
        function = wrong()
        return lambda *tensors: {name: tensor * 1.01 for name, tensor in function(*tensors).items()}

    monkeypatch.setattr(per_shape, "_new_function", off_by_a_percent)
    for _ in range(6):
        assert _error(prepared, bert, _inputs(3, 20)) < 1e-5
    assert len(per_shape._refused) == 1


def test_inputs_that_the_model_refuses_change_no_plan(bert):
    prepared = cpu.prepare("onednn-graph-fp32", bert, _inputs(2, 12), verify=False, on_failure="raise")
    wrong = _inputs(3, 16)
    wrong["input_ids"] = wrong["input_ids"] + 10_000
    for _ in range(3):
        with pytest.raises((IndexError, RuntimeError), match="index out of range"):
            prepared(**wrong)
    assert not prepared.build.answer.answer._refused


def test_a_model_that_pools_over_padding_is_not_padded_to_buckets():
    class Pools(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embeddings, self.linear = torch.nn.Embedding(200, 32), torch.nn.Linear(32, 16)

        def forward(self, input_ids, attention_mask):
            return self.linear(self.embeddings(input_ids)).mean(dim=1) * attention_mask[:, :1]

    torch.manual_seed(0)
    model, inputs = Pools().eval(), _inputs(2, 12)
    del inputs["token_type_ids"]
    prepared = cpu.prepare("onednn-graph-fp32", model, inputs, verify=False, on_failure="raise")
    torch.testing.assert_close(prepared(**inputs), model(**inputs), atol=1e-5, rtol=0)


def test_the_way_without_fusions_is_saved_and_loaded(bert, monkeypatch, tmp_path):
    fusion = switches.onednn_fusion
    refused = RuntimeError("partition compile failed")
    monkeypatch.setattr(onednn_graph.switches, "onednn_fusion", lambda **_: _refused(refused))
    request = Request("onednn-graph-fp32", "fp32", bert, bind_inputs(bert, _inputs(2, 12)))
    recipe = get_recipe("onednn-graph-fp32")
    with torch.no_grad():
        build = recipe.build(request)
        details = recipe.export(request, build, tmp_path)
    monkeypatch.setattr(onednn_graph.switches, "onednn_fusion", fusion)
    restored = recipe.restore(Stored(request.inputs, ("start_logits", "end_logits"), details), tmp_path)

    assert details["fused"] is False and not restored.answer.answer.way.fused
    with torch.no_grad():
        expected = bert(**_inputs(2, 12)).start_logits
        torch.testing.assert_close(restored.answer(_inputs(2, 12))["start_logits"], expected, atol=1e-5, rtol=0)
