"""What ``prepare_generator`` makes of an encoder and a decoder writes what the model writes."""

from __future__ import annotations

import functools
import logging
from typing import Any

import pytest
import torch
import transformers

import cpuinfer_helpers as cpu
from cpuinfer_helpers.generation.registry import generation_recipe
from tests.generation.encoder_models import (
    BINS,
    ENCODER_ARCHITECTURES,
    OF_SOUND,
    VOCABULARY,
    make_encoder_model,
    make_sources,
)

MAJOR = int(transformers.__version__.split(".")[0])
# Weights of a size at which BF16 and 8 bits are within their tolerances.
SMALL = {"t5": {"initializer_factor": 1.0}, "bart": {"init_std": 0.1}, "whisper": {"init_std": 0.1}}
RECIPES = ("eager-fp32", "eager-bf16", "torchscript-fp32", "torchscript-fp16w", "torchscript-bf16", "torchscript-int8")
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"do_sample": True, "top_k": 20},
    "beams": {"num_beams": 3},
    "several of each": {"num_beams": 2, "num_return_sequences": 2},
    "penalised": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "forced": {"forced_bos_token_id": 17, "forced_eos_token_id": 18},
    "without a cache": {"use_cache": False},
}


def write(writer: Any, sources: dict[str, torch.Tensor], **settings: Any) -> torch.Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return writer.generate(**sources, **{"max_new_tokens": 8, "do_sample": False, **settings})


def ways_of(name: str) -> list[dict[str, Any]]:
    # M2M100 draws a random number for each layer there, also where no layer is dropped.
    left = "sampled" if name == "m2m100" and MAJOR == 4 else ""
    return [settings for way, settings in WAYS.items() if way != left]


@pytest.mark.parametrize("name", ENCODER_ARCHITECTURES)
def test_an_architecture_writes_the_same_tokens_of_any_sources(name):
    model = make_encoder_model(name)
    generator = cpu.prepare_generator("torchscript-fp32", model, make_sources(name), on_failure="raise")
    for number, settings in enumerate(ways_of(name)):
        # Each time as many sources of another length, after those before.
        sources = make_sources(name, 1 + number % 3, 6 + 3 * number, seed=number)
        assert torch.equal(write(model, sources, **settings), write(generator, sources, **settings)), settings


# Each recipe once, and those that store weights in another way once for each kind of encoder.
OF_EACH = [
    *(("t5", recipe) for recipe in RECIPES),
    ("bart", RECIPES[3]),
    ("whisper", RECIPES[3]),
    ("whisper", RECIPES[5]),
]


@pytest.mark.parametrize(("name", "recipe"), OF_EACH)
def test_each_recipe_is_verified_and_says_what_it_is(name, recipe):
    model = make_encoder_model(name, **SMALL[name])
    generator = cpu.prepare_generator(recipe, model, make_sources(name), on_failure="raise")
    evidence, precision = generator.receipt.evidence, recipe.rpartition("-")[2]
    weights = {"fp32": "float32", "fp16w": "fp16", "bf16": "bfloat16", "int8": "int8"}[precision]
    # Of 2 layers: 6 of each of the encoder's, 10 of each of the decoder's, and the head.
    assert evidence["weights"] == f"{weights}, 33 of 33 linear layers" and generator.receipt.verified
    # Keys and values of 2 layers of 32 numbers, for each place of the source and for each token.
    size = 2 * 2 * 32 * (2 if precision == "bf16" else 4)
    assert f"{size} bytes for each place of the source, {size} for each token" in evidence["read for each token"]
    assert (generator.build.source_bytes, generator.build.token_bytes) == (size, size)
    traced = recipe.startswith("torchscript-")
    assert generator.receipt.script_module is traced and ("encoder" in evidence) is traced
    assert ("convolutions" in evidence) is (name == "whisper" and precision in ("fp16w", "int8"))


