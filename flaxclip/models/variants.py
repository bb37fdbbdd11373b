"""Named architectures, by open_clip's names, and LiT's: a table and nothing else.

`-quickgelu` marks those whose transformers have OpenAI's activation: OpenAI's own models, MetaCLIP,
DFN, and LAION-400M's ViT-B-32. Those without it have GELU: LAION-2B, DataComp and most others.
Preprocessing is the family's, and that of texts is the one in open_clip's configurations; single
checkpoints that differ (DFN's ViT-H-14 squashes, LAION-2B's ViT-L-14 has SigLIP's mean) must say so
themselves.
"""

import dataclasses
import math
from typing import NamedTuple

from flaxclip.models.clip import CLIPConfig
from flaxclip.models.inputs import CENTRED_MEAN, CENTRED_STD, ImageTransform, TokenizerConfig
from flaxclip.models.modified_resnet import ResNetConfig
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.vision_transformer import ViTConfig


def _vit(
    image_size: int, patch_size: int, width: int, layers: int, heads: int, mlp_ratio: float = 4.0
) -> ViTConfig:
    return ViTConfig(image_size, patch_size, width, layers, heads, mlp_ratio, "gelu")


def _text(width: int, layers: int = 12) -> TextConfig:
    return TextConfig(width=width, layers=layers, heads=width // 64, activation="gelu")


class ModelSpec(NamedTuple):
    """All that comes with weights: the architecture, and the preprocessing of its inputs."""

    model: CLIPConfig
    preprocess: ImageTransform = ImageTransform()
    tokenizer: TokenizerConfig = TokenizerConfig()


def _quick_gelu(config: CLIPConfig) -> CLIPConfig:
    text = dataclasses.replace(config.text, activation="quick_gelu")
    vision = config.vision
    if isinstance(vision, ViTConfig):
        vision = dataclasses.replace(vision, activation="quick_gelu")
    return dataclasses.replace(config, vision=vision, text=text)


# Radford et al. 2021, tables 19 and 20; open_clip, `model_configs/`.
_CLIP = {
    # name: image tower, text tower, dimensions of the embedding
    "RN50": CLIPConfig(ResNetConfig(224, 64, (3, 4, 6, 3)), _text(512), 1024),
    "RN101": CLIPConfig(ResNetConfig(224, 64, (3, 4, 23, 3)), _text(512), 512),
    "RN50x4": CLIPConfig(ResNetConfig(288, 80, (4, 6, 10, 6)), _text(640), 640),
    "RN50x16": CLIPConfig(ResNetConfig(384, 96, (6, 8, 18, 8)), _text(768), 768),
    "RN50x64": CLIPConfig(ResNetConfig(448, 128, (3, 15, 36, 10)), _text(1024), 1024),
    "ViT-S-32": CLIPConfig(_vit(224, 32, 384, 12, 6), _text(384), 384),
    "ViT-S-16": CLIPConfig(_vit(224, 16, 384, 12, 6), _text(384), 384),
    "ViT-M-32": CLIPConfig(_vit(224, 32, 512, 12, 8), _text(512), 512),
    "ViT-M-16": CLIPConfig(_vit(224, 16, 512, 12, 8), _text(512), 512),
    "ViT-B-32": CLIPConfig(_vit(224, 32, 768, 12, 12), _text(512), 512),
    "ViT-B-32-256": CLIPConfig(_vit(256, 32, 768, 12, 12), _text(512), 512),
    "ViT-B-32-plus-256": CLIPConfig(_vit(256, 32, 896, 12, 14), _text(640), 640),
    "ViT-B-16": CLIPConfig(_vit(224, 16, 768, 12, 12), _text(512), 512),
    "ViT-B-16-plus": CLIPConfig(_vit(224, 16, 896, 12, 14), _text(640), 640),
    "ViT-B-16-plus-240": CLIPConfig(_vit(240, 16, 896, 12, 14), _text(640), 640),
    "ViT-L-16": CLIPConfig(_vit(224, 16, 1024, 24, 16), _text(768), 768),
    "ViT-L-16-320": CLIPConfig(_vit(320, 16, 1024, 24, 16), _text(768), 768),
    "ViT-L-14": CLIPConfig(_vit(224, 14, 1024, 24, 16), _text(768), 768),
    "ViT-L-14-280": CLIPConfig(_vit(280, 14, 1024, 24, 16), _text(768), 768),
    "ViT-L-14-336": CLIPConfig(_vit(336, 14, 1024, 24, 16), _text(768), 768),
    "ViT-H-16": CLIPConfig(_vit(224, 16, 1280, 32, 16), _text(1024, 24), 1024),
    "ViT-H-14": CLIPConfig(_vit(224, 14, 1280, 32, 16), _text(1024, 24), 1024),
    "ViT-H-14-378": CLIPConfig(_vit(378, 14, 1280, 32, 16), _text(1024, 24), 1024),
    "ViT-g-14": CLIPConfig(_vit(224, 14, 1408, 40, 16, 6144 / 1408), _text(1024, 24), 1024),
    "ViT-bigG-14": CLIPConfig(_vit(224, 14, 1664, 48, 16, 8192 / 1664), _text(1280, 32), 1280),
}
_QUICK_GELU = (
    "RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B-32", "ViT-B-16", "ViT-L-14",
    "ViT-L-14-336", "ViT-H-14", "ViT-H-14-378", "ViT-bigG-14",
)  # fmt: skip

# Width, layers, heads and width of the MLP of both towers of SigLIP; Zhai et al. 2023, Tschannen et
# al. 2025, big_vision's `models/vit.py`. All were trained with the approximation of GELU by tanh.
_SIGLIP_SIZES = {
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "SO400M": (1152, 27, 16, 4304),
    "gopt": (1536, 40, 16, 6144),
}


def _siglip(
    version: int, size: str, patch_size: int, image_size: int, context_length: int = 64
) -> ModelSpec:
    width, layers, heads, mlp = _SIGLIP_SIZES[size]
    vision = ViTConfig(
        image_size, patch_size, width, layers, heads, mlp / width, "gelu_tanh", 1e-6, "siglip"
    )
    vocab_size = 32_000 if version == 1 else 256_000
    # The largest image tower has the second largest text tower at its side.
    text_width, layers, heads, mlp = _SIGLIP_SIZES["SO400M" if size == "gopt" else size]
    text = TextConfig(
        context_length, vocab_size, text_width, layers, heads, mlp / text_width,
        "gelu_tanh", 1e-6, "siglip",
    )  # fmt: skip
    return ModelSpec(
        CLIPConfig(
            vision,
            text,
            embed_dim=width,
            init_logit_scale=math.log(10),
            init_logit_bias=-10.0,
        ),
        ImageTransform("squash", mean=CENTRED_MEAN, std=CENTRED_STD),
        TokenizerConfig("siglip")
        if version == 1
        else TokenizerConfig("siglip2", cleaning="canonicalize"),
    )


_SIGLIP = {
    "ViT-B-16-SigLIP": _siglip(1, "B", 16, 224),
    "ViT-B-16-SigLIP-256": _siglip(1, "B", 16, 256),
    "ViT-B-16-SigLIP-384": _siglip(1, "B", 16, 384),
    "ViT-B-16-SigLIP-512": _siglip(1, "B", 16, 512),
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
    "ViT-L-16-SigLIP2-256": _siglip(2, "L", 16, 256),
    "ViT-L-16-SigLIP2-384": _siglip(2, "L", 16, 384),
    "ViT-L-16-SigLIP2-512": _siglip(2, "L", 16, 512),
    "ViT-SO400M-14-SigLIP2": _siglip(2, "SO400M", 14, 224),
    "ViT-SO400M-14-SigLIP2-378": _siglip(2, "SO400M", 14, 378),
    "ViT-SO400M-16-SigLIP2-256": _siglip(2, "SO400M", 16, 256),
    "ViT-SO400M-16-SigLIP2-384": _siglip(2, "SO400M", 16, 384),
    "ViT-SO400M-16-SigLIP2-512": _siglip(2, "SO400M", 16, 512),
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
_LIT = {
    "LiT-B16B": _lit("B", head=True),
    "LiT-B16B_2": _lit("B"),
    "LiT-L16L": _lit("L"),
}

VARIANTS: dict[str, ModelSpec] = {
    # For tests and the built-in data: few, large patches and a short context are what make it fast.
    "ViT-tiny": ModelSpec(
        CLIPConfig(
            vision=ViTConfig(image_size=32, patch_size=8, width=128, layers=4, heads=4),
            text=TextConfig(context_length=20, width=64, layers=2, heads=2),
            embed_dim=64,
        )
    ),
    **{name: ModelSpec(config) for name, config in _CLIP.items()},
    **{f"{name}-quickgelu": ModelSpec(_quick_gelu(_CLIP[name])) for name in _QUICK_GELU},
    **_SIGLIP,
    **_LIT,
}
