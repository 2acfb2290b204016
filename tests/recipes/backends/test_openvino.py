"""OpenVINO: real conversions of small models, what ran, and what the process is left like."""

from __future__ import annotations

import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
import transformers

from cpuinfer_helpers.errors import RecipeError
from cpuinfer_helpers.machine.report import machine_report
from cpuinfer_helpers.machine.signal_stack import signal_stack
from cpuinfer_helpers.recipes import get_recipe, prepare
from cpuinfer_helpers.recipes.backends import openvino
from tests.conftest import make_bert, make_inputs
from tests.isa import needs_native_bf16
from tests.recipes.peers import LeavesOneOut, NoProduct, Rectifier, errors, features, nothing_changes

NAMES = ("openvino-fp32", "openvino-bf16", "openvino-int8")
PACKAGES = {"openvino-fp32": "openvino", "openvino-bf16": "openvino", "openvino-int8": "nncf"}
# FP32: rounding in another order. BF16 has 8 bits, INT8 activations 8 bits of their range; two layers of random
# weights add up to a few of those steps.
TOLERANCES = {"openvino-fp32": 1e-4, "openvino-bf16": 5e-2, "openvino-int8": 0.2}

ALL = [pytest.param(name, marks=needs_native_bf16) if name == "openvino-bf16" else name for name in NAMES]

pytestmark = pytest.mark.skipif(
    any(find_spec(package) is None for package in PACKAGES.values()), reason="OpenVINO or NNCF is not installed"
)


