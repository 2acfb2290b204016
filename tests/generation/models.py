"""Small causal language models of several architectures, random weights from a seed, and prompts for them."""

from __future__ import annotations

from typing import Any

import torch

VOCABULARY = 200
# By name the class, and what its configuration has besides the usual sizes.
_ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {}),
    "llama": ("Llama", {"num_key_value_heads": 2}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2}),
    "qwen3": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 8}),
    "mistral": ("Mistral", {"num_key_value_heads": 2, "sliding_window": 8}),
    "gemma": ("Gemma", {"num_key_value_heads": 2, "head_dim": 8}),
    "gemma2": ("Gemma2", {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8}),
    "opt": ("OPT", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "gpt_neox": ("GPTNeoX", {}),
    "phi": ("Phi", {"num_key_value_heads": 2}),
    "bloom": ("Bloom", {}),
}
ARCHITECTURES = tuple(_ARCHITECTURES)


def make_language_model(name: str = "llama", *, seed: int = 0, **settings: Any) -> Any:
    """Two layers, 32 wide, a vocabulary of 200 tokens and at most 200 positions, in evaluation mode."""
    import transformers

    kind, further = _ARCHITECTURES[name]
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 200,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    config = getattr(transformers, f"{kind}Config")(**{**sizes, **further, **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        suffix = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
        return getattr(transformers, kind + suffix)(config).eval()


def make_prompts(rows: int = 2, length: int = 9, *, padding: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    """Token ids and mask of shape (rows, length); every row but the first begins with ``padding`` pads."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    if padding:
        mask[1:, :padding] = 0
        ids[1:, :padding] = 0
    return {"input_ids": ids, "attention_mask": mask}