def test_a_token_reads_no_weights_of_the_encoder_and_none_of_the_sources_keys():
    model = make_encoder_model("bart")
    read = {
        recipe: cpu.prepare_generator(recipe, model, make_sources("bart")).build.weight_bytes
        for recipe in RECIPES[:3:2]
    }
    left = {id(p) for p in model.get_encoder().parameters()} | {id(model.model.decoder.embed_positions.weight)}
    for layer in model.model.decoder.layers:
        left |= {id(p) for part in (layer.encoder_attn.k_proj, layer.encoder_attn.v_proj) for p in part.parameters()}
    # The tied weight is the encoder's embedding and the head at once, and the head is read.
    left -= {id(model.lm_head.weight)}
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    assert set(read.values()) == {sum(4 * t.numel() for key, t in tensors.items() if key not in left)}


@pytest.fixture(scope="module")
def t5():
    return make_encoder_model("t5")


@pytest.fixture(scope="module")
def generator(t5):
    return cpu.prepare_generator("torchscript-fp32", t5, make_sources("t5"), on_failure="raise")


def test_the_encoder_reads_each_source_once(generator, monkeypatch):
    calls = []
    own = generator.build.step.encode
    monkeypatch.setattr(generator.build.step, "encode", lambda *given: calls.append(given) or own(*given))
    write(generator, make_sources("t5"), num_beams=3)
    assert len(calls) == 1


def test_the_trace_of_the_decoder_computes_no_keys_of_the_source(generator):
    step = generator.build.step
    products = [node for node in step.module.graph.nodes() if node.kind() == "aten::linear"]
    # Of each layer: 4 for its own tokens, 2 for the source (query and output), 2 between; and the head.
    assert len(products) == 2 * (4 + 2 + 2) + 1


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_drafts_give_the_same_tokens(name):
    model, small = make_encoder_model(name), make_encoder_model(name, seed=1)
    one = make_sources(name, 1)
    generator, assistant = (cpu.prepare_generator("torchscript-fp32", one_of, one) for one_of in (model, small))
    expected = write(model, one)
    for helper in (small, assistant):
        assert torch.equal(expected, write(generator, one, assistant_model=helper))
    # Transformers 4 looks into the source and stops elsewhere.
    looked_up = {"prompt_lookup_num_tokens": 3}
    assert torch.equal(write(model, one, **looked_up), write(generator, one, **looked_up))


