"""Models whose image towers are in `models/trunks/`."""

import dataclasses
import math
from typing import Literal

from flaxclip.models.clip import CLIPConfig
from flaxclip.models.inputs import (
    CENTRED_MEAN,
    CENTRED_STD,
    ImageTransform,
    TokenizerConfig,
)
from flaxclip.models.spec import ModelSpec
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.trunks.convnext import ConvNeXtConfig
from flaxclip.models.trunks.fastvit import FastViTConfig
from flaxclip.models.trunks.mobile_vit import MobileViTConfig
from flaxclip.models.trunks.trunk import TrunkConfig
from flaxclip.models.trunks.vitamin import ViTaminConfig
from flaxclip.models.variant_tables.towers import text_tower, vit
from flaxclip.models.vision_transformer import ViTConfig


def _pe(
    image_size: int, patch_size: int, width: int, layers: int, heads: int, text: TextConfig,
    embed_dim: int, mlp_ratio: float = 4.0, family: str = "pe",
) -> ModelSpec:  # fmt: skip
    vision = dataclasses.replace(
        vit(image_size, patch_size, width, layers, heads, mlp_ratio),
        family=family,
        rotary_grid=image_size // patch_size,
    )
    preprocess = ImageTransform("squash", "bilinear", mean=CENTRED_MEAN, std=CENTRED_STD)
    return ModelSpec(CLIPConfig(vision, text, embed_dim), preprocess)


# Bolya et al. 2025, table 13; open_clip's `model_configs/` and `pretrained.py`, timm's `models/
# eva.py`. The preprocessing is that of its weights: their tag `meta` has it, the names have not.
_PE = {
    "PE-Core-T-16-384": _pe(384, 16, 192, 12, 3, text_tower(512, context=32), 512),
    "PE-Core-S-16-384": _pe(384, 16, 384, 12, 6, text_tower(512, context=32), 512),
    "PE-Core-B-16": _pe(224, 16, 768, 12, 12, text_tower(1024, 24, 32), 1024),
    "PE-Core-L-14-336": _pe(336, 14, 1024, 24, 16, text_tower(1024, 24, 32), 1024),
    "PE-Core-bigG-14-448": _pe(
        448, 14, 1536, 50, 16, text_tower(1280, 24, 72), 1280, 8960 / 1536, "pe_patches"
    ),
}


def _eva(
    vision: ViTConfig, text: TextConfig, embed_dim: int, family: str, rotary_grid: int | None = None
) -> ModelSpec:
    vision = dataclasses.replace(vision, norm_eps=1e-6, family=family, rotary_grid=rotary_grid)
    return ModelSpec(CLIPConfig(vision, text, embed_dim))


# Sun et al. 2023, table 1; open_clip's `model_configs/`, timm's `models/eva.py`. Rotary embeddings
# were learned at 224 pixels in patches of 14.
_EVA = {
    "EVA01-g-14": _eva(vit(224, 14, 1408, 40, 16, 6144 / 1408), text_tower(768), 1024, "eva01"),
    "EVA01-g-14-plus": _eva(
        vit(224, 14, 1408, 40, 16, 6144 / 1408), text_tower(1024, 24), 1024, "eva01"
    ),
    "EVA02-B-16": _eva(vit(224, 16, 768, 12, 12, 2048 / 768), text_tower(512), 512, "eva02", 16),
    "EVA02-L-14": _eva(vit(224, 14, 1024, 24, 16, 2730 / 1024), text_tower(768), 768, "eva02", 16),
    "EVA02-L-14-336": _eva(
        vit(336, 14, 1024, 24, 16, 2730 / 1024), text_tower(768), 768, "eva02", 16
    ),
    "EVA02-E-14": _eva(
        vit(224, 14, 1792, 64, 16, 15360 / 1792), text_tower(1024, 24), 1024, "eva02_e"
    ),
    "EVA02-E-14-plus": _eva(
        vit(224, 14, 1792, 64, 16, 15360 / 1792), text_tower(1280, 32), 1024, "eva02_e"
    ),
}


def _mobileclip(
    vision: TrunkConfig, embed_dim: int = 512, causal: bool = False, unnormalised: bool = True,
    interpolation: Literal["bicubic", "bilinear"] = "bilinear",
) -> ModelSpec:  # fmt: skip
    text = dataclasses.replace(text_tower(embed_dim), family="clip" if causal else "mobileclip")
    preprocess = ImageTransform("shortest", interpolation)
    if unnormalised:
        preprocess = ImageTransform("shortest", interpolation, mean=(0.0,) * 3, std=(1.0,) * 3)
    return ModelSpec(CLIPConfig(vision, text, embed_dim), preprocess)


_MCI2 = FastViTConfig(256, 80, (4, 12, 24, 4))
_MCI3 = FastViTConfig(256, 96, (2, 12, 24, 4, 2), 4.0, family="fastvit_large")
_MCI4 = FastViTConfig(256, 128, (2, 12, 24, 4, 4), 4.0, family="fastvit_large")
_MOBILE_L = dataclasses.replace(vit(224, 14, 1024, 24, 16), family="mobileclip_vit")
# Vasu et al. 2024, Faghri et al. 2025; open_clip's `model_configs/`, `pretrained.py` for the
# preprocessing, and timm's `models/fastvit.py`.
_MOBILECLIP = {
    "MobileCLIP-S1": _mobileclip(FastViTConfig(256, 64, (4, 12, 20, 4))),
    "MobileCLIP-S2": _mobileclip(_MCI2),
    "MobileCLIP-B": _mobileclip(MobileViTConfig(), causal=True),
    "MobileCLIP2-S0": _mobileclip(FastViTConfig(256, 64, (2, 6, 10, 2))),
    "MobileCLIP2-S2": _mobileclip(_MCI2),
    "MobileCLIP2-S3": _mobileclip(_MCI3, 768, unnormalised=False),
    "MobileCLIP2-S4": _mobileclip(_MCI4, 768, unnormalised=False),
    "MobileCLIP2-B": _mobileclip(MobileViTConfig(), causal=True),
    "MobileCLIP2-L-14": _mobileclip(_MOBILE_L, 768, False, False, "bicubic"),
}


