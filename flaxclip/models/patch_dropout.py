"""Which patches of a picture its tower sees in an update: a random few, for speed (FLIP)."""

import jax
from jaxtyping import Array, Int

from flaxclip.errors import InputError
from flaxclip.models.modified_resnet import ResNetConfig
from flaxclip.models.vision_transformer import VisionConfig


def count_kept_patches(vision: VisionConfig | ResNetConfig, dropout: float) -> int | None:
    """Patches that are left when a share `dropout` of them is; None for all, without dropout.

    Raises:
        InputError: no share, or a tower that has no patches.
    """
    if not 0 <= dropout < 1:
        raise InputError(f"patch_dropout is {dropout}\nit must be at least 0 and less than 1")
    if dropout == 0:
        return None
    if isinstance(vision, ResNetConfig):
        raise InputError(
            f"patch_dropout is {dropout}, and the image tower is a ResNet\n"
            "only a vision transformer can leave patches out: choose one, or no dropout"
        )
    return max(1, round(vision.grid**2 * (1 - dropout)))


def sample_patches(key: Array, pictures: int, patches: int, kept: int) -> Int[Array, "b kept"]:
    """`kept` of `patches` for each picture, without replacement (Li et al. 2023, section 3).

    A picture's choice depends on the key and its place in the batch alone: it is the same on any
    mesh, and in every pass over any part of the batch.
    """
    return jax.lax.top_k(jax.random.uniform(key, (pictures, patches)), kept)[1]
