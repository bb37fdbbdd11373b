"""SigLIP, SigLIP 2 and LiT, whose towers have the same sizes."""

import math

from flaxclip.models.clip import CLIPConfig
from flaxclip.models.inputs import (
    CENTRED_MEAN,
    CENTRED_STD,
    ImageTransform,
    TokenizerConfig,
)
from flaxclip.models.spec import ModelSpec
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.vision_transformer import ViTConfig

# Width, layers, heads and width of the MLP of both towers of SigLIP; Zhai et al. 2023, Tschannen et
# al. 2025, big_vision's `models/vit.py`. All were trained with the approximation of GELU by tanh.
_SIGLIP_SIZES = {
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "SO400M": (1152, 27, 16, 4304),
    "gopt": (1536, 40, 16, 6144),
}


def _siglip(
    version: int, size: str, patch_size: int, image_size: int, context_length: int = 64,
    vocab_size: int | None = None, text_family: str = "siglip", max_patches: int | None = None,
) -> ModelSpec:  # fmt: skip
    width, layers, heads, mlp = _SIGLIP_SIZES[size]
    vision = ViTConfig(
        image_size, patch_size, width, layers, heads, mlp / width, "gelu_tanh", 1e-6, "siglip"
    )
    vocab_size = vocab_size or (32_000 if version == 1 else 256_000)
    # The largest image tower has the second largest text tower at its side.
    text_width, layers, heads, mlp = _SIGLIP_SIZES["SO400M" if size == "gopt" else size]
    text = TextConfig(
        context_length, vocab_size, text_width, layers, heads, mlp / text_width,
        "gelu_tanh", 1e-6, text_family,
    )  # fmt: skip
    return ModelSpec(
        CLIPConfig(
            vision,
            text,
            embed_dim=width,
            init_logit_scale=math.log(10),
            init_logit_bias=-10.0,
        ),
        ImageTransform(
            "squash" if max_patches is None else "native",
            mean=CENTRED_MEAN,
            std=CENTRED_STD,
            max_patches=max_patches,
        ),
        TokenizerConfig("siglip")
        if version == 1
        else TokenizerConfig("siglip2", cleaning="canonicalize"),
    )


SIGLIP: dict[str, ModelSpec] = {
    "ViT-B-16-SigLIP": _siglip(1, "B", 16, 224),
    "ViT-B-16-SigLIP-256": _siglip(1, "B", 16, 256),
    "ViT-B-16-SigLIP-384": _siglip(1, "B", 16, 384),
    "ViT-B-16-SigLIP-512": _siglip(1, "B", 16, 512),
    # Of a hundred languages, with mT5's vocabulary.
    "ViT-B-16-SigLIP-i18n-256": _siglip(1, "B", 16, 256, vocab_size=250_000),
    "ViT-SO400M-16-SigLIP-i18n-256": _siglip(
        1, "SO400M", 16, 256, vocab_size=250_000, text_family="siglip_i18n"
    ),
    "ViT-L-16-SigLIP-256": _siglip(1, "L", 16, 256),
    "ViT-L-16-SigLIP-384": _siglip(1, "L", 16, 384),
    "ViT-SO400M-14-SigLIP": _siglip(1, "SO400M", 14, 224, context_length=16),
    "ViT-SO400M-14-SigLIP-378": _siglip(1, "SO400M", 14, 378),
    "ViT-SO400M-14-SigLIP-384": _siglip(1, "SO400M", 14, 384),
    "ViT-B-32-SigLIP2-256": _siglip(2, "B", 32, 256),
    "ViT-B-16-SigLIP2": _siglip(2, "B", 16, 224),
    "ViT-B-16-SigLIP2-256": _siglip(2, "B", 16, 256),
    "ViT-B-16-SigLIP2-384": _siglip(2, "B", 16, 384),
    "ViT-B-16-SigLIP2-512": _siglip(2, "B", 16, 512),
    # At native aspect ratio; the image size is that of the grid that positions were learned on.
    "ViT-B-16-SigLIP2-naflex": _siglip(2, "B", 16, 256, max_patches=576),
    "ViT-L-16-SigLIP2-256": _siglip(2, "L", 16, 256),
    "ViT-L-16-SigLIP2-384": _siglip(2, "L", 16, 384),
    "ViT-L-16-SigLIP2-512": _siglip(2, "L", 16, 512),
    "ViT-SO400M-14-SigLIP2": _siglip(2, "SO400M", 14, 224),
    "ViT-SO400M-14-SigLIP2-378": _siglip(2, "SO400M", 14, 378),
    "ViT-SO400M-16-SigLIP2-256": _siglip(2, "SO400M", 16, 256),
    "ViT-SO400M-16-SigLIP2-384": _siglip(2, "SO400M", 16, 384),
    "ViT-SO400M-16-SigLIP2-512": _siglip(2, "SO400M", 16, 512),
    "ViT-SO400M-16-SigLIP2-naflex": _siglip(2, "SO400M", 16, 256, max_patches=576),
    "ViT-gopt-16-SigLIP2-256": _siglip(2, "gopt", 16, 256),
    "ViT-gopt-16-SigLIP2-384": _siglip(2, "gopt", 16, 384),
}


def _lit(size: str, head: bool = False) -> ModelSpec:
    width, layers, heads, mlp = _SIGLIP_SIZES[size]
    mlp_ratio = mlp / width
    return ModelSpec(
        CLIPConfig(
            ViTConfig(224, 16, width, layers, heads, mlp_ratio, "gelu_tanh", 1e-6, "vit", head),
            TextConfig(
                16, 30_522, width, layers, heads, mlp_ratio, "gelu_tanh", 1e-12, "bert", 512
            ),
            embed_dim=width,
            init_logit_scale=math.log(10),
        ),
        ImageTransform("squash", "bilinear", mean=CENTRED_MEAN, std=CENTRED_STD),
        TokenizerConfig("bert"),
    )


# Zhai et al. 2022; vision_transformer's `configs/models.py` and `model_cards/lit.md` (of Google).
# Both towers have the sizes of the same letter: ViT-B/16 with BERT-Base, ViT-L/16 with BERT-Large.
LIT: dict[str, ModelSpec] = {
    "LiT-B16B": _lit("B", head=True),
    "LiT-B16B_2": _lit("B"),
    "LiT-L16L": _lit("L"),
}
