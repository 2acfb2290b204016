"""A tiny model of each kind of task in a folder, as ``save_pretrained`` writes it, with what makes its inputs."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.conftest import make_bert, write_tokenizer

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
BERTS = {
    "question-answering": "BertForQuestionAnswering",
    "text-classification": "BertForSequenceClassification",
    "token-classification": "BertForTokenClassification",
    "fill-mask": "BertForMaskedLM",
    "feature-extraction": "BertModel",
    "sentence-similarity": "BertModel",
}
# A side of the images, and samples of a second.
SIDE, RATE = 24, 4000


def save_tiny(kind: str, folder: Path) -> Path:
    """Write the model with its tokenizer, image processor or feature extractor; weights from a fixed seed."""
    import transformers

    if kind in BERTS:
        make_bert(BERTS[kind], vocab_size=200).save_pretrained(folder)
        write_tokenizer(folder)
        return folder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = {"image-classification": _of_images, "text-generation": _of_texts}.get(kind, _of_sound)()
    model.save_pretrained(folder)
    if kind == "text-generation":
        write_tokenizer(folder)
    elif kind == "image-classification":
        size = {"height": SIDE, "width": SIDE}
        transformers.ViTImageProcessor(size=size, do_resize=True).save_pretrained(folder)
    else:
        transformers.Wav2Vec2FeatureExtractor(sampling_rate=RATE).save_pretrained(folder)
    return folder


def _of_texts() -> torch.nn.Module:
    import transformers

    options = {"vocab_size": 200, "num_key_value_heads": 1, "use_cache": False}
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**options, **SIZES))


def _of_images() -> torch.nn.Module:
    import transformers

    return transformers.ViTForImageClassification(transformers.ViTConfig(image_size=SIDE, patch_size=8, **SIZES))


def _of_sound() -> torch.nn.Module:
    import transformers

    convolutions = {"conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3)}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer"}
    config = transformers.Wav2Vec2Config(**SIZES, **convolutions, **positions, classifier_proj_size=8)
    return transformers.Wav2Vec2ForSequenceClassification(config)
