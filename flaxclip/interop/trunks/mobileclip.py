"""timm's vision transformer of MobileCLIP2-L/14 (`models/vision_transformer.py`)."""

from flaxclip.interop.name_table import Binding
from flaxclip.interop.trunks.timm_trunk import (
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

_TOWERS = {"vit_large_patch14_clip_224": VARIANTS["MobileCLIP2-L-14"].model.vision}
_RULES = (
    CLASS_TOKEN,
    PATCHES,
    POSITIONS,
    *norm("ln_pre", "norm_pre"),
    *BLOCKS,
    *norm("ln_post", "norm"),
    *HEAD,
)


def _bindings(config: CLIPConfig) -> list[Binding]:
    return bind_trunk(_RULES, config)


TRUNKS = (TimmTrunk(("mobileclip_vit",), _TOWERS, "token", (None, ""), _bindings),)
