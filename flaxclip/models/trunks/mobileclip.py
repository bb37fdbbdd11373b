"""The image tower of MobileCLIP2-L/14 (Faghri et al. 2025, "MobileCLIP2").

OpenAI's vision transformer with a bias in the projection, as timm's classifiers have it.
"""

from flaxclip.models.initializers import BlockInit
from flaxclip.models.trunks.vit_family import ViTFamily

FAMILIES = {
    "mobileclip_vit": ViTFamily(
        class_token=True,
        pooling="class token",
        norm_before_blocks=True,
        patch_bias=False,
        projection="always",
        projection_bias=True,
        zero_class_token=False,
        whole_patches=True,
        block_init=BlockInit.truncated_normal,
    ),
}
