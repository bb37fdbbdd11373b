"""timm's image towers of PE-Core (`models/eva.py`)."""

from flaxclip.interop.name_table import Binding
from flaxclip.interop.trunks.timm_trunk import (
    ATTENTION_POOL,
    BLOCKS,
    CLASS_TOKEN,
    HEAD,
    PATCHES,
    POSITIONS,
    TimmTrunk,
    bind_trunk,
    norm,
)
from flaxclip.models.clip import CLIPConfig
from flaxclip.models.variants import VARIANTS
from flaxclip.models.vision_transformer import ViTConfig

_TOWERS = {
    f"vit_pe_core_{name}": VARIANTS[ours].model.vision
    for name, ours in {
        "tiny_patch16_384": "PE-Core-T-16-384",
        "small_patch16_384": "PE-Core-S-16-384",
        "base_patch16_224": "PE-Core-B-16",
        "large_patch14_336": "PE-Core-L-14-336",
        "gigantic_patch14_448": "PE-Core-bigG-14-448",
    }.items()
}
_RULES = (
    PATCHES,
    POSITIONS,
    *norm("ln_pre", "norm_pre"),
    *BLOCKS,
    *norm("ln_post", "norm"),
    *ATTENTION_POOL,
    *HEAD,
)


def _bindings(config: CLIPConfig) -> list[Binding]:
    assert isinstance(config.vision, ViTConfig), "it is a family of vision transformers"
    class_token = (CLASS_TOKEN,) * config.vision.class_tokens
    return bind_trunk((*class_token, *_RULES), config)


TRUNKS = (TimmTrunk(("pe", "pe_patches"), _TOWERS, "map", (None, ""), _bindings),)
