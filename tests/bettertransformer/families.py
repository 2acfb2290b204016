"""Small models of every family with an encoder, their inputs, and the comparison with the converted model."""

from __future__ import annotations

import torch

from cpuinfer_helpers.interface.outputs import take_apart
from tests.conftest import make_bert

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
