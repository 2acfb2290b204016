"""What ``prepare_generator`` makes writes what the model writes, in every way that transformers writes."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import weakref
from typing import Any

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.generation.linears import linear_layers
from cpuinfer_helpers.generation.registry import generation_recipe
from cpuinfer_helpers.generation.sensitivity import Sensitivity
from tests.generation.models import ARCHITECTURES, make_language_model, make_prompts

# The bfloat16 of this is as right where it is emulated.
RECIPES = ("eager-fp32", "eager-bf16", "torchscript-fp32", "torchscript-fp16w", "torchscript-bf16", "torchscript-int8")
# Their code in transformers 4 wants a cache of its own kind, or makes the mask from something else than ours.
REFUSED = {"4": {"gemma2": "eager-", "bloom": "torchscript-"}, "5": {"bloom": "torchscript-"}}

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"do_sample": True, "top_k": 20},
    "beams": {"num_beams": 3},
    "several of each": {"num_beams": 2, "num_return_sequences": 2},
    "penalised": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
}


def write(model: Any, prompts: dict[str, torch.Tensor], **settings: Any) -> torch.Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model.generate(**prompts, **{"max_new_tokens": 8, "do_sample": False, **settings})


def refused_here(name: str, recipe: str) -> bool:
    import transformers

    beginnings = REFUSED[transformers.__version__[0]]
    return name in beginnings and (recipe.startswith(beginnings[name]) or beginnings[name] == "eager-")


@pytest.mark.parametrize("recipe", ["eager-fp32", "torchscript-fp32"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_writes_the_same_tokens_or_says_why_it_cannot(name, recipe):
    model, prompts = make_language_model(name), make_prompts()
    generator = cpu.prepare_generator(recipe, model, prompts)
    assert generator.prepared is not refused_here(name, recipe), str(generator)
    for settings in WAYS.values():
        assert torch.equal(write(model, prompts, **settings), write(generator, prompts, **settings))


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe_is_verified_and_says_what_it_is(recipe):
    generator = cpu.prepare_generator(recipe, make_language_model("gpt2"), make_prompts())
    assert generator.prepared and generator.receipt.verified, str(generator)
    weights = {"fp32": "float32", "fp16w": "fp16", "bf16": "bfloat16", "int8": "int8"}[recipe.rpartition("-")[2]]
    assert generator.receipt.evidence["weights"] == f"{weights}, 9 of 9 linear layers"
    kept = "bfloat16" if recipe.endswith("-bf16") else "float32"
    assert generator.receipt.evidence["keys and values"] == kept
    assert generator.receipt.script_module is recipe.startswith("torchscript-")


@pytest.fixture(scope="module")
def llama():
    return make_language_model("llama")


@pytest.fixture(scope="module")
def generator(llama):
    return cpu.prepare_generator("torchscript-fp32", llama, make_prompts())


def test_a_draft_from_the_prompt_gives_the_same_tokens(llama, generator):
    prompt = {"input_ids": torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6]])}
    settings = {"prompt_lookup_num_tokens": 3, "max_new_tokens": 20}
    assert torch.equal(write(llama, prompt), write(generator, prompt, prompt_lookup_num_tokens=3))
    assert torch.equal(write(llama, prompt, max_new_tokens=20), write(generator, prompt, **settings))


def test_an_assistant_may_be_a_model_or_a_generator(llama, generator):
    prompt, small = make_prompts(1), make_language_model("llama", seed=1)
    assistant = cpu.prepare_generator("torchscript-fp32", small, prompt)
    for helper in (small, assistant):
        assert torch.equal(write(llama, prompt), write(generator, prompt, assistant_model=helper))


def test_a_streamer_is_told_each_token(generator):
    class Noting:
        def __init__(self):
            self.seen = []

        def put(self, value):
            self.seen += value.flatten().tolist()

        def end(self):
            self.seen.append("end")

    noting, prompt = Noting(), make_prompts(1)
    tokens = write(generator, prompt, streamer=noting)
    assert noting.seen == [*tokens[0].tolist(), "end"]


def test_a_second_prompt_is_not_told_of_the_first(llama, generator):
    for seed in (1, 2, 3):
        prompts = make_prompts(3, 5 + seed, seed=seed)
        assert torch.equal(write(llama, prompts), write(generator, prompts))


def test_the_room_grows_past_where_it_ends(llama, generator):
    prompts = make_prompts()
    settings = {"max_new_tokens": 150, "eos_token_id": None}
    assert torch.equal(write(llama, prompts, **settings), write(generator, prompts, **settings))


def test_a_call_gives_logits_and_a_cache_to_go_on_with(llama, generator):
    prompts = make_prompts()
    expected = llama(**prompts).logits
    first = generator(**{name: tensor[:, :6] for name, tensor in prompts.items()})
    second = generator(
        input_ids=prompts["input_ids"][:, 6:],
        attention_mask=prompts["attention_mask"],
        past_key_values=first.past_key_values,
    )
    seen = torch.cat([first.logits, second.logits], dim=1)
    # The model is told no positions here and counts padding too, so only the row without padding can be compared.
    assert torch.allclose(seen[0], expected[0], atol=1e-5)
    assert generator(**prompts, logits_to_keep=2).logits.shape[1] == 2


def test_what_was_saved_of_logits_is_in_the_models_own_class(llama, generator):
    settings = {"return_dict_in_generate": True, "output_scores": True}
    wanted, seen = (write(model, make_prompts(), **settings) for model in (llama, generator))
    assert torch.equal(wanted.sequences, seen.sequences)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(wanted.scores, seen.scores, strict=True))
    assert isinstance(generator.model, type(llama))


def test_the_model_stays_as_it_was(llama):
    before = {name: (p.data_ptr(), p.clone()) for name, p in llama.named_parameters()}
    for recipe in ("torchscript-int8", "torchscript-bf16"):
        cpu.prepare_generator(recipe, llama, make_prompts())
    after = dict(llama.named_parameters())
    assert all(after[name].data_ptr() == place and torch.equal(after[name], p) for name, (place, p) in before.items())
    assert sum(p.numel() for p in cpu.prepare_generator("eager-fp32", llama, make_prompts()).model.parameters()) == 0


# What cannot be used.


def test_padding_on_the_right_is_refused_before_anything_runs(generator):
    prompts = make_prompts()
    turned = {name: tensor.flip(1) for name, tensor in prompts.items()}
    with pytest.raises(cpu.InputError, match="padding_side = 'left'"):
        generator.generate(**turned)
    with pytest.raises(cpu.InputError, match="padding_side = 'left'"):
        generator(**turned)
    with pytest.raises(cpu.InputError, match="padding_side = 'left'"):
        cpu.prepare_generator("eager-fp32", make_language_model(), turned)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cache_implementation": "static"}, "its own cache"),
        ({"max_new_tokens": 300}, "more than the 200"),
        ({"output_hidden_states": True, "return_dict_in_generate": True}, "output_hidden_states is not known"),
    ],
)
def test_what_only_the_eager_model_can_do_is_an_input_error(generator, settings, message):
    with pytest.raises(cpu.InputError, match=message):
        write(generator, make_prompts(), eos_token_id=None, **settings)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "input_ids of the example are missing"),
        ({"input_ids": torch.ones(2, 3)}, "give token ids"),
        ({"input_ids": torch.ones(2, 0, dtype=torch.long)}, "give token ids"),
        ({"input_ids": torch.ones(2, 3, dtype=torch.long), "token_type_ids": 1}, "no part of a prompt"),
        ({"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": torch.ones(2, 4)}, "has the shape"),
        ({"input_ids": torch.ones(1, 3, dtype=torch.long), "attention_mask": torch.zeros(1, 3)}, "no token at all"),
    ],
)
def test_prompts_that_cannot_be_used_are_named(llama, inputs, message):
    with pytest.raises(cpu.InputError, match=message):
        cpu.prepare_generator("eager-fp32", llama, inputs)


def test_a_model_that_writes_no_text_is_named(bert, bert_inputs):
    with pytest.raises(cpu.InputError, match="writes no text"):
        cpu.prepare_generator("eager-fp32", torch.nn.Linear(2, 2), make_prompts())


def test_a_cache_of_something_else_is_refused(llama, generator):
    other = cpu.prepare_generator("eager-fp32", llama, make_prompts())(**make_prompts()).past_key_values
    with pytest.raises(cpu.InputError, match="of something else"):
        generator(input_ids=torch.ones(2, 1, dtype=torch.long), past_key_values=other)


# Fallback.


def test_what_cannot_be_prepared_falls_back_with_a_reason(caplog):
    model, prompts = make_language_model("bloom"), make_prompts()
    with caplog.at_level(logging.WARNING, logger="cpuinfer_helpers"):
        generator = cpu.prepare_generator("torchscript-fp32", model, prompts)
    assert not generator.prepared and generator.reason in caplog.text
    assert torch.equal(write(model, prompts), write(generator, prompts))
    with pytest.raises(cpu.RecipeError, match="tracing fails"):
        cpu.prepare_generator("torchscript-fp32", model, prompts, on_failure="raise")


def test_fewer_layers_than_asked_for_are_refused():
    model = make_language_model("gpt2")
    model.transformer.h[1].mlp.c_fc.register_forward_hook(lambda *_: None)
    generator = cpu.prepare_generator("torchscript-fp16w", model, make_prompts())
    assert "transformer.h.1.mlp.c_fc, because it has hooks" in generator.reason


def test_weights_that_fp16_has_no_number_for_are_refused():
    model = make_language_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    assert "beyond 65504" in cpu.prepare_generator("torchscript-fp16w", model, make_prompts()).reason


def test_fp32_of_weights_that_have_less_is_refused():
    model = make_language_model("llama").to(torch.bfloat16)
    assert "call model.float() first" in cpu.prepare_generator("torchscript-fp32", model, make_prompts()).reason


@pytest.fixture
def sensitive():
    """A model whose last layer 8 bits are too few for."""
    model = make_language_model("llama")
    with torch.no_grad():
        # The same for every token, so that it decides nothing; but it leaves the other weights of a row no digits.
        model.lm_head.weight[:, 0] = 5.0
    return model


def test_what_8_bits_are_too_few_for_is_kept_in_16(sensitive, tmp_path):
    generator = cpu.prepare_generator("torchscript-int8", sensitive, make_prompts())
    assert generator.prepared and generator.receipt.verified
    evidence = generator.receipt.evidence
    assert "1 in FP16 (lm_head)" in evidence["layers with more bits"]
    assert evidence["weights"] == "int8 (14 of 15 layers), fp16 (1 of 15 layers), 15 of 15 linear layers"
    loaded = cpu.load_optimized(generator.save(tmp_path / "writer", model=sensitive))
    assert torch.equal(write(loaded, make_prompts()), write(generator, make_prompts()))
    assert loaded.build.weights == generator.build.weights


@pytest.mark.parametrize("recipe", ["torchscript-int8", "openvino-int8"])
def test_weights_that_are_stored_otherwise_are_not_kept_besides(recipe):
    why_not = generation_recipe(recipe).why_not
    if why_not:
        pytest.skip(why_not)
    model = make_language_model("llama", hidden_size=64, intermediate_size=128)
    weights = [weakref.ref(layer.weight) for layer in linear_layers(model).values()]
    generator = cpu.prepare_generator(recipe, model, make_prompts(), on_failure="raise")
    assert any(weight() is not None for weight in weights)
    del model
    gc.collect()
    assert generator.prepared and not [weight for weight in weights if weight() is not None]


def test_quantised_weights_that_cost_too_much_are_refused(sensitive, monkeypatch):
    monkeypatch.setattr(Sensitivity, "keeping", lambda self, allowed: {})
    generator = cpu.prepare_generator("torchscript-int8", sensitive, make_prompts())
    assert not generator.prepared and "more than" in generator.reason
    assert cpu.prepare_generator("torchscript-fp16w", sensitive, make_prompts()).prepared


def test_perplexity_is_compared_on_held_out_texts_where_they_are_given(llama):
    texts = torch.randint(3, 200, (2, 40), generator=torch.Generator().manual_seed(0))
    with_texts = cpu.prepare_generator("torchscript-int8", llama, make_prompts(), held_out=texts)
    assert "the model's own" in with_texts.receipt.evidence["perplexity"]
    assert (
        "give held_out"
        in cpu.prepare_generator("torchscript-int8", llama, make_prompts()).receipt.evidence["perplexity"]
    )


# Copies and other processes.


def test_a_deep_copy_writes_too_and_pickling_says_what_to_do_instead(llama, generator):
    prompts = make_prompts()
    assert torch.equal(write(copy.deepcopy(generator), prompts), write(llama, prompts))
    with pytest.raises(cpu.ArtifactError, match="cannot be pickled"):
        pickle.dumps(generator)


def test_a_model_whose_own_generate_contradicts_it_is_refused(monkeypatch):
    model = make_language_model("llama")
    own = type(model).forward

    def shifted(self, input_ids=None, past_key_values=None, **named):
        output = own(self, input_ids=input_ids, past_key_values=past_key_values, **named)
        if named.get("use_cache"):
            output.logits = output.logits.flip(-1)
        return output

    monkeypatch.setattr(type(model), "forward", shifted)
    reason = cpu.prepare_generator("eager-fp32", model, make_prompts()).reason
    assert "its own generate() gives other logits" in reason


def test_a_text_can_be_written_without_a_cache(llama, generator):
    prompts = make_prompts()
    assert torch.equal(write(llama, prompts), write(generator, prompts, use_cache=False))
    uncached = make_language_model("llama")
    uncached.generation_config.use_cache = False
    assert torch.equal(
        write(llama, prompts), write(cpu.prepare_generator("torchscript-fp32", uncached, prompts), prompts)
    )
