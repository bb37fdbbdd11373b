"""The models of `parity/trunk_cases.py`, as our configurations."""

import dataclasses

from flaxclip.models.clip import CLIPConfig
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.trunks.convnext import ConvNeXtConfig
from flaxclip.models.trunks.fastvit import FastViTConfig
from flaxclip.models.trunks.mobile_vit import MobileViTConfig
from flaxclip.models.trunks.vitamin import ViTaminConfig
from flaxclip.models.vision_transformer import ViTConfig
from tests.parity.trunk_cases import (
    CONVNEXT_CASES,
    EMBED_DIM,
    EVA_CASES,
    FASTVIT_CASES,
    MOBILE_VIT_CASES,
    OWN_CASES,
    TEXT,
    TIMM_VIT_CASES,
    VITAMIN_CASES,
)

_TEXT = TextConfig(**TEXT, activation="gelu")


def _vit(case, family):
    ratio = case["mlp_ratio"]
    return ViTConfig(
        image_size=case["img_size"],
        patch_size=case["patch_size"],
        width=case["embed_dim"],
        layers=case["depth"],
        heads=case["num_heads"],
        mlp_ratio=int(case["embed_dim"] * ratio) / case["embed_dim"],
        activation="gelu",
        norm_eps=case["norm_eps"],
        family=family,
        rotary_grid=case["ref_feat_shape"][0] if "ref_feat_shape" in case else None,
    )


def _convnext(case):
    return ConvNeXtConfig(
        case["image_size"], case["dims"][0], case["depths"], case["norm_eps"], case["proj"]
    )


def _own(case, family):
    sizes = {name: case["vision"][name] for name in ("image_size", "patch_size", "width", "layers")}
    return ViTConfig(
        **sizes,
        heads=sizes["width"] // case["vision"]["head_width"],
        mlp_ratio=case["vision"]["mlp_ratio"],
        activation="gelu",
        family=family,
    )


CONFIGS = {
    **{
        name: CLIPConfig(_vit(c, name), dataclasses.replace(_TEXT, family="mobileclip"), EMBED_DIM)
        for name, c in TIMM_VIT_CASES.items()
    },
    **{name: CLIPConfig(_vit(c, name), _TEXT, EMBED_DIM) for name, c in EVA_CASES.items()},
    **{name: CLIPConfig(_convnext(c), _TEXT, EMBED_DIM) for name, c in CONVNEXT_CASES.items()},
    **{
        name: CLIPConfig(_own(c, name), dataclasses.replace(_TEXT, family=name), EMBED_DIM)
        for name, c in OWN_CASES.items()
    },
    **{
        name: CLIPConfig(
            FastViTConfig(**c, family=name),
            dataclasses.replace(_TEXT, family="mobileclip"),
            EMBED_DIM,
        )
        for name, c in FASTVIT_CASES.items()
    },
    **{
        name: CLIPConfig(MobileViTConfig(**c), _TEXT, EMBED_DIM)
        for name, c in MOBILE_VIT_CASES.items()
    },
    **{name: CLIPConfig(ViTaminConfig(**c), _TEXT, EMBED_DIM) for name, c in VITAMIN_CASES.items()},
}
