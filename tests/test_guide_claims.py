"""One test for each thing that the guide says, on small real models; docs/results.md has the list.

That a traced program runs where there is no Python is in test_cpp.py, which compiles the program once for all tests.

Claims about speed are measured in the notebooks and reported, not asserted: a test that depends on timing is no test.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.course.examples import PATTERN_EXAMPLES
from cpuinfer_helpers.course.prove import Proof, prove_patterns
from tests.isa import NO_AVX512_LOOPS, NO_BF16_KERNELS, NO_BF16_KERNELS_IN_IPEX


def tokenizer_order(inputs):
    """BERT's tokenizer names the segments before the mask; its forward takes the mask before the segments."""
    return {name: inputs[name] for name in ("input_ids", "token_type_ids", "attention_mask")}


def small_model(kind):
    """A text, image or audio model with random weights, and inputs for it."""
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    convolutions = {"conv_dim": (16,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    ids, waves = torch.arange(5, 29).view(2, 12), torch.linspace(-1, 1, 8000).view(2, 4000).sin()
    made = {
        "text": (transformers.BertModel(transformers.BertConfig(**sizes)), {"input_ids": ids}),
        "image": (
            transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=32)),
            {"pixel_values": torch.linspace(-1, 1, 6144).view(2, 3, 32, 32)},
        ),
        "audio": (
            transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**sizes, **convolutions)),
            {"input_values": waves},
        ),
    }
    model, inputs = made[kind]
    return model.eval(), inputs


@pytest.mark.parametrize("kind", ["text", "image", "audio"])
def test_bettertransformer_takes_text_image_and_audio_models(kind):
    torch.manual_seed(0)
    model, inputs = small_model(kind)
    prepared = cpu.prepare("bettertransformer-fp32", model, inputs, on_failure="raise")
    assert prepared.receipt.verified
    assert cpu.fast_path_use(prepared, inputs).layers == 2
    expected = model(**inputs).last_hidden_state.detach()
    torch.testing.assert_close(prepared(**inputs).last_hidden_state, expected, rtol=0, atol=1e-5)


