"""The image tower of PE-Core (Bolya et al. 2025, "Perception Encoder", section 2 and table 13).

A vision transformer with rotary embeddings of its patches beside learned ones, and attention
pooling of 8 heads before the projection. Its largest one has no class token.
"""

import dataclasses

from flaxclip.models.initializers import BlockInit
from flaxclip.models.trunks.vit_family import RotaryGrid, ViTFamily

_WITH_CLASS_TOKEN = ViTFamily(
    class_token=True,
    pooling="attention",
    norm_before_blocks=True,
    patch_bias=False,
    projection="always",
    projection_bias=True,
    zero_class_token=False,
    whole_patches=True,
    block_init=BlockInit.truncated_normal,
    rotary=RotaryGrid(column_first=True, offset=1),
    pool_heads=8,
)

FAMILIES = {
    "pe": _WITH_CLASS_TOKEN,
    "pe_patches": dataclasses.replace(
        _WITH_CLASS_TOKEN, class_token=False, rotary=RotaryGrid(column_first=True)
    ),
}
