"""BetterTransformer: every supported family is converted, runs the fast path and gives the model's own answers."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import cpuinfer_helpers as cpu
from cpuinfer_helpers.bettertransformer import FastEncoderLayer
from cpuinfer_helpers.bettertransformer.padding import valid_positions
from cpuinfer_helpers.errors import InputError, RecipeError
from cpuinfer_helpers.outputs import take_apart
from tests.conftest import make_bert, make_inputs

# The same products in FP32, summed in another order, for answers of about one; larger ones have larger steps.
TOLERANCE = 1e-5
# Wide weights make scores differ, so that attention matters to the answers.
WIDE = {"initializer_range": 0.2}
TEXT = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
    **WIDE,
}
DISTILBERT = {"dim": 32, "n_heads": 4, "n_layers": 2, "hidden_dim": 64, "vocab_size": 120, **WIDE}
IMAGE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 4,
    **WIDE,
}
AUDIO = {
    "vocab_size": 20,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16, 16),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16,
    **WIDE,
}
TEXTS = {
    "BertForQuestionAnswering": TEXT,
    "RobertaForQuestionAnswering": TEXT,
    "XLMRobertaForTokenClassification": TEXT,
    "CamembertForSequenceClassification": TEXT,
    "ElectraForTokenClassification": TEXT,
    "BertGenerationEncoder": TEXT,
    "Data2VecTextForSequenceClassification": TEXT,
    "ErnieModel": TEXT,
    "SplinterForQuestionAnswering": TEXT,
    "LayoutLMForTokenClassification": TEXT,
    "RobertaPreLayerNormForTokenClassification": TEXT,
    "XLMRobertaXLForTokenClassification": TEXT,
    "MegatronBertForQuestionAnswering": TEXT,
    "RemBertForQuestionAnswering": {**TEXT, "hidden_act": "relu"},
    "AlbertForTokenClassification": {**TEXT, "hidden_act": "gelu"},
    "DistilBertForQuestionAnswering": DISTILBERT,
}
IMAGES = ("ViTForImageClassification", "DeiTForImageClassification", "ViTMSNForImageClassification")
AUDIOS = ("Wav2Vec2ForCTC", "HubertForCTC", "UniSpeechSatForCTC", "Data2VecAudioForCTC")


def make(name, sizes, attention="eager", seed=0):
    import transformers

    model_class = getattr(transformers, name)
    config = model_class.config_class(**sizes)
    config._attn_implementation = attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return with_biases(model_class(config).eval())


def make_wide_bert(**config):
    return with_biases(make_bert(**{**WIDE, "num_attention_heads": 4, **config}))


@torch.no_grad()
def with_biases(model):
    """New models have biases of zero and norms of one, so that nobody would miss them."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def tokens(mask, seed=0):
    """Token ids and the mask, a list of rows."""
    mask = torch.tensor(mask)
    ids = torch.randint(5, 120, mask.shape, generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": mask}


def padded(*lengths, longest=20, left=False):
    rows = [[1] * length + [0] * (longest - length) for length in lengths]
    return [row[::-1] for row in rows] if left else rows


PADDINGS = {
    "none": padded(20, 20, 20),
    "right": padded(20, 7, 1),
    "left": padded(20, 7, 1, left=True),
    "all but one row": padded(20, 3, 3, 3),
    "every row": padded(12, 7, 9),
    "one row": padded(11),
    "holes": [[1] * 20, [1, 0] * 10, [0, 1, 1, 0] * 5],
    "a row of nothing else": padded(20, 0, 5),
}


def largest_error(seen, wanted, valid=None):
    """Largest error of any output, on valid positions."""
    seen, wanted = take_apart(seen)[0], take_apart(wanted)[0]
    assert seen.keys() == wanted.keys()
    errors = [0.0]
    for name, tensor in wanted.items():
        assert seen[name].shape == tensor.shape
        difference = (seen[name] - tensor).abs()
        by_position = valid is not None and difference.shape[: valid.dim()] == valid.shape
        difference = difference[valid] if by_position else difference[valid.any(1)] if valid is not None else difference
        errors.append(difference.max().item())
    return max(errors)


def check(model, converted, inputs):
    with torch.no_grad():
        wanted, seen = model(**inputs), converted(**inputs)
    assert type(seen) is type(wanted)
    mask = inputs.get("attention_mask")
    valid = mask.bool() if mask is not None else None
    assert all(tensor.isfinite().all() for tensor in take_apart(seen)[0].values())
    largest = max(tensor.abs().max().item() for tensor in take_apart(wanted)[0].values())
    assert largest_error(seen, wanted, valid) < TOLERANCE * max(1.0, largest)


@pytest.fixture(scope="module")
def pair():
    model = make_wide_bert()
    return model, cpu.to_bettertransformer(model)


@pytest.mark.parametrize("name", TEXTS)
def test_text_encoders_give_their_own_answers_on_the_fast_path(name):
    model = make(name, TEXTS[name])
    converted = cpu.to_bettertransformer(model)

    for mask in PADDINGS.values():
        check(model, converted, tokens(mask))
    use = cpu.fast_path_use(converted, tokens(PADDINGS["right"]))
    # ALBERT calls one layer several times, and each call is a pass of its own.
    assert (use.layers, use.nested) == (2, 2 if name.startswith("Albert") else 1)
    assert list(use.products) == ["FP32"]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["BertForQuestionAnswering", "DistilBertForQuestionAnswering"])
