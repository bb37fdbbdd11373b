"""CLIPA, and OpenVision, which has its towers with longer captions."""

import dataclasses

from flaxclip.models.clip import CLIPConfig
from flaxclip.models.inputs import IMAGENET_MEAN, IMAGENET_STD, ImageTransform, TokenizerConfig
from flaxclip.models.spec import ModelSpec
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.variant_tables.towers import text_tower
from flaxclip.models.vision_transformer import ViTConfig


def _clipa(
    image_size: int, width: int, layers: int, heads: int, text: TextConfig, embed_dim: int,
    mlp_ratio: float = 4.0, patch_size: int = 14, norm_eps: float = 1e-5,
) -> ModelSpec:  # fmt: skip
    vision = ViTConfig(
        image_size, patch_size, width, layers, heads, mlp_ratio, "gelu", norm_eps, "clipa"
    )
    return ModelSpec(
        CLIPConfig(
            vision,
            dataclasses.replace(text, vocab_size=32_000, family="clipa"),
            embed_dim,
        ),
        ImageTransform("squash", "bilinear", mean=IMAGENET_MEAN, std=IMAGENET_STD),
        TokenizerConfig("bert_uncased"),
    )


# Li et al. 2023; open_clip's `model_configs/`, and `pretrained.py` for the preprocessing.
_CLIPA = {
    "ViT-L-14-CLIPA": _clipa(224, 1024, 24, 16, text_tower(768, context=32), 768),
    "ViT-L-14-CLIPA-336": _clipa(336, 1024, 24, 16, text_tower(768, context=32), 768),
    "ViT-H-14-CLIPA": _clipa(224, 1280, 32, 16, text_tower(1024, 24, 32), 1024),
    "ViT-H-14-CLIPA-336": _clipa(336, 1280, 32, 16, text_tower(1024, 24, 32), 1024),
    "ViT-bigG-14-CLIPA": _clipa(224, 1664, 48, 16, text_tower(1280, 32, 32), 1280, 8192 / 1664),
    "ViT-bigG-14-CLIPA-336": _clipa(336, 1664, 48, 16, text_tower(1280, 32, 32), 1280, 8192 / 1664),
}

_Tower = tuple[int, int, int, int]

_OPENVISION_SIZES: dict[str, tuple[_Tower, _Tower, dict[int, tuple[int, ...]]]] = {
    # Image tower: width, layers, heads, width of the MLP. Text tower: likewise. Patches and sides.
    "tiny": ((192, 12, 3, 768), (192, 12, 3, 768), {8: (160, 224, 384), 16: (160, 224, 384)}),
    "small": ((384, 12, 6, 1536), (384, 12, 6, 1536), {8: (160, 224, 384), 16: (160, 224, 384)}),
    "base": ((768, 12, 12, 3072), (512, 12, 8, 2048), {8: (160, 224, 384), 16: (160, 224, 384)}),
    "large": ((1024, 24, 16, 4096), (768, 12, 12, 3072), {14: (84, 224, 336)}),
    "so400m": ((1152, 27, 16, 4304), (1152, 27, 16, 4304), {14: (84, 224, 384)}),
    "huge": ((1280, 32, 16, 5120), (1024, 24, 16, 4096), {14: (84, 224)}),
}


def _openvision(image_size: int, patch_size: int, vision: _Tower, text: _Tower) -> ModelSpec:
    width, layers, heads, mlp_width = vision
    text_width, text_layers, text_heads, text_mlp_width = text
    tower = TextConfig(
        context_length=80, width=text_width, layers=text_layers, heads=text_heads,
        mlp_ratio=text_mlp_width / text_width, activation="gelu_tanh", norm_eps=1e-6,
    )  # fmt: skip
    return _clipa(
        image_size, width, layers, heads, tower, text_width, mlp_width / width, patch_size, 1e-6
    )


# Li et al. 2025, "OpenVision"; UCSC-VLAA/OpenVision, `src/convert_upload/open_clip/model_configs/`.
# OpenVision 2 has no text towers.
_OPENVISION = {
    f"openvision-vit-{size}-patch{patch}-{side}": _openvision(side, patch, vision, text)
    for size, (vision, text, patches) in _OPENVISION_SIZES.items()
    for patch, sides in patches.items()
    for side in sides
}

CLIPA: dict[str, ModelSpec] = {**_CLIPA, **_OPENVISION}
