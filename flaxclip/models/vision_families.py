"""Vision transformers that differ in more than sizes: CLIP's, SigLIP's, the original, `trunks/`'s.

What the traits mean: `trunks/vit_family.py`.
"""

from typing import TYPE_CHECKING, Literal

from flaxclip.models.initializers import BlockInit
from flaxclip.models.trunks.registry import VIT_FAMILIES
from flaxclip.models.trunks.vit_family import ViTFamily

FAMILIES: dict[str, ViTFamily] = {
    # Radford et al. 2021, section 2.4.
    "clip": ViTFamily(
        class_token=True,
        pooling="class token",
        norm_before_blocks=True,
        patch_bias=False,
        projection="always",
        projection_bias=False,
        zero_class_token=False,
        whole_patches=True,
        block_init=BlockInit.torch_default,
    ),
    # Zhai et al. 2023. So400m/14 at 384 pixels leaves the last 6 of each row and column unseen.
    "siglip": ViTFamily(
        class_token=False,
        pooling="attention",
        norm_before_blocks=False,
        patch_bias=True,
        projection="never",
        projection_bias=False,
        zero_class_token=False,
        whole_patches=False,
        block_init=BlockInit.xavier,
    ),
    # Dosovitskiy et al. 2021. LiT-B16B has a projection, later LiTs have none (Zhai et al. 2022).
    "vit": ViTFamily(
        class_token=True,
        pooling="class token",
        norm_before_blocks=False,
        patch_bias=True,
        projection="optional",
        projection_bias=True,
        zero_class_token=True,
        whole_patches=True,
        block_init=BlockInit.xavier,
    ),
    **VIT_FAMILIES,
}
if TYPE_CHECKING:
    Family = str
else:
    Family = Literal[tuple(FAMILIES)]