def test_masks_are_read_as_either_attention_writes_them(name, attention):
    model = make(name, TEXTS[name], attention)
    converted = cpu.to_bettertransformer(model)

    for mask in PADDINGS.values():
        check(model, converted, tokens(mask))
    check(model, converted, {"input_ids": tokens(PADDINGS["none"])["input_ids"]})
    assert cpu.fast_path_use(converted, tokens(PADDINGS["right"])).nested == 1


@pytest.mark.parametrize("name", IMAGES)
def test_image_encoders_give_their_own_answers_on_the_fast_path(name):
    model = make(name, IMAGE, "sdpa")
    converted = cpu.to_bettertransformer(model)

    for batch in (1, 3):
        inputs = {"pixel_values": torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(batch))}
        check(model, converted, inputs)
        assert cpu.fast_path_use(converted, inputs).layers == 2


def test_queries_without_a_bias_are_converted_and_back():
    model = make("ViTForImageClassification", {**IMAGE, "qkv_bias": False})
    converted = cpu.to_bettertransformer(model)

    check(model, converted, {"pixel_values": torch.randn(2, 3, 16, 16)})
    assert cpu.reverse_bettertransformer(converted).state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("stable", [False, True], ids=["norms last", "norms first"])
@pytest.mark.parametrize("name", AUDIOS)
def test_audio_encoders_give_their_own_answers_on_the_fast_path(name, stable):
    norms = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"} if stable else {}
    if stable and name == "Data2VecAudioForCTC":
        pytest.skip("Data2VecAudio has no such variant")
    model = make(name, {**AUDIO, **norms}, "sdpa")
    converted = cpu.to_bettertransformer(model)
    waves = torch.randn(3, 900, generator=torch.Generator().manual_seed(0))

    check(model, converted, {"input_values": waves})
    mask = torch.ones(3, 900, dtype=torch.long)
    mask[1, 500:], mask[2, 300:] = 0, 0
    with torch.no_grad():
        inputs = {"input_values": waves * mask, "attention_mask": mask}
        wanted, seen = model(**inputs).logits, converted(**inputs).logits
    frames = model._get_feat_extract_output_lengths(mask.sum(1))
    for row, count in enumerate(frames):
        assert (seen - wanted)[row, :count].abs().max() < TOLERANCE * wanted.abs().max()
    use = cpu.fast_path_use(converted, inputs)
    assert (use.layers, use.nested) == (2, 1)


@pytest.mark.parametrize("padding", PADDINGS)
def test_nested_tensors_serve_padding_on_the_right_only(pair, padding):
    use = cpu.fast_path_use(pair[1], tokens(PADDINGS[padding]))

    assert use.layers == 2
    expected = padding in ("right", "all but one row", "every row", "one row", "a row of nothing else")
    assert bool(use.nested) == expected


@pytest.mark.parametrize("padding", ["right", "left", "holes"])
def test_tokens_under_the_padding_do_not_matter(pair, padding):
    inputs = tokens(PADDINGS[padding])
    valid = inputs["attention_mask"].bool()
    other = dict(inputs, input_ids=torch.where(valid, inputs["input_ids"], 7))

    with torch.no_grad():
        first, second = pair[1](**inputs), pair[1](**other)
    assert largest_error(first, second, valid) < 1e-6


