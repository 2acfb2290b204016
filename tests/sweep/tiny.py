"""A tiny model of any class: its configuration shrunk by rules, counted on the meta device, then allocated."""

from __future__ import annotations

import copy
from typing import Any

import torch

LARGEST = 20_000_000
LAYERS = 2
# With a period of layer kinds (three of one, then one of another), all kinds occur.
LAYERS_OF_KINDS = 4

# By the name of the entry, wherever it stands; entries that a configuration does not have are ignored.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(
        "hidden_size d_model dim n_embd emb_dim embed_dim embedding_size word_embed_proj_dim d_embed "
        "encoder_hidden_size decoder_hidden_size hidden_dim_size rnn_hidden_size lm_head_hidden_size "
        "pooler_hidden_size entity_emb_size output_hidden_size conv_out_dim model_dim".split(),
        32,
    ),
    **dict.fromkeys(
        "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
        "encoder_num_attention_heads num_self_attention_heads num_cross_attention_heads mamba_num_heads".split(),
        4,
    ),
    **dict.fromkeys("num_key_value_heads num_kv_heads".split(), 2),
    **dict.fromkeys("head_dim attention_head_size attention_head_dim d_kv d_head kv_channels".split(), 8),
    **dict.fromkeys(
        "intermediate_size ffn_dim d_ff n_inner d_inner hidden_dim encoder_ffn_dim decoder_ffn_dim feed_forward_size "
        "ffn_hidden_size shared_expert_intermediate_size intermediate_size_mlp dff".split(),
        64,
    ),
    "moe_intermediate_size": 32,
    **dict.fromkeys(
        "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers "
        "num_decoder_layers l_layers x_layers r_layers num_blocks_layers".split(),
        LAYERS,
    ),
    **dict.fromkeys(
        "vocab_size vocab_size_per_layer_input entity_vocab_size pronunciation_vocab_size shape_vocab_size".split(), 128
    ),
    **dict.fromkeys("max_position_embeddings n_positions max_seq_len max_seq_length max_sequence_length".split(), 160),
    **dict.fromkeys("num_experts num_local_experts n_routed_experts moe_num_experts".split(), 4),
    **dict.fromkeys("num_experts_per_tok num_experts_per_token moe_top_k top_k_experts".split(), 2),
    **dict.fromkeys("initializer_range init_std".split(), 0.2),
    **dict.fromkeys("sliding_window attention_window window attention_chunk_size local_attention".split(), 8),
    "image_size": 32,
    "num_channels": 3,
    "stem_width": 16,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "block_size": 4,
    "bottleneck_size": 16,
}
_SPECIAL_TOKENS = {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "cls_token_id": 3,
    "sep_token_id": 4,
}
_KINDS_OF_LAYERS = ("layer_types", "layers_block_type", "mlp_layer_types", "no_rope_layers")


def tiny_config(model_class: Any, family: str) -> Any:
    """The class's configuration in its smallest usable form."""
    from sweep.overrides import OVERRIDES

    config_class = model_class.config_class
    settings = shrink(_defaults(config_class))
    override = OVERRIDES.get(model_class.__name__, OVERRIDES.get(family, {}))
    merge(settings, override)
    return config_class(**{name: value for name, value in settings.items() if value != "default"})


def tiny_model(model_class: Any, family: str, seed: int = 0) -> torch.nn.Module:
    """The model in evaluation mode, with random weights from the seed.

    Raises
    ------
    ValueError
        If it would have more than LARGEST parameters: it is built on the meta device first.
    """
    config = tiny_config(model_class, family)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in model_class(copy.deepcopy(config)).parameters())
    if count > LARGEST:
        raise ValueError(f"{count:,} parameters even in its tiny form; give it smaller sizes in overrides.py")
    torch.manual_seed(seed)
    model = model_class(config)
    return model.float().eval()


def shrink(defaults: dict[str, Any]) -> dict[str, Any]:
    """Those entries of a configuration that have to change, sub-configurations included."""
    changed: dict[str, Any] = {}
    kinds = any(name in defaults for name in _KINDS_OF_LAYERS)
    for name, value in defaults.items():
        if isinstance(value, dict) and (name.endswith("_config") or "model_type" in value):
            kept = {"model_type": value["model_type"]} if value.get("model_type") else {}
            changed[name] = {**kept, **shrink(value)}
        elif isinstance(value, dict) and "mrope_section" in value:
            # Three parts of half a head.
            changed[name] = {**value, "mrope_section": [2, 1, 1]}
        elif name in _SPECIAL_TOKENS:
            changed[name] = _SPECIAL_TOKENS[name]
        elif name in _SIZES and isinstance(value, (int, float)) and not isinstance(value, bool):
            size = LAYERS_OF_KINDS if kinds and name == "num_hidden_layers" else _SIZES[name]
            changed[name] = min(size, value) if isinstance(size, int) else size
    _make_consistent(defaults, changed)
    _shrink_lists(defaults, changed)
    return changed


def merge(settings: dict[str, Any], override: dict[str, Any]) -> None:
    """Write the override's entries into the settings, dictionaries entry by entry."""
    for name, value in override.items():
        if isinstance(value, dict) and isinstance(settings.get(name), dict):
            merge(settings[name], value)
        else:
            settings[name] = value


def _defaults(config_class: Any) -> dict[str, Any]:
    from sweep.overrides import REQUIRED

    return config_class(**REQUIRED.get(config_class.__name__, {})).to_dict()


def _make_consistent(defaults: dict[str, Any], changed: dict[str, Any]) -> None:
    heads = changed.get("num_attention_heads")
    for name in ("num_key_value_heads", "num_kv_heads"):
        if heads and defaults.get(name) == defaults.get("num_attention_heads"):
            changed[name] = heads


def _shrink_lists(defaults: dict[str, Any], changed: dict[str, Any]) -> None:
    """Lists with an entry for each stage keep their length; those for each layer get the new number of layers."""
    layers = defaults.get("num_hidden_layers")
    for name, value in defaults.items():
        if not isinstance(value, (list, tuple)) or not value or not all(isinstance(v, int) for v in value):
            continue
        if name in ("depths", "layers", "num_blocks", "stage_num_blocks"):
            changed[name] = [1] * len(value)
        elif name in ("hidden_sizes", "embed_dims", "encoder_hidden_dims", "neck_hidden_sizes"):
            changed[name] = [16 * 2 ** min(stage, 2) for stage in range(len(value))]
        elif name in ("num_heads", "num_attention_heads", "encoder_num_heads"):
            changed[name] = [min(2 ** (stage + 1), 4) for stage in range(len(value))]
        elif name in ("conv_dim", "tdnn_dim"):
            changed[name] = [16] * len(value)
        elif name in ("attention_window", "sliding_window"):
            changed[name] = [8] * changed.get("num_hidden_layers", changed.get("encoder_layers", LAYERS))
        elif layers and len(value) == layers and name not in ("conv_kernel", "conv_stride"):
            changed[name] = list(value)[: changed["num_hidden_layers"]]