def test_torchscript_is_serializable_from_a_python_process(bert, bert_inputs, tmp_path):
    traced = cpu.trace_model(bert, bert_inputs)
    traced.save(tmp_path / "saved")
    script = (
        "import sys, torch, cpuinfer_helpers as cpu; traced = cpu.TracedModel.load(sys.argv[1]); "
        "print(isinstance(traced.module, torch.jit.ScriptModule), 'transformers.models.bert' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "saved")]
    folder = Path(cpu.__file__).parents[1]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    # A ScriptModule it is, and the model's own Python code was not needed to load it.
    assert result.stdout.split() == ["True", "False"]


def test_dict_inputs_are_supported_in_jit_trace_so_order_does_not_matter(bert, bert_inputs):
    for inputs in (bert_inputs, tokenizer_order(bert_inputs), dict(reversed(bert_inputs.items()))):
        traced = cpu.trace_model(bert, inputs)
        assert traced.traced and traced.receipt.verified


def test_tuple_inputs_work_where_the_order_matches_the_forward_parameters(bert, bert_inputs):
    traced = cpu.trace_model(bert, bert_inputs, input_style="tuple")
    assert traced.traced and traced.receipt.verified


def test_tuple_inputs_with_labels_first_fail_in_jit_trace(new_bert, bert_inputs):
    """The guide's example: a text classification batch, whose order does not match."""
    model = new_bert("BertForSequenceClassification")
    batch = (torch.zeros(2, dtype=torch.long), bert_inputs["input_ids"], bert_inputs["attention_mask"])
    with pytest.raises((RuntimeError, ValueError, IndexError, TypeError)):
        torch.jit.trace(model, batch, strict=False)


def test_the_failure_is_caught_falls_back_and_is_logged(new_bert, bert_inputs, caplog):
    model = new_bert("BertForSequenceClassification")
    batch = {"labels": torch.zeros(2, dtype=torch.long), **bert_inputs}
    answered = cpu.trace_model(model, batch, input_style="tuple")
    assert not answered.traced
    assert "'labels'" in answered.reason and answered.reason in caplog.text
    torch.testing.assert_close(answered(**bert_inputs).logits, model(**bert_inputs).logits.detach())


def test_the_guide_does_not_say_that_a_wrong_order_can_also_be_silent(bert, bert_inputs):
    """A question answering batch in the tokenizer's order: plain jit.trace takes it, and segments become the mask."""
    inputs = tokenizer_order(bert_inputs)
    with torch.no_grad():
        traced = torch.jit.trace(bert, tuple(inputs.values()), strict=False)
        silent = traced(*inputs.values())["start_logits"]
        assert torch.allclose(silent, bert(*inputs.values()).start_logits, atol=1e-5)
        assert not torch.allclose(silent, bert(**inputs).start_logits, atol=1e-3)
    assert not cpu.trace_model(bert, inputs, input_style="tuple").traced


# What the guide says of IPEX: five fusions, in FP32 and in BF16. IPEX changes the process, so each runs in a child. It
# does not say which CPUs have the kernels: BF16's, and for two of the patterns AVX512.
NO_IPEX = cpu.get_recipe("ipex-fp32").why_not
needs_ipex = pytest.mark.skipif(NO_IPEX is not None, reason=str(NO_IPEX))
ONEDNN_GRAPH = "oneDNN Graph partition"
FIVE_PATTERNS = ("multi-head attention", "concat linear", "linear+add", "linear+gelu", "add+layernorm")
WRITTEN_FOR_AVX512 = ("multi-head attention", "add+layernorm")


@pytest.fixture(scope="module")
def all_proofs():
    return prove_patterns()


@pytest.fixture(scope="module")
def proofs(all_proofs) -> dict[tuple[str, str], Proof]:
    return {(proof.pattern, proof.precision): proof for proof in all_proofs.proofs}


@pytest.mark.cpu
def test_every_pattern_is_tried_at_each_precision_and_not_in_this_process(all_proofs, proofs):
    assert set(proofs) == {(name, precision) for name in PATTERN_EXAMPLES for precision in ("fp32", "bf16")}
    assert len(all_proofs.table().rows) == len(proofs) == 12
    assert "intel_extension_for_pytorch" not in sys.modules


@pytest.mark.cpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("pattern", FIVE_PATTERNS)
def test_ipex_fuses_each_of_the_five_patterns(proofs, pattern, precision):
    proof = proofs[pattern, precision]
    if find_spec("intel_extension_for_pytorch") is None:
        assert (proof.proven, proof.why_not) == (False, "IPEX is not installed; it needs torch 2.8")
    elif precision == "bf16" and NO_BF16_KERNELS_IN_IPEX:
        assert (proof.proven, proof.why_not) == (False, NO_BF16_KERNELS_IN_IPEX)
    elif pattern in WRITTEN_FOR_AVX512 and NO_AVX512_LOOPS:
        assert not proof.proven and proof.report[pattern].found == 1
        assert proof.why_not.startswith(f"the fast kernel needs AVX512: {NO_AVX512_LOOPS}")
        assert not any(proof.report.counts.values())
    else:
        assert proof.proven and proof.why_not == "", proof.why_not
        assert {name: count for name, count in proof.report.counts.items() if count} == {pattern: 1}
        assert sum(proof.report[pattern].events.values()) > 0


@pytest.mark.cpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stock_pytorch_has_onednn_graph_instead(proofs, precision):
    proof = proofs[ONEDNN_GRAPH, precision]
    if precision == "bf16" and NO_BF16_KERNELS:
        assert (proof.proven, proof.why_not) == (False, NO_BF16_KERNELS)
        return
    assert proof.proven, proof.why_not
    assert proof.report[ONEDNN_GRAPH].nodes == {"prim::oneDNNFusionGroup": 2}


@pytest.fixture(scope="module")
def comparison(bert):
    recipes = ["ipex-fp32", "ipex-bf16", "onednn-graph-fp32", "onednn-graph-bf16"]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 120, (2, 16), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    return cpu.compare(bert, inputs, recipes, budget_s=0.2, measure_roofline=False)


@pytest.mark.cpu
@needs_ipex
@pytest.mark.parametrize(("recipe", "dtype"), [("ipex-fp32", "float32"), ("ipex-bf16", "bfloat16")])
def test_ipex_runs_a_whole_model_in_fp32_and_in_bf16(comparison, recipe, dtype):
    row = comparison.rows[recipe]
    if recipe == "ipex-bf16" and NO_BF16_KERNELS_IN_IPEX:
        assert str(row.status) == f"lacks: {NO_BF16_KERNELS_IN_IPEX}"
        return
    assert row.successful, row.status
    assert row.receipt.verified
    # 12 linear layers and the head; IPEX makes one of queries, keys and values.
    assert max(row.receipt.linear_dtypes, key=row.receipt.linear_dtypes.get) == dtype


@pytest.mark.cpu
@pytest.mark.parametrize(("recipe", "dtype"), [("onednn-graph-fp32", "float32"), ("onednn-graph-bf16", "bfloat16")])
def test_stock_pytorch_runs_a_whole_model_in_fp32_and_in_bf16(comparison, recipe, dtype):
    row = comparison.rows[recipe]
    if recipe == "onednn-graph-bf16" and NO_BF16_KERNELS:
        assert str(row.status) == f"lacks: {NO_BF16_KERNELS}"
        return
    assert row.successful, row.status
    assert row.receipt.verified
    assert row.receipt.linear_dtypes[dtype] >= 8


# What the guide says of the Trainer: two flags, and two commands.


def trainer_rows(count=4):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 120, (count, 16), generator=generator).tolist()
    return [{"input_ids": row, "attention_mask": [1] * 16, "token_type_ids": [0] * 8 + [1] * 8} for row in ids]