def test_any_batch_and_length_after_conversion(pair):
    for batch, length, padding in ((1, 1, 0), (5, 33, 8), (2, 64, 40), (3, 2, 1), (1, 17, 4)):
        check(*pair, make_inputs(batch, length, padding=padding))


def test_threads_share_a_converted_model(pair):
    model, converted = pair
    rows = [make_inputs(3, 10 + length, padding=length, seed=length) for length in range(1, 9)]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda inputs: check(model, converted, inputs), rows * 3))


def test_without_no_grad_the_fast_path_runs_all_the_same(pair):
    output = pair[1](**make_inputs(padding=3))

    assert not output.start_logits.requires_grad


def test_the_users_model_stays_as_it_was():
    model = make_wide_bert()
    before = {name: (t.data_ptr(), t._version, t.clone()) for name, t in model.state_dict().items()}
    attributes = {name: set(vars(part)) for name, part in model.named_modules()}
    converted = cpu.to_bettertransformer(model)
    converted(**make_inputs(padding=3))

    for name, tensor in model.state_dict().items():
        pointer, version, values = before[name]
        assert (tensor.data_ptr(), tensor._version) == (pointer, version)
        assert torch.equal(tensor, values)
    assert {name: set(vars(part)) for name, part in model.named_modules()} == attributes
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(part._forward_pre_hooks for part in model.modules())
    assert not any(isinstance(part, FastEncoderLayer) for part in model.modules())


def test_weights_are_shared_but_for_queries_keys_and_values():
    model = make_wide_bert()
    converted = cpu.to_bettertransformer(model)
    own, shared = {t.data_ptr() for t in model.parameters()}, {t.data_ptr() for t in converted.parameters()}

    assert len(shared - own) == 2 * 2
    layer, fast = model.bert.encoder.layer[0], converted.bert.encoder.layer[0].fast
    assert fast.linear1.weight.data_ptr() == layer.intermediate.dense.weight.data_ptr()
    wanted = torch.cat([getattr(layer.attention.self, name).weight for name in ("query", "key", "value")])
    assert torch.equal(fast.self_attn.in_proj_weight, wanted)


@pytest.mark.parametrize("name", ["BertForQuestionAnswering", "DistilBertForQuestionAnswering"])
def test_reversing_gives_the_same_names_and_bits(name):
    model = make(name, TEXTS[name], "sdpa")
    model.qa_outputs.weight.requires_grad_(False)
    converted = cpu.to_bettertransformer(model)
    again = cpu.reverse_bettertransformer(converted)

    wanted, seen = model.state_dict(), again.state_dict()
    assert list(seen) == list(wanted)
    assert all(torch.equal(seen[key], wanted[key]) for key in wanted)
    inputs = tokens(PADDINGS["right"])
    with torch.no_grad():
        assert torch.equal(again(**inputs).start_logits, model(**inputs).start_logits)
        hidden = again(**inputs, output_hidden_states=True).hidden_states
    assert len(hidden) == 3
    flags = {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    assert {key: parameter.requires_grad for key, parameter in again.named_parameters()} == flags
    assert not {t.data_ptr() for t in again.parameters()} & {t.data_ptr() for t in model.parameters()}
    assert all(part.config is again.config for part in again.modules() if hasattr(part, "config"))
    check(model, converted, inputs)


def test_hidden_states_asked_for_before_and_after_do_not_stand_in_the_way():
    model = make("Wav2Vec2ForSequenceClassification", AUDIO)
    waves = torch.randn(2, 900, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(waves, output_hidden_states=True)
        converted = cpu.to_bettertransformer(model)
        check(model, converted, {"input_values": waves})
        again = cpu.reverse_bettertransformer(converted)(waves, output_hidden_states=True)
        still = model(waves, output_hidden_states=True)
    assert len(again.hidden_states) == len(still.hidden_states) == len(wanted.hidden_states) == 3
    assert largest_error(again, wanted) == largest_error(still, wanted) == 0
    for asked in (converted, converted.wav2vec2, converted.wav2vec2.encoder):
        with pytest.raises(RecipeError, match="output_hidden_states"):
            asked(waves if asked is not converted.wav2vec2.encoder else waves[:, None], output_hidden_states=True)
    check(model, converted, {"input_values": waves})


def test_a_reversed_model_trains_saves_and_is_converted_again(tmp_path):
    model = make_wide_bert()
    again = cpu.reverse_bettertransformer(cpu.to_bettertransformer(model))
    again.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()

    check(loaded, cpu.to_bettertransformer(loaded), make_inputs(padding=3))
    again.train()(**make_inputs()).start_logits.sum().backward()
    assert again.bert.encoder.layer[0].attention.self.query.weight.grad is not None


def test_copies_and_pickles_of_a_converted_model_work(pair):
    model, converted = pair
    for other in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        check(model, other, make_inputs(padding=3))
        assert list(cpu.reverse_bettertransformer(other).state_dict()) == list(model.state_dict())


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"output_attentions": True}, "output_attentions"),
        ({"output_hidden_states": True}, "output_hidden_states"),
        ({"inputs_embeds": torch.zeros(2, 12, 32, requires_grad=True), "input_ids": None}, "no gradients"),
    ],
)
def test_a_call_that_the_fast_path_cannot_answer_is_refused(pair, inputs, reason):
    with pytest.raises(RecipeError, match=reason):
        pair[1](**{**make_inputs(), **inputs})