# Chen et al. 2024, table 3; open_clip's `model_configs/`, timm's `models/vitamin.py`. LTT is locked
# text tuning, beside the text tower of L.
_VITAMIN_SIZES = {
    # Image tower: width, blocks, heads, width of the first convolutions. Text tower. Embedding.
    "S": ((384, 14, 6, 64), text_tower(384), 384),
    "S-LTT": ((384, 14, 6, 64), text_tower(768), 768),
    "B": ((768, 14, 12, 128), text_tower(512), 512),
    "B-LTT": ((768, 14, 12, 128), text_tower(768), 768),
    "L": ((1024, 31, 16, 160), text_tower(768), 768),
    "L2": ((1024, 31, 16, 160), text_tower(1024, 24), 1024),
    "XL": ((1152, 32, 16, 192), TextConfig(77, 49408, 1152, 27, 16, activation="gelu"), 1152),
}
_VITAMIN = {
    f"ViTamin-{size}{f'-{side}' * (side != 224)}": ModelSpec(
        CLIPConfig(ViTaminConfig(side, *tower, positions=size != "XL"), text, embed_dim)
    )
    for sizes, sides in (
        (("S", "S-LTT", "B", "B-LTT"), (224,)),
        (("L", "L2"), (224, 256, 336, 384)),
        (("XL",), (256, 336, 384)),
    )
    for size in sizes
    for side in sides
    for tower, text, embed_dim in (_VITAMIN_SIZES[size],)
}


def _convnext(
    image_size: int, width: int, layers: tuple[int, int, int, int], text: TextConfig,
    embed_dim: int, norm_eps: float = 1e-6, head: Literal["linear", "mlp"] = "linear",
) -> ModelSpec:  # fmt: skip
    vision = ConvNeXtConfig(image_size, width, layers, norm_eps, head)
    return ModelSpec(CLIPConfig(vision, text, embed_dim))


_CONVNEXT_LAYERS, _CONVNEXT_XXL_LAYERS = (3, 3, 27, 3), (3, 4, 30, 3)
# Cherti et al. 2023 and after; open_clip's `model_configs/`, timm's `models/convnext.py`.
_CONVNEXT = {
    "convnext_tiny": _convnext(224, 96, (3, 3, 9, 3), text_tower(512), 1024),
    "convnext_small": _convnext(224, 96, _CONVNEXT_LAYERS, text_tower(512), 512),
    "convnext_base": _convnext(224, 128, _CONVNEXT_LAYERS, text_tower(512), 512),
    "convnext_base_w": _convnext(256, 128, _CONVNEXT_LAYERS, text_tower(640), 640),
    "convnext_base_w_320": _convnext(320, 128, _CONVNEXT_LAYERS, text_tower(640), 640),
    "convnext_large": _convnext(224, 192, _CONVNEXT_LAYERS, text_tower(768), 768),
    "convnext_large_d": _convnext(256, 192, _CONVNEXT_LAYERS, text_tower(768, 16), 768, head="mlp"),
    "convnext_large_d_320": _convnext(
        320, 192, _CONVNEXT_LAYERS, text_tower(768, 16), 768, head="mlp"
    ),
    "convnext_xlarge": _convnext(256, 256, _CONVNEXT_LAYERS, text_tower(1024, 20), 1024),
    "convnext_xxlarge": _convnext(256, 384, _CONVNEXT_XXL_LAYERS, text_tower(1024, 24), 1024, 1e-5),
    "convnext_xxlarge_320": _convnext(
        320, 384, _CONVNEXT_XXL_LAYERS, text_tower(1024, 24), 1024, 1e-5
    ),
}


def _tips(
    vision: tuple[int, int, int, int], text: tuple[int, int, int, int], family: str = "tips"
) -> ModelSpec:
    """Both towers: width, layers, heads, width of the MLP."""
    width, layers, heads, mlp_width = vision
    tower = vit(448, 14, width, layers, heads, mlp_width / width)
    width, layers, heads, mlp_width = text
    config = CLIPConfig(
        dataclasses.replace(tower, norm_eps=1e-6, family=family),
        TextConfig(64, 32_000, width, layers, heads, mlp_width / width, "relu", family="tips"),
        width,
        init_logit_scale=-math.log(0.005065968260169029),
    )
    pixels = ImageTransform("squash", "bilinear", mean=(0.0,) * 3, std=(1.0,) * 3)
    return ModelSpec(config, pixels, TokenizerConfig("tips"))


# google-deepmind/tips, `pytorch/run_text_encoder_inference.py`; transformers' `models/tipsv2`, with
# the temperature of its configuration.
_TIPS = {
    "TIPSv2-B-14": _tips((768, 12, 12, 3072), (768, 12, 12, 3072)),
    "TIPSv2-L-14": _tips((1024, 24, 16, 4096), (1024, 12, 16, 4096)),
    "TIPSv2-SO400M-14": _tips((1152, 27, 16, 4304), (1152, 27, 16, 4304)),
    "TIPSv2-g-14": _tips((1536, 40, 24, 4096), (1536, 12, 24, 6144), "tips_gated"),
}

TRUNKS: dict[str, ModelSpec] = {**_TIPS, **_PE, **_EVA, **_MOBILECLIP, **_VITAMIN, **_CONVNEXT}
