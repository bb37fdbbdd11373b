"""Models whose text towers are in `models/text_trunks/`; open_clip's `model_configs/`."""

import dataclasses

from flaxclip.models.clip import CLIPConfig
from flaxclip.models.inputs import (
    CENTRED_MEAN,
    CENTRED_STD,
    ImageTransform,
    TokenizerConfig,
)
from flaxclip.models.spec import ModelSpec
from flaxclip.models.variant_tables.siglip import SIGLIP
from flaxclip.models.variant_tables.towers import text_tower, vit
from flaxclip.models.vision_transformer import ViTConfig

_B_32 = vit(224, 32, 768, 12, 12)
_H_14 = vit(224, 14, 1280, 32, 16)


def _xlm_roberta(
    vision: ViTConfig, width: int, layers: int, embed_dim: int, vocab_size: int = 250_002
) -> ModelSpec:
    text = dataclasses.replace(
        text_tower(width, layers), vocab_size=vocab_size, family="xlm_roberta", positions=514
    )
    return ModelSpec(CLIPConfig(vision, text, embed_dim), tokenizer=TokenizerConfig("xlm_v"))


# Liu et al. 2019; Conneau et al. 2020, table 9 and "XLM-R".
_XLM_ROBERTA = {
    "roberta-ViT-B-32": _xlm_roberta(
        dataclasses.replace(_B_32, activation="quick_gelu"), 768, 12, 512, vocab_size=50_265
    ),
    "xlm-roberta-base-ViT-B-32": _xlm_roberta(_B_32, 768, 12, 512),
    "xlm-roberta-large-ViT-H-14": _xlm_roberta(_H_14, 1024, 24, 1024),
}


def _mt5(vision: ViTConfig, width: int, layers: int, mlp_width: int, embed_dim: int) -> ModelSpec:
    text = dataclasses.replace(
        text_tower(width, layers), vocab_size=250_112, family="mt5", mlp_ratio=mlp_width / width,
        activation="gelu_tanh", norm_eps=1e-6,
    )  # fmt: skip
    return ModelSpec(CLIPConfig(vision, text, embed_dim), tokenizer=TokenizerConfig("mt5"))


# Xue et al. 2021; google-research/multilingual-t5.
_MT5 = {
    "mt5-base-ViT-B-32": _mt5(_B_32, 768, 12, 2048, 512),
    "mt5-xl-ViT-H-14": _mt5(_H_14, 2048, 24, 5120, 1024),
}


def _nllb(vision: ViTConfig, layers: int, mlp_ratio: float, embed_dim: int) -> ModelSpec:
    text = dataclasses.replace(
        text_tower(1024, layers), vocab_size=256_206, family="nllb", mlp_ratio=mlp_ratio,
        activation="relu",
    )  # fmt: skip
    return ModelSpec(CLIPConfig(vision, text, embed_dim), tokenizer=TokenizerConfig("nllb"))


def _nllb_siglip(side: str, layers: int, mlp_ratio: float) -> ModelSpec:
    """Beside a tower of SigLIP, whose preprocessing its weights' tags have."""
    vision = SIGLIP[side].model.vision
    assert isinstance(vision, ViTConfig)
    # timm's towers of these names have the exact GELU.
    spec = _nllb(dataclasses.replace(vision, activation="gelu"), layers, mlp_ratio, vision.width)
    return spec._replace(
        model=dataclasses.replace(spec.model, init_logit_bias=-10.0),
        preprocess=ImageTransform("squash", mean=CENTRED_MEAN, std=CENTRED_STD),
    )


# Visheratin 2023, "NLLB-CLIP"; the text towers are NLLB-200's distilled models of 600M and 1.3B.
_NLLB = {
    "nllb-clip-base": _nllb(_B_32, 12, 4.0, 512),
    "nllb-clip-large": _nllb(_H_14, 24, 8.0, 1024),
    "nllb-clip-base-siglip": _nllb_siglip("ViT-B-16-SigLIP-384", 12, 4.0),
    "nllb-clip-large-siglip": _nllb_siglip("ViT-SO400M-14-SigLIP-384", 24, 8.0),
}

TEXT_TRUNKS: dict[str, ModelSpec] = {**_XLM_ROBERTA, **_MT5, **_NLLB}