def test_a_mask_that_differs_from_query_to_query_is_refused(pair):
    import transformers

    # Version 4 takes such masks with three dimensions, version 5 with four.
    mask = torch.ones(2, 12, 12, dtype=torch.bool).tril()
    mask = mask if transformers.__version__.startswith("4.") else mask[:, None]
    with pytest.raises(RecipeError, match="differs from query to query"):
        pair[1](**{**make_inputs(), "attention_mask": mask})


def test_a_head_mask_is_refused_where_the_model_takes_one(pair):
    import inspect

    if "head_mask" not in inspect.signature(pair[0].forward).parameters:
        pytest.skip("this version of transformers has no head masks")
    with pytest.raises(RecipeError, match="head_mask"):
        pair[1](**make_inputs(), head_mask=torch.tensor([1.0, 0.0, 1.0, 1.0]))


def test_outputs_of_inside_are_refused_by_position_and_configuration(pair):
    converted = pair[1]
    by_position = copy.deepcopy(converted)
    by_position.config.output_hidden_states = True
    with pytest.raises(RecipeError, match="output_hidden_states"):
        by_position(**make_inputs())
    with pytest.raises(RecipeError, match="output_attentions"):
        converted.bert(make_inputs()["input_ids"], output_attentions=True)


def test_training_autocast_and_a_fast_path_switched_off_are_refused(pair):
    converted = copy.deepcopy(pair[1])
    with pytest.raises(RecipeError, match="cannot be trained"):
        converted.train()(**make_inputs())
    converted.eval()
    with pytest.raises(RecipeError, match="autocast"), torch.autocast("cpu", dtype=torch.bfloat16):
        converted(**make_inputs())
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with pytest.raises(RecipeError, match="switched off"):
            converted(**make_inputs())
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_a_converted_model_is_not_saved_under_names_that_nobody_could_load(pair, tmp_path):
    with pytest.raises(RecipeError, match="reverse_bettertransformer"):
        pair[1].save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


