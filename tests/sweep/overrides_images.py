"""Settings of architectures that find objects or segments in images, by class or by family, as in overrides.py."""

from __future__ import annotations

from typing import Any

_QUERIES = {"num_queries": 10}
# Stages of 16, 32, 64 and 64 channels, as the rules of tiny.py make them.
_RESNET = {"model_type": "resnet", "hidden_sizes": [16, 32, 64, 64], "embedding_size": 16, "depths": [1, 1, 1, 1]}
_LAST, _LAST_THREE = {"out_features": ["stage4"]}, {"out_features": ["stage2", "stage3", "stage4"]}
_ALL = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
_NO_TIMM = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "backbone_kwargs": None}
_DETR = {**_NO_TIMM, **_QUERIES, "d_model": 32, "backbone_config": {**_RESNET, **_LAST}}
_DEFORMABLE = {**_DETR, "backbone_config": {**_RESNET, **_LAST_THREE}, "disable_custom_kernels": True}
_RT_DETR = {
    **_QUERIES,
    "encoder_in_channels": [32, 64, 64],
    "encoder_hidden_dim": 32,
    "decoder_in_channels": [32, 32, 32],
    "backbone_config": {"out_indices": [2, 3, 4]},
}
_HGNET = {
    "model_type": "hgnet_v2",
    "hidden_sizes": [16, 32, 32, 64],
    "stem_channels": [3, 8, 16],
    "stage_in_channels": [16, 16, 32, 32],
    "stage_mid_channels": [8, 8, 16, 16],
    "stage_out_channels": [16, 32, 32, 64],
    "stage_numb_of_layers": [1, 1, 1, 1],
}
_D_FINE = {
    **_RT_DETR,
    "encoder_in_channels": [32, 32, 64],
    "backbone_config": {**_HGNET, "out_features": ["stage2", "stage3", "stage4"]},
}
_LAYOUT = {**_D_FINE, "backbone_config": {**_HGNET, **_ALL}, "num_prototypes": 8, "mask_feature_channels": [16, 16]}
_SWIN = {
    "model_type": "swin",
    "image_size": 64,
    "patch_size": 4,
    "window_size": 4,
    "embed_dim": 16,
    "depths": [1, 1, 1, 1],
    "num_heads": [2, 2, 4, 4],
    **_ALL,
}
_MASKS = {
    **_QUERIES,
    "backbone_config": _SWIN,
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "conv_dim": 32,
    "mask_dim": 32,
    "dim_feedforward": 64,
    "encoder_feedforward_dim": 64,
    "decoder_layers": 3,
    "text_encoder_width": 32,
    "text_encoder_num_layers": 1,
    "text_encoder_vocab_size": 128,
}
_BEIT = {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "patch_size": 8, "auxiliary_channels": 16}
_DPT = {
    "num_hidden_layers": 4,
    "backbone_out_indices": [0, 1, 2, 3],
    "neck_hidden_sizes": [16, 16, 32, 32],
    "patch_size": 8,
    "fusion_hidden_size": 16,
}
_EOMT = {**_QUERIES, "num_hidden_layers": 3, "num_blocks": 1, "patch_size": 8}

IMAGE_OVERRIDES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("detr", "table-transformer", "conditional_detr"), _DETR),
    "dab-detr": _DETR | {"hidden_size": 32},
    "deformable_detr": _DEFORMABLE,
    **dict.fromkeys(("rt_detr", "rt_detr_v2"), _RT_DETR),
    **dict.fromkeys(("d_fine", "deimv2"), _D_FINE),
    "pp_doclayout_v2": _D_FINE,
    **dict.fromkeys(("pp_doclayout_v3", "pp_doclayout_v4"), _LAYOUT),
    "lw_detr": {
        **_QUERIES,
        "group_detr": 2,
        "projector_scale_factors": [1.0],
        "backbone_config": {
            "image_size": 64,
            "patch_size": 8,
            "num_windows": 4,
            "num_hidden_layers": 4,
            "window_block_indices": [0, 2],
            "out_indices": [2, 4],
        },
    },
    **dict.fromkeys(("mask2former", "oneformer"), _MASKS),
    "maskformer": {"backbone_config": _SWIN, "decoder_config": {"d_model": 32, **_QUERIES}},
    **dict.fromkeys(("BeitForSemanticSegmentation", "Data2VecVisionForSemanticSegmentation"), _BEIT),
    "DPTForSemanticSegmentation": _DPT,
    "Tipsv2DptForSemanticSegmentation": _DPT,
    "UperNetForSemanticSegmentation": {
        "backbone_config": {**_RESNET, **_ALL},
        "auxiliary_in_channels": 64,
        "auxiliary_channels": 16,
    },
    "Sapiens2ForSemanticSegmentation": {"head_config": {"upsample_out_channels": [16], "conv_out_channels": [16]}},
    **dict.fromkeys(("eomt", "eomt_dinov3", "videomt"), _EOMT),
}
# Where stages halve an image of 32 pixels until nothing is left.
IMAGE_SIZES = dict.fromkeys(
    "detr table-transformer conditional_detr dab-detr deformable_detr rt_detr rt_detr_v2 d_fine deimv2 pp_doclayout_v2 "
    "pp_doclayout_v3 pp_doclayout_v4 lw_detr mask2former oneformer maskformer upernet rf_detr".split(),
    64,
)