@pytest.fixture(scope="module")
def prepared():
    """Each recipe's small BERT, made once."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = prepare(name, make_bert(), make_inputs(), on_failure="raise")
        return made[name]

    return make


@pytest.mark.cpu
@pytest.mark.parametrize("name", ALL)
def test_it_gives_the_models_answers_on_shapes_it_was_not_made_with(name, prepared, bert):
    for batch, length, padding in ((1, 12, 0), (2, 5, 0), (5, 31, 7), (3, 64, 40)):
        assert errors(prepared(name), bert, make_inputs(batch, length, padding=padding)) <= TOLERANCES[name]


@pytest.mark.cpu
@pytest.mark.parametrize("name", ALL)
def test_it_is_a_drop_in_and_verified(name, prepared, bert, bert_inputs):
    output = prepared(name)(**bert_inputs)
    assert type(output) is type(bert(**bert_inputs))
    assert output.start_logits.dtype == torch.float32
    assert prepared(name).receipt.verified


@pytest.mark.parametrize("name", ALL)
def test_outputs_survive_the_next_call(name, prepared):
    first = prepared(name)(**make_inputs(seed=1)).start_logits
    kept = first.clone()
    prepared(name)(**make_inputs(seed=2))
    assert torch.equal(first, kept)


@pytest.mark.parametrize("name", ALL)
def test_inputs_of_another_integer_type_and_slices_are_taken(name, prepared):
    inputs = make_inputs(4)
    expected = prepared(name)(**{key: tensor[1:3].clone() for key, tensor in inputs.items()})
    other = prepared(name)(**{key: tensor.int()[1:3] for key, tensor in inputs.items()})
    columns = prepared(name)(**{key: tensor.t().contiguous().t()[1:3] for key, tensor in inputs.items()})
    assert torch.equal(other.start_logits, expected.start_logits)
    assert torch.equal(columns.start_logits, expected.start_logits)


@pytest.mark.cpu
def test_fp32_runs_in_fp32_alone(prepared):
    evidence = prepared("openvino-fp32").receipt.evidence
    assert "f32" in evidence["executed precisions"]
    assert "bf16" not in evidence["executed precisions"]
    assert evidence["matrix products"].startswith("f32")


@pytest.mark.cpu
@needs_native_bf16
def test_bf16_is_seen_in_the_matrix_products(prepared):
    assert prepared("openvino-bf16").receipt.evidence["matrix products"].startswith("bf16")


@pytest.mark.cpu
def test_int8_is_seen_in_the_matrix_products(prepared):
    products = prepared("openvino-int8").receipt.evidence["matrix products"]
    counts = Counter()
    for precision, count in re.findall(r"(\w+) \([^)]*\) (\d+)", products):
        counts[precision] += int(count)
    quantised, left = counts.pop("i8", 0) + counts.pop("u8", 0), "bf16" if machine_report().bf16_native else "f32"
    # All 13 linear layers. Products of attention may be left, in the fastest precision that this CPU has.
    assert quantised >= 13 and set(counts) <= {left} and counts[left] <= 4, products


@pytest.mark.parametrize(
    ("isa", "caps", "why_not"),
    [
        (("AVX2", "AVX512", "AVX512_BF16"), {}, None),
        (("AVX2", "AVX512"), {}, None),
        (("AVX2",), {}, "OpenVINO has no BF16 kernels for this CPU: they need AVX512"),
        (("AVX2", "AVX512"), {"OV_CPU_MAX_ISA": "AVX2"}, "under OV_CPU_MAX_ISA=AVX2: they need AVX512"),
        (("AVX2", "AVX512"), {"OV_CPU_MAX_ISA": "AVX512_CORE"}, None),
        (("AVX2", "AVX512"), {"ONEDNN_MAX_CPU_ISA": "AVX2"}, None),
    ],
)
def test_bf16_without_kernels_for_it_is_known_before_anything_is_converted(monkeypatch, isa, caps, why_not):
    machine = replace(machine_report(), architecture="x86_64", isa=isa, isa_caps=caps)
    monkeypatch.setattr(openvino, "machine_report", lambda: machine)
    seen = get_recipe("openvino-bf16").why_not
    assert seen is None if why_not is None else why_not in seen
    assert get_recipe("openvino-int8").can_run


def test_int8_is_calibrated_on_what_is_given(bert):
    example_alone = prepare("openvino-int8", bert, make_inputs(), verify=False)
    assert "example alone" in example_alone.receipt.evidence["calibration"]
    rows = [make_inputs(1, length, seed=length) for length in (5, 9, 20)]
    calibrated = prepare("openvino-int8", bert, make_inputs(), calibration=rows, verify=False, on_failure="raise")
    assert calibrated.receipt.evidence["calibration"] == "3 calibration inputs"
    inputs = make_inputs(seed=3)
    assert not torch.equal(calibrated(**inputs).start_logits, example_alone(**inputs).start_logits)


def test_int8_falls_back_where_nothing_can_be_quantised():
    result = prepare("openvino-int8", NoProduct().eval(), {"features": features()})
    assert not result.prepared
    assert "no matrix product runs in INT8" in result.reason


@pytest.mark.cpu
@needs_native_bf16
def test_bf16_falls_back_where_nothing_runs_in_it():
    result = prepare("openvino-bf16", NoProduct().eval(), {"features": features()})
    assert not result.prepared
    assert "no operation runs in BF16" in result.reason


@pytest.mark.parametrize("name", ALL)
def test_any_module_will_do(name):
    model = Rectifier().eval()
    # Static scales are only as wide as the example: enough rows that others stay within them.
    result = prepare(name, model, {"features": features(256)}, on_failure="raise")
    assert errors(result, model, {"features": features(9, seed=1)}) <= TOLERANCES[name]


def test_an_input_that_the_model_ignores():
    model = LeavesOneOut().eval()
    inputs = {"features": features(), "ignored": torch.ones(4, 2)}
    assert errors(prepare("openvino-fp32", model, inputs, on_failure="raise"), model, inputs) <= 1e-4


def test_nested_outputs_come_back_by_name(bert):
    inputs = {**make_inputs(), "output_hidden_states": True}
    result = prepare("openvino-fp32", bert, inputs, on_failure="raise")
    output = result(**make_inputs(3, 7))
    with torch.no_grad():
        wanted = bert(**make_inputs(3, 7), output_hidden_states=True)
    assert len(output.hidden_states) == 3
    torch.testing.assert_close(output.hidden_states[1], wanted.hidden_states[1], atol=1e-4, rtol=1e-4)


def test_attention_maps_where_they_are_asked_for(eager_bert):
    inputs = {**make_inputs(), "output_attentions": True}
    result = prepare("openvino-fp32", eager_bert, inputs, on_failure="raise")
    assert result.receipt.attention_implementation == "eager"
    assert len(result(**make_inputs()).attentions) == 2


@pytest.mark.parametrize("model_class", ["BioGptForSequenceClassification", "GPTNeoXForQuestionAnswering"])
def test_decoders_with_a_cache_and_padding_on_the_left(model_class):
    """SDPA of rows that may see nothing is NaN there, and a cache begins as a tensor without dimensions."""
    config_class = getattr(transformers, model_class).config_class
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
    config = config_class(**sizes, vocab_size=120, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(config).eval()
    inputs = {name: make_inputs()[name] for name in ("input_ids", "attention_mask")}
    prepared = prepare("openvino-fp32", model, inputs)
    assert prepared.prepared, prepared.reason
    assert any("padding on the left" in check.name and check.passed for check in prepared.receipt.checks)
    assert model.config.use_cache


def test_eager_attention_becomes_sdpa(eager_bert):
    result = prepare("openvino-fp32", eager_bert, make_inputs(), on_failure="raise")
    assert result.receipt.attention_implementation == "sdpa"


@pytest.mark.parametrize("name", ALL)
def test_model_and_process_are_left_as_they_were(name, new_bert, bert_inputs, capfd):
    model = new_bert(attention="eager")
    with nothing_changes(model):
        assert prepare(name, model, bert_inputs, verify=False).prepared
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err == ""


@pytest.mark.parametrize("name", NAMES)
def test_without_the_package_it_says_which(name, monkeypatch, bert, bert_inputs):
    real = importlib.metadata.version

    def version(package):
        if package == PACKAGES[name]:
            raise importlib.metadata.PackageNotFoundError(package)
        return real(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert f"{PACKAGES[name]} is not installed" in get_recipe(name).why_not
    with pytest.raises(RecipeError, match=f"{PACKAGES[name]} is not installed"):
        prepare(name, bert, bert_inputs, on_failure="raise")


def test_nothing_is_sent_and_nothing_is_written_home(tmp_path):
    """In a process of its own, where the libraries are imported for the first time."""
    program = """