class Untraceable(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, token_type_ids):
        if torch.jit.is_tracing():
            raise ValueError("nothing to trace here")
        return self.model(input_ids, attention_mask, token_type_ids)


def test_the_trainer_evaluates_with_a_trace_if_asked_to(new_bert, new_trainer):
    trainer = new_trainer(new_bert(), jit_mode_eval=True)
    metrics = trainer.predict(trainer_rows()).metrics
    assert metrics["test_jit_traced"] is True and trainer.jit_receipt.verified
    assert trainer.jit_receipt.graph_nodes


def test_the_trainer_falls_back_to_the_eager_model_and_logs_it(new_bert, new_trainer, caplog):
    trainer = new_trainer(Untraceable(new_bert()).eval(), jit_mode_eval=True)
    metrics = trainer.predict(trainer_rows()).metrics
    assert metrics["test_jit_traced"] is False and "nothing to trace here" in metrics["test_jit_reason"]
    assert "nothing to trace here" in caplog.text


def test_the_guide_does_not_say_which_versions_of_transformers_have_the_flags(new_bert, new_args, tmp_path):
    import transformers

    stock = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True)
    has_flag = hasattr(stock, "jit_mode_eval")
    stock.jit_mode_eval = True
    for model, expected in ((new_bert(), "done"), (Untraceable(new_bert()).eval(), "fell back")):
        trainer = transformers.Trainer(model=model, args=stock)
        verdict = cpu.verify_trainer(trainer, trainer_rows())
        assert verdict.jit_mode_eval == (expected if has_flag else "ignored")


@pytest.mark.parametrize("flags", ["--jit_mode_eval", "--use_ipex --jit_mode_eval"])
def test_the_guides_two_commands(flags, tmp_path):
    from cpuinfer_helpers.tasks.data_files import DATA
    from cpuinfer_helpers.tasks.loading import checkpoint_directory

    words = (
        f"--do_eval --max_seq_length 384 --doc_stride 128 --no_cuda {flags} --max_eval_samples 8 "
        "--disable_tqdm true --report_to none"
    ).split()
    model, data = str(checkpoint_directory("question-answering")), str(DATA / "question-answering-heldout.json")
    given = ["--model_name_or_path", model, "--validation_file", data, "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "cpuinfer_helpers.run_qa", *given, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(cpu.__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert results["eval_jit_traced"] is True and results["eval_f1"] > 30
    wanted = "ipex-fp32" if "ipex" in flags and NO_IPEX is None else "onednn-graph-fp32"
    assert results["eval_jit_recipe"] == wanted
    assert ("eval_jit_reason" in results) == ("ipex" in flags and NO_IPEX is not None)
    assert "questions per second" in done.stdout