def test_beginnings_may_be_padded_on_the_left_and_nowhere_else(t5, generator):
    ids = torch.tensor([[0, 7, 8, 9], [0, 0, 7, 8]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    begun = make_sources("t5") | {"decoder_input_ids": ids, "decoder_attention_mask": mask}
    assert torch.equal(write(t5, begun), write(generator, begun))
    # Transformers puts the token that a decoder begins with before the padding, where no row has it.
    unbegun = begun | {"decoder_input_ids": ids + 20}
    assert torch.equal(write(t5, unbegun), write(generator, unbegun))
    turned = begun | {"decoder_attention_mask": mask.flip(1)}
    with pytest.raises(cpu.InputError, match="decoder_attention_mask is padded on the right"):
        write(generator, turned)
    with pytest.raises(cpu.InputError, match="decoder_attention_mask is padded on the right"):
        cpu.prepare_generator("eager-fp32", t5, turned)


def test_sources_may_be_padded_on_either_side(t5, generator):
    turned = {name: tensor.flip(1) for name, tensor in make_sources("t5").items()}
    assert torch.equal(write(t5, turned), write(generator, turned))


def test_what_has_been_encoded_elsewhere_can_be_given(t5, generator):
    sources = make_sources("t5")
    states = t5.get_encoder()(**sources)
    seen = write(generator, {"encoder_outputs": states, "attention_mask": sources["attention_mask"]})
    assert torch.equal(write(t5, sources), seen)


def test_a_call_gives_logits_and_a_cache_to_go_on_with(t5, generator):
    sources, ids = make_sources("t5"), torch.tensor([[0, 7, 8, 9, 10], [0, 9, 7, 6, 5]])
    expected = t5(**sources, decoder_input_ids=ids).logits
    first = generator(**sources, decoder_input_ids=ids[:, :3])
    second = generator(**sources, decoder_input_ids=ids[:, 3:], past_key_values=first.past_key_values)
    assert torch.allclose(torch.cat([first.logits, second.logits], dim=1), expected, atol=1e-4)
    assert isinstance(generator.model, type(t5)) and sum(p.numel() for p in generator.model.parameters()) == 0


def test_a_streamer_is_told_each_token(generator):
    class Noting:
        def __init__(self):
            self.seen = []

        def put(self, value):
            self.seen += value.flatten().tolist()

        def end(self):
            self.seen.append("end")

    noting = Noting()
    tokens = write(generator, make_sources("t5", 1), streamer=noting)
    assert noting.seen == [*tokens[0].tolist(), "end"]


# Whisper's own generate().


@pytest.fixture(scope="module")
def whisper():
    model = make_encoder_model("whisper")
    settings = model.generation_config
    settings.lang_to_id, settings.task_to_id = {"<|en|>": 150, "<|de|>": 151}, {"transcribe": 152, "translate": 153}
    settings.prev_sot_token_id, settings.no_timestamps_token_id, settings.is_multilingual = 154, 160, True
    settings.max_initial_timestamp_index, settings.return_timestamps = 10, False
    return model


@pytest.fixture(scope="module")
def writes_speech(whisper):
    return cpu.prepare_generator("torchscript-fp32", whisper, make_sources("whisper"), on_failure="raise")


@pytest.mark.parametrize(
    "settings",
    [
        {"language": "en", "task": "transcribe"},
        {},
        {"language": "de", "task": "translate", "return_timestamps": True},
        {"language": "de", "num_beams": 3},
        {"language": "de", "prompt_ids": torch.tensor([154, 5, 6])},
        {"language": "de", "attention_mask": torch.ones(2, 64, dtype=torch.long)},
    ],
    ids=["transcribes", "detects the language", "with timestamps", "beams", "with a prompt", "with a mask"],
)
def test_whisper_writes_in_its_own_ways(whisper, writes_speech, settings):
    sound = make_sources("whisper")["input_features"]
    expected, seen = (one.generate(sound, max_new_tokens=12, **settings) for one in (whisper, writes_speech))
    assert torch.equal(expected, seen)


def test_whisper_writes_of_more_than_its_encoder_reads_at_once(whisper, writes_speech):
    sound = torch.randn(1, BINS, 150, generator=torch.Generator().manual_seed(3))
    settings = {"language": "de", "return_timestamps": True, "max_new_tokens": 12}
    mask = torch.ones(1, 150, dtype=torch.long)
    expected, seen = (one.generate(sound, attention_mask=mask, **settings) for one in (whisper, writes_speech))
    assert torch.equal(expected, seen)


def test_whisper_gives_scores_but_no_attention(whisper, writes_speech):
    sound = make_sources("whisper", 1)["input_features"]
    asked = {"language": "de", "max_new_tokens": 6, "return_dict_in_generate": True, "output_scores": True}
    expected, seen = (one.generate(sound, **asked) for one in (whisper, writes_speech))
    assert torch.equal(expected["sequences"], seen["sequences"]) and "past_key_values" not in seen
    writes_speech.generation_config.alignment_heads = [[0, 0]]
    with pytest.raises(cpu.InputError, match="output_attentions is not known here"):
        writes_speech.generate(sound, language="de", return_token_timestamps=True)


# What cannot be used.


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "input_ids of the example are missing, which the encoder reads"),
        ({"input_ids": torch.ones(2, 3)}, "give token ids"),
        ({"input_ids": torch.ones(2, 3, dtype=torch.long), "token_type_ids": 1}, "nothing that the encoder reads"),
        ({"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": torch.ones(2, 4)}, "has the shape"),
        ({"input_ids": torch.ones(2, 3, dtype=torch.long), "decoder_attention_mask": 1}, "without decoder_input_ids"),
        (
            {"input_ids": torch.ones(2, 3, dtype=torch.long), "decoder_input_ids": torch.ones(1, 2, dtype=torch.long)},
            "for 2 sources",
        ),
    ],
)
def test_sources_that_cannot_be_used_are_named(t5, inputs, message):
    with pytest.raises(cpu.InputError, match=message):
        cpu.prepare_generator("eager-fp32", t5, inputs)


