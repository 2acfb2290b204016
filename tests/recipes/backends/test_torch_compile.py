"""torch.compile: real compilations of small models, how many graphs they take, and what the process is left like."""

from __future__ import annotations

import sysconfig

import pytest
import torch

from cpuinfer_helpers.machine.report import detect_isa
from cpuinfer_helpers.recipes import get_recipe, prepare
from tests.conftest import make_bert, make_inputs, seen_in_child
from tests.recipes.peers import Rectifier, errors, features, nothing_changes

NAMES = ("compile-fp32", "compile-bf16")
# FP32: rounding in another order. BF16 has 8 bits; two layers of random weights add up to a few of those steps.
TOLERANCES = {"compile-fp32": 1e-4, "compile-bf16": 5e-2}
# One layer: compiling takes seconds for each.
SMALL = {"num_hidden_layers": 1}

can_compile = pytest.mark.skipif(bool(get_recipe("compile-fp32").why_not), reason="no C++ compiler or no headers")


@pytest.fixture(scope="module")
def prepared():
    """Each recipe's small BERT, made once, with what making it has left behind."""
    made = {}

    def make(name):
        if name not in made:
            model = make_bert(**SMALL)
            with nothing_changes(model):
                result = prepare(name, model, make_inputs(), verify=False, on_failure="raise")
            made[name] = (result, model)
        return made[name]

    return make


def graphs() -> int:
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


@can_compile
@pytest.mark.parametrize("name", NAMES)
def test_one_graph_answers_every_shape(name, prepared):
    result, model = prepared(name)
    before = graphs()
    for batch, length, padding in ((1, 12, 0), (2, 5, 0), (5, 31, 7), (3, 64, 40), (1, 17, 0), (1, 64, 0), (8, 40, 9)):
        assert errors(result, model, make_inputs(batch, length, padding=padding)) <= TOLERANCES[name]
    rows = make_inputs(7)
    assert errors(result, model, {key: tensor[2:5] for key, tensor in rows.items()}) <= TOLERANCES[name]
    assert errors(result, model, {key: tensor[2:3] for key, tensor in rows.items()}) <= TOLERANCES[name]
    assert graphs() == before


@can_compile
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_the_callers_mode_takes_no_other_graph(mode, prepared):
    result, model = prepared("compile-fp32")
    before = graphs()
    with mode():
        inputs = make_inputs(3, 9)
        given = result(**inputs).start_logits
    with torch.no_grad():
        assert (given - model(**inputs).start_logits).abs().max() <= TOLERANCES["compile-fp32"]
    assert graphs() == before


@can_compile
def test_models_of_one_class_do_not_use_up_each_others_graphs():
    # As many as each of them needs.
    with torch._dynamo.config.patch(cache_size_limit=2):
        kept = [
            prepare("compile-fp32", Rectifier().eval(), {"features": features()}, verify=False, on_failure="raise")
            for _ in range(2)
        ]
    assert [one.receipt.evidence["graphs compiled"] for one in kept] == ["2", "2"]


ANSWER = """
from cpuinfer_helpers.recipes import prepare
from tests.recipes.peers import Rectifier, errors, features

model = Rectifier().eval()
prepared = prepare("compile-fp32", model, {"features": features()}, verify=False, on_failure="raise")
print("SEEN", errors(prepared, model, {"features": features(5)}))
"""


@can_compile
@pytest.mark.skipif("AVX512" not in detect_isa(), reason="needs AVX512, to be held back in the second process")
def test_what_was_compiled_for_other_instructions_is_not_run_from_the_cache(tmp_path):
    for level in ("avx512", "avx2"):
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "ATEN_CPU_CAPABILITY": level}
        assert seen_in_child("-c", ANSWER, **cache) <= TOLERANCES["compile-fp32"], level


@can_compile
@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_drop_in_whose_outputs_survive(name, prepared, bert_inputs):
    result, model = prepared(name)
    output = result(**bert_inputs)
    assert type(output) is type(model(**bert_inputs))
    assert output.start_logits.dtype == torch.float32
    kept = output.start_logits.clone()
    result(**make_inputs(seed=2))
    assert torch.equal(output.start_logits, kept)


@can_compile
@pytest.mark.parametrize("name", NAMES)
def test_the_receipt_says_what_was_compiled_and_frozen(name, prepared):
    receipt = prepared(name)[0].receipt
    assert receipt.frozen
    assert receipt.evidence["graphs compiled"] == receipt.evidence["graphs frozen"] == "2"
    assert receipt.evidence["graph breaks"] == "0"


@can_compile
def test_bf16_really_computes_in_bf16(prepared, bert_inputs):
    result, model = prepared("compile-bf16")
    # FP32 would be a thousand times nearer.
    assert errors(result, model, bert_inputs) > 1e-4


@can_compile
def test_any_module_will_do_and_is_verified():
    model = Rectifier().eval()
    result = prepare("compile-fp32", model, {"features": features()}, on_failure="raise")
    assert result.receipt.verified
    assert errors(result, model, {"features": features(9, seed=1)}) <= 1e-4


@can_compile
def test_what_cannot_be_compiled_falls_back(caplog):
    class Skipped(torch.nn.Module):
        @torch._dynamo.disable
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return features * 2

    result = prepare("compile-fp32", Skipped().eval(), {"features": features()})
    assert not result.prepared
    assert "made no graph" in result.reason
    assert torch.equal(result(features=features()), features() * 2)


def test_without_a_compiler_it_says_so(monkeypatch):
    monkeypatch.setenv("CXX", "no such compiler")
    assert "no C++ compiler was found" in get_recipe("compile-fp32").why_not


def test_without_pythons_headers_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setattr("cpuinfer_helpers.recipes.backends.torch_compile.find_compiler", lambda: "/usr/bin/c++")
    assert "headers are not installed" in get_recipe("compile-bf16").why_not
