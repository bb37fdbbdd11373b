"""OpenAI's models and those of the same towers: LAION's, Long-CLIP, MetaCLIP 2."""

import dataclasses

from flaxclip.models.clip import CLIPConfig
from flaxclip.models.inputs import ImageTransform, TokenizerConfig
from flaxclip.models.modified_resnet import ResNetConfig
from flaxclip.models.spec import ModelSpec
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.variant_tables.towers import text_tower, vit
from flaxclip.models.vision_transformer import ViTConfig


def _quick_gelu(config: CLIPConfig) -> CLIPConfig:
    text = dataclasses.replace(config.text, activation="quick_gelu")
    vision = config.vision
    if isinstance(vision, ViTConfig):
        vision = dataclasses.replace(vision, activation="quick_gelu")
    return dataclasses.replace(config, vision=vision, text=text)


# Radford et al. 2021, tables 19 and 20; open_clip, `model_configs/`.
_CLIP = {
    # name: image tower, text tower, dimensions of the embedding
    "RN50": CLIPConfig(ResNetConfig(224, 64, (3, 4, 6, 3)), text_tower(512), 1024),
    "RN101": CLIPConfig(ResNetConfig(224, 64, (3, 4, 23, 3)), text_tower(512), 512),
    "RN50x4": CLIPConfig(ResNetConfig(288, 80, (4, 6, 10, 6)), text_tower(640), 640),
    "RN50x16": CLIPConfig(ResNetConfig(384, 96, (6, 8, 18, 8)), text_tower(768), 768),
    "RN50x64": CLIPConfig(ResNetConfig(448, 128, (3, 15, 36, 10)), text_tower(1024), 1024),
    "ViT-S-32": CLIPConfig(vit(224, 32, 384, 12, 6), text_tower(384), 384),
    "ViT-S-16": CLIPConfig(vit(224, 16, 384, 12, 6), text_tower(384), 384),
    "ViT-M-32": CLIPConfig(vit(224, 32, 512, 12, 8), text_tower(512), 512),
    "ViT-M-16": CLIPConfig(vit(224, 16, 512, 12, 8), text_tower(512), 512),
    "ViT-B-32": CLIPConfig(vit(224, 32, 768, 12, 12), text_tower(512), 512),
    "ViT-B-32-256": CLIPConfig(vit(256, 32, 768, 12, 12), text_tower(512), 512),
    "ViT-B-32-plus-256": CLIPConfig(vit(256, 32, 896, 12, 14), text_tower(640), 640),
    "ViT-B-16": CLIPConfig(vit(224, 16, 768, 12, 12), text_tower(512), 512),
    "ViT-B-16-plus": CLIPConfig(vit(224, 16, 896, 12, 14), text_tower(640), 640),
    "ViT-B-16-plus-240": CLIPConfig(vit(240, 16, 896, 12, 14), text_tower(640), 640),
    "ViT-L-16": CLIPConfig(vit(224, 16, 1024, 24, 16), text_tower(768), 768),
    "ViT-L-16-320": CLIPConfig(vit(320, 16, 1024, 24, 16), text_tower(768), 768),
    "ViT-L-14": CLIPConfig(vit(224, 14, 1024, 24, 16), text_tower(768), 768),
    "ViT-L-14-280": CLIPConfig(vit(280, 14, 1024, 24, 16), text_tower(768), 768),
    "ViT-L-14-336": CLIPConfig(vit(336, 14, 1024, 24, 16), text_tower(768), 768),
    "ViT-H-16": CLIPConfig(vit(224, 16, 1280, 32, 16), text_tower(1024, 24), 1024),
    "ViT-H-14": CLIPConfig(vit(224, 14, 1280, 32, 16), text_tower(1024, 24), 1024),
    "ViT-H-14-378": CLIPConfig(vit(378, 14, 1280, 32, 16), text_tower(1024, 24), 1024),
    "ViT-g-14": CLIPConfig(vit(224, 14, 1408, 40, 16, 6144 / 1408), text_tower(1024, 24), 1024),
    "ViT-bigG-14": CLIPConfig(vit(224, 14, 1664, 48, 16, 8192 / 1664), text_tower(1280, 32), 1280),
}
# Zhang et al. 2024, "Long-CLIP": fine-tuned from OpenAI's.
_LONG_CLIP = {
    "LongCLIP-B-16": CLIPConfig(_CLIP["ViT-B-16"].vision, text_tower(512, context=248), 512),
    "LongCLIP-L-14": CLIPConfig(_CLIP["ViT-L-14"].vision, text_tower(768, context=248), 768),
}


def _worldwide(
    vision: ViTConfig, text: TextConfig, embed_dim: int, vocab_size: int = 901_629, end_id: int = 2
) -> CLIPConfig:
    text = dataclasses.replace(text, vocab_size=vocab_size, end_id=end_id)
    return CLIPConfig(vision, text, embed_dim)


_H_WORLDWIDE = _worldwide(vit(224, 14, 1280, 32, 16), text_tower(1024, 24), 1024)
# Chuang et al. 2025, "MetaCLIP 2"; open_clip's `model_configs/`.
_WORLDWIDE = {
    "ViT-H-14-worldwide": _H_WORLDWIDE,
    "ViT-H-14-worldwide-quickgelu": _quick_gelu(_H_WORLDWIDE),
    "ViT-H-14-worldwide-378": _worldwide(vit(378, 14, 1280, 32, 16), text_tower(1024, 24), 1024),
    "ViT-bigG-14-worldwide": _worldwide(
        vit(224, 14, 1664, 48, 16, 8192 / 1664), text_tower(1280, 32), 1280
    ),
    "ViT-bigG-14-worldwide-378": _worldwide(
        vit(378, 14, 1664, 48, 16, 8192 / 1664), text_tower(1280, 32), 1280
    ),
}
_L_WORLDWIDE = _worldwide(vit(224, 14, 1024, 24, 16), text_tower(768), 768, 250_100, 1)
# With mT5's vocabulary in place of XLM-V's.
_WORLDWIDE_MT5 = {
    "ViT-L-14-worldwide": _L_WORLDWIDE,
    "ViT-L-14-worldwide-quickgelu": _quick_gelu(_L_WORLDWIDE),
}
_QUICK_GELU = (
    "RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B-32", "ViT-B-16", "ViT-L-14",
    "ViT-L-14-336", "ViT-H-14", "ViT-H-14-378", "ViT-bigG-14",
)  # fmt: skip


# Weights at 378 pixels, DFN's and MetaCLIP 2's, were trained on images of which all was resized
# (open_clip, `pretrained.py`).
_SQUASHED = ImageTransform("squash")
_ALL: dict[str, ModelSpec] = {
    **{name: ModelSpec(config) for name, config in _CLIP.items()},
    **{f"{name}-quickgelu": ModelSpec(_quick_gelu(_CLIP[name])) for name in _QUICK_GELU},
    **{name: ModelSpec(_quick_gelu(config)) for name, config in _LONG_CLIP.items()},
    **{
        name: ModelSpec(config, tokenizer=TokenizerConfig("xlm_v"))
        for name, config in _WORLDWIDE.items()
    },
    **{
        name: ModelSpec(config, tokenizer=TokenizerConfig("mt5", cleaning="canonicalize"))
        for name, config in _WORLDWIDE_MT5.items()
    },
}
CLIP: dict[str, ModelSpec] = {
    name: spec._replace(preprocess=_SQUASHED) if spec.model.vision.image_size == 378 else spec
    for name, spec in _ALL.items()
}