def test_sources_that_the_encoder_does_not_take_are_an_input_error():
    model = make_encoder_model("bart")
    long = {"input_ids": torch.full((1, 300), 7)}
    for recipe in ("eager-fp32", "torchscript-fp32"):
        generator = cpu.prepare_generator(recipe, model, make_sources("bart"))
        with pytest.raises(cpu.InputError, match="300"):
            write(generator, long)
        with pytest.raises(cpu.InputError, match="more than the 200"):
            write(generator, make_sources("bart"), max_new_tokens=250, eos_token_id=None)


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ({"output_hidden_states": True, "return_dict_in_generate": True}, "output_hidden_states is not known here"),
        ({"cache_implementation": "static"}, "its own cache"),
    ],
)
def test_what_only_the_eager_model_can_do_is_an_input_error(generator, further, message):
    with pytest.raises(cpu.InputError, match=message):
        write(generator, make_sources("t5"), **further)


def test_openvino_says_that_it_cannot(t5, caplog):
    recipe = generation_recipe("openvino-fp32")
    if recipe.why_not:
        pytest.skip(recipe.why_not)
    with caplog.at_level(logging.WARNING, logger="cpuinfer_helpers"):
        generator = cpu.prepare_generator(recipe, t5, make_sources("t5"))
    assert not generator.prepared and "encoder" in generator.reason and generator.reason in caplog.text
    assert torch.equal(write(t5, make_sources("t5")), write(generator, make_sources("t5")))


def test_fewer_layers_than_asked_for_are_refused_in_an_encoder_too(t5):
    model = make_encoder_model("t5")
    model.encoder.block[1].layer[0].SelfAttention.q.register_forward_hook(lambda *_: None)
    generator = cpu.prepare_generator("torchscript-fp16w", model, make_sources("t5"))
    assert "encoder.block.1.layer.0.SelfAttention.q, because it has hooks" in generator.reason


def test_perplexity_is_compared_on_what_is_written_of_each_source():
    model = make_encoder_model("bart", init_std=0.1)
    texts = torch.randint(3, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(0))
    generator = cpu.prepare_generator("torchscript-int8", model, make_sources("bart"), held_out=texts)
    assert "the model's own" in generator.receipt.evidence["perplexity"]
    with pytest.raises(cpu.RecipeError, match="a text for each source"):
        cpu.prepare_generator("torchscript-int8", model, make_sources("bart"), held_out=texts[:1], on_failure="raise")


def test_a_class_that_does_not_write_by_steps_is_refused(monkeypatch):
    model = make_encoder_model("t5")
    own = type(model).prepare_inputs_for_generation

    @functools.wraps(own)
    def looks_at_a_part(self, *arguments, **named):
        assert self.decoder is not None
        return own(self, *arguments, **named)

    monkeypatch.setattr(type(model), "prepare_inputs_for_generation", looks_at_a_part)
    reason = cpu.prepare_generator("eager-fp32", model, make_sources("t5")).reason
    assert "does not write by steps of ours" in reason and "decoder" in reason


def test_the_names_of_sounds_are_those_of_their_models():
    for name in OF_SOUND:
        assert "input_features" in make_sources(name)