REFUSED = {
    "relative positions in the layers": ("MPNetForQuestionAnswering", TEXT, "relative position"),
    "a decoder": ("BertModel", {**TEXT, "is_decoder": True}, "decoder"),
    "cross attention": ("BertModel", {**TEXT, "is_decoder": True, "add_cross_attention": True}, "decoder"),
    "an encoder with a decoder": (
        "BartForQuestionAnswering",
        {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "vocab_size": 120},
        "decoder",
    ),
    "an approximate activation": ("BertModel", {**TEXT, "hidden_act": "gelu_new"}, "activation"),
    "an odd number of heads": ("BertModel", {**TEXT, "hidden_size": 36, "num_attention_heads": 3}, "3 attention heads"),
    "attention maps configured": ("BertModel", {**TEXT, "output_attentions": True}, "output_attentions"),
    "hidden states configured": ("BertModel", {**TEXT, "output_hidden_states": True}, "output_hidden_states"),
    "a sum of all layers": ("Wav2Vec2ForSequenceClassification", {**AUDIO, "use_weighted_layer_sum": True}, "sums"),
    "rotary positions": ("RoFormerForQuestionAnswering", {**TEXT, "embedding_size": 32}, "sinusoidal_pos"),
    "other attention, same weights": ("YosoForQuestionAnswering", TEXT, "computes something else|does not run"),
    "a convolution beside the attention": ("ConvBertForQuestionAnswering", TEXT, "has no place|known kind"),
    "relative positions in audio": ("WavLMForCTC", AUDIO, "relative|rel_pos"),
    "no attention": ("FNetForQuestionAnswering", {**TEXT, "num_attention_heads": 4}, "known kind"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_fast_path_cannot_compute_is_refused_with_the_reason(case):
    name, sizes, reason = REFUSED[case]
    model = make(name, sizes)

    with pytest.raises(RecipeError, match=reason):
        cpu.to_bettertransformer(model)


def test_hooks_and_further_weights_in_a_layer_are_refused():
    hooked = make_wide_bert()
    hooked.bert.encoder.layer[1].output.register_forward_hook(lambda *_: None)
    with pytest.raises(RecipeError, match="hooks on output"):
        cpu.to_bettertransformer(hooked)
    extended = make_wide_bert()
    extended.bert.encoder.layer[0].adapter = torch.nn.Linear(32, 32).eval()
    with pytest.raises(RecipeError, match="adapter"):
        cpu.to_bettertransformer(extended)


def test_a_layer_that_computes_something_else_is_found_out():
    model = make_wide_bert()
    layer = model.bert.encoder.layer[1]
    layer.feed_forward_chunk = lambda hidden: 1.01 * type(layer).feed_forward_chunk(layer, hidden)

    with pytest.raises(RecipeError, match="computes something else"):
        cpu.to_bettertransformer(model)


def test_what_is_converted_or_not_is_told(pair):
    with pytest.raises(InputError, match="converted already"):
        cpu.to_bettertransformer(pair[1])
    with pytest.raises(InputError, match="was not made by"):
        cpu.reverse_bettertransformer(pair[0])
    with pytest.raises(InputError, match="training mode"):
        cpu.to_bettertransformer(make_wide_bert().train())


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (torch.zeros(2, 4, 4), "padding masks only"),
        (torch.zeros(2, 1, 4, 3), "padding masks only"),
        ("a block mask", "padding masks only"),
        (torch.full((2, 1, 1, 4), -1.0), "adds a bias"),
        (torch.full((2, 4), 0.5), "other numbers"),
        (torch.ones(2, 1, 1, 4, dtype=torch.long), "int64"),
        (torch.ones(2, 1, 4, 4, dtype=torch.bool).tril(), "differs from query to query"),
        (torch.eye(4).bool().expand(2, 4, 4)[:, :, None], "differs"),
    ],
)
def test_masks_that_do_more_than_hide_padding_are_refused(mask, reason):
    with pytest.raises(RecipeError, match=reason):
        valid_positions(mask, 2, 4)


def test_masks_are_read_in_all_their_forms():
    keep = torch.tensor([[True, True, False], [False, False, False]])
    # A row of nothing but padding keeps its first position.
    wanted = torch.tensor([[True, True, False], [True, False, False]])
    additive = torch.zeros(2, 1, 1, 3).masked_fill(~keep[:, None, None], torch.finfo(torch.float32).min)
    infinite = torch.zeros(2, 1, 1, 3).masked_fill(~keep[:, None, None], float("-inf"))
    forms = [keep, keep.long(), keep.float(), keep[:, None, None], additive, infinite, additive.bfloat16()]
    forms += [additive.expand(2, 4, 3, 3), additive.repeat(1, 4, 3, 1), keep[:, None, None].repeat(1, 1, 3, 1)]
    for mask in forms:
        assert torch.equal(valid_positions(mask, 2, 3), wanted), mask
    assert valid_positions(None, 2, 3) is None
    assert valid_positions(torch.ones(2, 3), 2, 3) is None
    assert torch.equal(valid_positions(keep[:1, None, None], 2, 3), keep[:1].expand(2, 3))


def test_what_the_fused_kernel_calls_is_counted(pair):
    from cpuinfer_helpers.bettertransformer import kernels_inside

    seen = kernels_inside(pair[1], make_inputs())
    # Queries, keys and values are one product; the others are the output, and the two around the GELU.
    products = sum(seen.calls.get(name, 0) for name in ("addmm", "_addmm_activation", "mm"))
    assert (seen.layers, products) == (2, 2 * 4)
    assert "_transform_bias_rescale_qkv" in str(seen)
    assert kernels_inside(pair[0], make_inputs()).layers == 0
