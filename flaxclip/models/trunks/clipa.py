"""The image tower of CLIPA (Li et al. 2023, "An Inverse Scaling Law for CLIP Training").

The mean of the patches yields the embedding, though there is a class token. Positions start as
sines and cosines and are learned on. OpenVision (Li et al. 2025) has the same tower.
"""

from flaxclip.models.initializers import BlockInit
from flaxclip.models.trunks.vit_family import ViTFamily

FAMILIES = {
    "clipa": ViTFamily(
        class_token=True,
        pooling="mean",
        norm_before_blocks=False,
        patch_bias=False,
        projection="always",
        projection_bias=False,
        zero_class_token=True,
        # OpenVision's SO400M/14 at 384 pixels leaves the last 6 of each row and column unseen.
        whole_patches=False,
        block_init=BlockInit.xavier,
        sincos_positions=True,
    ),
}
