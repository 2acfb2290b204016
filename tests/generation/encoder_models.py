"""Small models of an encoder and a decoder, random weights from a seed, and what their encoders read."""

from __future__ import annotations

from typing import Any

import torch

VOCABULARY = 200
FRAMES, BINS = 64, 16
_BART: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 200,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    "init_std": 0.3,
}
_T5: dict[str, Any] = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "initializer_factor": 1.5,
}
_SOUND: dict[str, Any] = {
    **{name: value for name, value in _BART.items() if name != "max_position_embeddings"},
    "max_target_positions": 200,
}
# By name the beginning of the classes' names, the end of the model's, and its configuration.
_ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "t5": ("T5", "ForConditionalGeneration", _T5),
    "flan": (
        "T5",
        "ForConditionalGeneration",
        {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "mt5": ("MT5", "ForConditionalGeneration", _T5),
    "bart": ("Bart", "ForConditionalGeneration", _BART),
    "marian": ("Marian", "MTModel", {**_BART, "scale_embedding": True}),
    "pegasus": ("Pegasus", "ForConditionalGeneration", _BART),
    "mbart": ("MBart", "ForConditionalGeneration", _BART),
    "m2m100": ("M2M100", "ForConditionalGeneration", _BART),
    "blenderbot": ("Blenderbot", "ForConditionalGeneration", _BART),
    "whisper": (
        "Whisper",
        "ForConditionalGeneration",
        {**_SOUND, "num_mel_bins": BINS, "max_source_positions": FRAMES // 2, "suppress_tokens": None},
    ),
    "speech2text": (
        "Speech2Text",
        "ForConditionalGeneration",
        {**_SOUND, "input_feat_per_channel": BINS, "max_source_positions": 200, "conv_channels": 32},
    ),
}
ENCODER_ARCHITECTURES = tuple(_ARCHITECTURES)
OF_SOUND = ("whisper", "speech2text")


def make_encoder_model(name: str = "t5", *, seed: int = 0, **settings: Any) -> Any:
    """Two layers, 32 wide, a vocabulary of 200 tokens and at most 200 positions, in evaluation mode."""
    import transformers

    kind, ending, further = _ARCHITECTURES[name]
    config = getattr(transformers, f"{kind}Config")(
        **{"vocab_size": VOCABULARY, "pad_token_id": 0, **further, **settings}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return getattr(transformers, kind + ending)(config).eval()


def make_sources(name: str = "t5", rows: int = 2, length: int = 11, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """What an encoder reads; every row but the first ends with padding where the model reads a mask."""
    generator = torch.Generator().manual_seed(seed)
    if name == "whisper":
        return {"input_features": torch.randn(rows, BINS, FRAMES, generator=generator)}
    if name == "speech2text":
        length = 4 * length
        content = torch.randn(rows, length, BINS, generator=generator)
    else:
        content = torch.randint(3, VOCABULARY, (rows, length), generator=generator)
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[1:, length - length // 3 :] = 0
    content[mask == 0] = 0
    return {"input_features" if name == "speech2text" else "input_ids": content, "attention_mask": mask}
