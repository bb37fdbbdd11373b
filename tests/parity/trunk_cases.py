"""What both sides of a comparison of image towers start from: sizes. NumPy alone.

As in `clip_cases`, every axis has a length of its own.
"""

from typing import Any

TEXT = {
    "context_length": 13,
    "vocab_size": 97,
    "width": 40,
    "layers": 2,
    "heads": 5,
    "mlp_ratio": 3.0,
}
EMBED_DIM = 28
BATCH_SIZE = 6

_EVA = {"norm_eps": 1e-6, "global_pool": "token"}
_EVA02 = _EVA | {
    "img_size": 36, "patch_size": 12, "embed_dim": 24, "depth": 3, "num_heads": 2,
    "mlp_ratio": 4 * 2 / 3, "qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True,
    "scale_attn_inner": True, "use_rot_pos_emb": True,
}  # fmt: skip
_PE = {
    "img_size": 40, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4,
    "mlp_ratio": 2.5, "norm_eps": 1e-5, "global_pool": "map", "attn_type": "rope",
    "use_pre_transformer_norm": True, "use_rot_pos_emb": True, "rope_grid_indexing": "xy",
    "attn_pool_num_heads": 8, "attn_pool_mlp_ratio": 4.0,
}  # fmt: skip

EVA_CASES: dict[str, dict[str, Any]] = {
    # Of another resolution than the one that rotary embeddings were learned at.
    "pe": _PE | {"ref_feat_shape": (4, 4), "rope_grid_offset": 1.0},
    "pe_patches": _PE | {"ref_feat_shape": (5, 5), "class_token": False},
    "eva01": _EVA | {
        "img_size": 32, "patch_size": 8, "embed_dim": 30, "depth": 2, "num_heads": 3,
        "mlp_ratio": 2.5,
    },
    "eva02": _EVA02 | {"ref_feat_shape": (4, 4)},
    "eva02_e": _EVA | {
        "img_size": 32, "patch_size": 8, "embed_dim": 30, "depth": 3, "num_heads": 3,
        "mlp_ratio": 2.5, "use_post_norm": True,
    },
}  # fmt: skip
"""Arguments of timm's `Eva`, but for `norm_eps`, that of its norms."""

CONVNEXT_CASES: dict[str, dict[str, Any]] = {
    "convnext": {
        "image_size": 64, "dims": (6, 12, 24, 48), "depths": (1, 2, 3, 1), "norm_eps": 1e-5,
        "proj": "linear",
    },
    "convnext_mlp": {
        "image_size": 96, "dims": (5, 10, 20, 40), "depths": (2, 1, 2, 2), "norm_eps": 1e-6,
        "proj": "mlp",
    },
}  # fmt: skip
"""Arguments of timm's `ConvNeXt`, but for the image's size and open_clip's projection."""

TIMM_VIT_CASES: dict[str, dict[str, Any]] = {
    "mobileclip_vit": {
        "img_size": 36, "patch_size": 12, "embed_dim": 30, "depth": 2, "num_heads": 3,
        "mlp_ratio": 2.5, "norm_eps": 1e-5, "pre_norm": True, "global_pool": "token",
    },
}  # fmt: skip
"""Arguments of timm's `VisionTransformer`, but for `norm_eps`; beside a text tower without mask."""

OWN_CASES: dict[str, dict[str, Any]] = {
    "clipa": {
        "vision": {
            "image_size": 36, "patch_size": 12, "width": 60, "layers": 2, "head_width": 20,
            "mlp_ratio": 2.5, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True,
        },
        "text": {"no_causal_mask": True, "pool_type": "last"},
    },
}  # fmt: skip
"""Settings of open_clip's own towers; those of the text tower add to `TEXT`."""

FASTVIT_CASES: dict[str, dict[str, Any]] = {
    "fastvit": {"image_size": 64, "width": 12, "layers": (1, 2, 1, 2), "mlp_ratio": 2.5},
    "fastvit_large": {"image_size": 128, "width": 4, "layers": (1, 1, 1, 2, 1), "mlp_ratio": 3.0},
}
"""Sizes of timm's `FastVit`, with the other settings of MobileCLIP-S0 or, if large, -S3."""

MOBILE_VIT_CASES: dict[str, dict[str, Any]] = {
    "mobile_vit": {"image_size": 48, "width": 24, "layers": 2, "heads": 3},
}
"""Sizes of timm's `vit_base_mci_224`."""

VITAMIN_CASES: dict[str, dict[str, Any]] = {
    "vitamin": {
        "image_size": 48, "width": 30, "layers": 2, "heads": 3, "stem_width": 6, "positions": True,
    },
    "vitamin_xl": {
        "image_size": 64, "width": 40, "layers": 1, "heads": 2, "stem_width": 8,
        "positions": False,
    },
}  # fmt: skip
"""Sizes of timm's ViTamin."""

CASES: dict[str, int] = {
    **{name: case["img_size"] for name, case in EVA_CASES.items()},
    **{name: case["img_size"] for name, case in TIMM_VIT_CASES.items()},
    **{name: case["image_size"] for name, case in CONVNEXT_CASES.items()},
    **{name: case["vision"]["image_size"] for name, case in OWN_CASES.items()},
    **{
        name: case["image_size"]
        for cases in (FASTVIT_CASES, MOBILE_VIT_CASES, VITAMIN_CASES)
        for name, case in cases.items()
    },
}
"""Name of each case, and the side of its images."""

STEPS = (
    "convnext", "pe", "eva02", "eva02_e", "clipa", "fastvit", "fastvit_large", "mobile_vit",
    "vitamin",
)  # fmt: skip
"""Cases of which one AdamW step is compared, too."""
# With so large an epsilon, a change tells a gradient's size, not only its sign.
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-2, "weight_decay": 0.2}