import sys, time
sent, network = [], ("socket.connect", "socket.getaddrinfo")
sys.addaudithook(lambda event, arguments: sent.append(event) if event in network else None)
from cpuinfer_helpers.recipes import prepare
from tests.recipes.peers import Rectifier, features
result = prepare("openvino-int8", Rectifier().eval(), {"features": features()}, verify=False, on_failure="raise")
assert "openvino" in sys.modules and "nncf" in sys.modules
time.sleep(1)
print("sent", sent)
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout == "sent []\n"
    assert not (tmp_path / "intel").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="OpenVINO sets signal stacks on Linux only")
@pytest.mark.parametrize("name", ALL)
def test_the_stack_for_signals_is_left_as_it_was(name):
    """OpenVINO sets one of its own and frees it with a model, in any order; then Ctrl-C ended the process."""
    before = signal_stack()
    models = [prepare(name, make_bert(), make_inputs(), on_failure="raise") for _ in range(2)]
    assert signal_stack() == before
    models.pop(0)
    models.pop()
    assert signal_stack() == before


@pytest.mark.apart
def test_an_interrupt_after_models_are_gone_is_an_interrupt():
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    models = [prepare("openvino-fp32", make_bert(), make_inputs(), on_failure="raise") for _ in range(2)]
    models.pop(0)
    models.pop()
    try:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
    finally:
        signal.signal(signal.SIGINT, handler)
