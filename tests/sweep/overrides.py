"""What the rules of tiny.py do not know: settings and inputs of single architectures, by class or by family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sweep.overrides_images import IMAGE_OVERRIDES, IMAGE_SIZES

_MISTRAL_4 = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "kv_lora_rank": 16, "q_lora_rank": 16}
_DEEPSEEK = {**_MISTRAL_4, "n_group": 1, "topk_group": 1, "head_dim": 8, "num_key_value_heads": 4}
_PERCEIVER = {"num_latents": 8, "d_latents": 32, "d_model": 32, "num_self_attends_per_block": 2, "num_blocks": 1}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 8}
_HYBRID = {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False, "mamba_d_state": 8}
_SWIN = {"image_size": 32, "patch_size": 4, "window_size": 4, "depths": [2, 2], "num_heads": [2, 4], "embed_dim": 16}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_QWEN_3 = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
_ONE_CODEBOOK = {"num_codebooks": 1}
_WHISPER = {"max_source_positions": 30, "num_mel_bins": 16, "max_target_positions": 20}
_RESNET_V2 = {"hidden_sizes": [32, 32, 64, 64], "embedding_size": 32, "num_groups": 8}
_REFORMER = {
    "axial_pos_shape": [8, 20],
    "axial_pos_embds_dim": [8, 24],
    "attn_layers": ["local", "lsh"],
    "local_attn_chunk_length": 4,
    "lsh_attn_chunk_length": 4,
    "num_buckets": 4,
    "hash_seed": 0,
}

OVERRIDES: dict[str, dict[str, Any]] = {
    **IMAGE_OVERRIDES,
    "axk1": _DEEPSEEK,
    "deepseek_v2": _DEEPSEEK | {"num_experts_per_tok": 2},
    "deepseek_v3": _DEEPSEEK,
    "mistral4": _MISTRAL_4 | {"n_group": 1, "topk_group": 1, "num_key_value_heads": 4, "head_dim": 16},
    **dict.fromkeys(("deepseek_v32", "glm_moe_dsa", "longcat_flash", "youtu"), _DEEPSEEK),
    **dict.fromkeys(("bamba", "granitemoehybrid"), _MAMBA),
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8, "chunk_size": 8},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1, "ssm_state_size": 8, "chunk_size": 8},
    "ernie4_5_moe": {"moe_k": 2, "moe_num_experts": 4},
    "codegen": {"rotary_dim": 4},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "bit": _RESNET_V2,
    "bros": {"dim_bbox": 8, "hidden_size": 64, "num_attention_heads": 4},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "num_hidden_layers": 2,
        "rope_parameters": {"sliding_attention": _ROPE, "full_attention": _ROPE},
    },
    "donut-swin": _SWIN,
    "swin": _SWIN,
    "swinv2": _SWIN,
    "efficientformer": {
        "hidden_sizes": [16, 32, 32, 64],
        "dim": 64,
        "depths": [1, 1, 1, 2],
        "num_meta3d_blocks": 1,
        "image_size": 224,
        "hidden_size": 64,
    },
    "efficientnet": {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640, "image_size": 64},
    "esm": {"vocab_size": 128, "mask_token_id": 5, "pad_token_id": 0},
    "esmc": {"vocab_size": 128},
    "funnel": {"block_sizes": [1, 1], "block_repeats": [1, 1], "num_decoder_layers": 1},
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": 8},
    "hgnet_v2": {
        "hidden_sizes": [16, 32, 32, 64],
        "stem_channels": [3, 8, 16],
        "stage_in_channels": [16, 16, 32, 32],
        "stage_mid_channels": [8, 8, 16, 16],
        "stage_out_channels": [16, 32, 32, 64],
        "stage_numb_of_layers": [1, 1, 1, 1],
    },
    "hiera": {"image_size": [64, 64], "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "moe_topk": 2, "num_experts": 4},
    # Transformers 4.52 takes the root of the size of a head as a whole number, but not while it is traced.
    "imagegpt": {"n_head": 2},
    "jamba": _HYBRID | {"expert_layer_period": 2, "expert_layer_offset": 1, "num_hidden_layers": 2},
    "layoutlmv3": {"input_size": 32, "patch_size": 8, "coordinate_size": 6, "shape_size": 4},
    "ministral": {"head_dim": 8},
    "lilt": {"hidden_size": 48, "max_2d_position_embeddings": 1024},
    "LongformerForQuestionAnswering": {"sep_token_id": 9, "attention_window": [8, 8]},
    "lxmert": {"num_qa_labels": 10, "visual_feat_dim": 16},
    "mobilevitv2": {"image_size": 64, "base_attn_unit_dims": [16, 16, 16], "width_multiplier": 0.25},
    "nemotron": {"num_key_value_heads": 2},
    "encoder-decoder": {"decoder": {"is_decoder": True, "add_cross_attention": True}},
    "PerceiverForSequenceClassification": _PERCEIVER,
    "PerceiverForMaskedLM": _PERCEIVER,
    "PerceiverModel": _PERCEIVER,
    "PerceiverForImageClassificationLearned": {**_PERCEIVER, "d_model": 64, "image_size": 16},
    "PerceiverForImageClassificationFourier": {
        **_PERCEIVER,
        "d_model": 261,
        "image_size": 32,
        "num_cross_attention_heads": 1,
    },
    "PerceiverForImageClassificationConvProcessing": {
        **_PERCEIVER,
        "d_model": 322,
        "image_size": 56,
        "num_cross_attention_heads": 1,
    },
    **dict.fromkeys(("qwen3_next", "qwen3_5_text"), _QWEN_3),
    "qwen3_5": {"text_config": _QWEN_3},
    "reformer": _REFORMER,
    "ReformerModelWithLMHead": _REFORMER | {"is_decoder": True},
    "shieldgemma2": {},
    "siglip2": {"vision_config": {"num_patches": 16, "patch_size": 8}},
    "t5": {"decoder_start_token_id": 0},
    "textnet": {
        "image_size": [64, 64],
        "stem_out_channels": 8,
        "hidden_sizes": [8, 16, 16, 32, 32],
        "conv_layer_kernel_sizes": [[[3, 3]], [[3, 3]], [[3, 3]], [[3, 3]]],
        "conv_layer_strides": [[2], [2], [2], [2]],
    },
    "transfo-xl": {"cutoffs": [10, 50, 80], "d_embed": 32, "div_val": 1, "mem_len": 8, "clamp_len": 15},
    "vit_hybrid": {
        "backbone_config": {**_RESNET_V2, "model_type": "bit", "out_features": ["stage3"], "depths": [1, 1, 1, 1]}
    },
    "wav2vec2-bert": {"feature_projection_input_dim": 16},
    "whisper": _WHISPER,
    "WhisperForCausalLM": _WHISPER | {"max_target_positions": 160},
    # One sequence of codes in place of four, each a row.
    **dict.fromkeys(("MusicgenForCausalLM", "MusicgenMelodyForCausalLM"), _ONE_CODEBOOK),
    "xmod": {"languages": ["en_XX", "de_DE"], "default_language": "en_XX"},
    "zamba": _HYBRID | {"num_hidden_layers": 5, "mamba_dt_rank": 4},
    "zamba2": {
        "num_hidden_layers": 2,
        "layers_block_type": ["mamba", "hybrid"],
        "n_mamba_heads": 8,
        "mamba_d_state": 8,
        "mamba_headdim": 8,
        "mamba_ngroups": 1,
        "chunk_size": 8,
        "num_mem_blocks": 1,
        "use_mem_eff_path": False,
    },
    "audio-spectrogram-transformer": {"max_length": 40, "num_mel_bins": 16, "patch_size": 8},
}
# What a configuration needs to be made at all.
REQUIRED: dict[str, dict[str, Any]] = {
    "EsmConfig": {"vocab_size": 128, "mask_token_id": 5, "pad_token_id": 0},
    "EncoderDecoderConfig": {"encoder": {"model_type": "bert"}, "decoder": {"model_type": "bert"}},
}


def _boxes(config: Any, ids: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
    corners = torch.randint(0, 500, (*ids.shape, 2), generator=generator)
    sizes = torch.randint(1, 400, (*ids.shape, 2), generator=generator)
    return {"bbox": torch.cat([corners, corners + sizes], dim=-1)}


def _relative_boxes(config: Any, ids: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"bbox": _boxes(config, ids, generator)["bbox"] / 1000}


def _document(config: Any, ids: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
    pixels = torch.rand(len(ids), 3, config.input_size, config.input_size, generator=generator)
    return _boxes(config, ids, generator) | {"pixel_values": pixels}


def _image_regions(config: Any, ids: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
    features = torch.randn(len(ids), 6, config.visual_feat_dim, generator=generator)
    return {"visual_feats": features, "visual_pos": torch.rand(len(ids), 6, 4, generator=generator)}


def _three_separators(config: Any, ids: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
    ids = ids.clone()
    ids[:, [3, 4, -1]] = config.sep_token_id
    return {"input_ids": ids}


def _table(config: Any, ids: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
    types = [torch.randint(0, min(size, 5), ids.shape, generator=generator) for size in config.type_vocab_sizes]
    return {"token_type_ids": torch.stack(types, dim=-1)}


def _patches(config: Any, pixels: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """SigLIP 2 takes patches: (batch, patches, values of a patch), with a mask and the grid of each image."""
    vision = config.vision_config
    batch, side = len(pixels), int(vision.num_patches**0.5)
    values = torch.rand(batch, side * side, 3 * vision.patch_size**2, generator=generator)
    mask = torch.ones(batch, side * side, dtype=torch.long)
    return {
        "pixel_values": values,
        "pixel_attention_mask": mask,
        "spatial_shapes": torch.tensor([[side, side]] * batch),
    }


def _task(config: Any, pixels: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """The words of what is asked for ("the task is panoptic"), of a fixed length."""
    return {"task_inputs": torch.randint(10, 120, (len(pixels), config.task_seq_len), generator=generator)}


def _log_mel(name: str, bands: str, *, frames_last: bool, frames: str = "") -> Callable[..., dict[str, torch.Tensor]]:
    def make(config: Any, batch: int, size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        length = _FRAMES[frames](config) if frames else size
        shape = (getattr(config, bands), length) if frames_last else (length, getattr(config, bands))
        inputs = {name: torch.randn(batch, *shape, generator=generator)}
        if not frames:
            inputs["attention_mask"] = torch.ones(batch, length, dtype=torch.long)
        return inputs

    return make


_FRAMES = {"max_length": lambda config: config.max_length, "positions": lambda config: 2 * config.max_source_positions}

# Classes whose forward names a mask that is of no use, or not of one entry for each token.
WITHOUT_MASK: tuple[str, ...] = ()
# Inputs beside token ids or pixels, by model type.
FURTHER_INPUTS: dict[str, Callable[[Any, torch.Tensor, torch.Generator], dict[str, torch.Tensor]]] = {
    "bros": _relative_boxes,
    "layoutlm": _boxes,
    "layoutlmv3": _document,
    "lilt": _boxes,
    "lxmert": _image_regions,
    "siglip2": _patches,
    "longformer": _three_separators,
    "oneformer": _task,
    "udop": _relative_boxes,
    "tapas": _table,
}
# Spectrograms, by model type.
FEATURES: dict[str, Callable[[Any, int, int, torch.Generator], dict[str, torch.Tensor]]] = {
    "audio-spectrogram-transformer": _log_mel("input_values", "num_mel_bins", frames_last=False, frames="max_length"),
    "wav2vec2-bert": _log_mel("input_features", "feature_projection_input_dim", frames_last=False),
    "whisper": _log_mel("input_features", "num_mel_bins", frames_last=True, frames="positions"),
}
# Where the usual example is too short or too long.
EXAMPLE_SIZES: dict[str, int] = {**IMAGE_SIZES, "textnet": 64, "hiera": 64, "efficientformer": 224}
