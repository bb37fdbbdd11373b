"""The vision transformer: CLIP's, SigLIP's, and the original one."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, Int

from flaxclip.errors import InputError
from flaxclip.models.attention_pool import MAPHead
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.initializers import BlockInit, logical
from flaxclip.models.layers import (
    Activation,
    BlockConfig,
    check_sizes,
    check_transformer,
    layer_norm,
)
from flaxclip.models.transformer import Transformer
from flaxclip.sharding import embedding_lookup


@dataclasses.dataclass(frozen=True)
class ViTFamily:
    """The traits in which families of image towers differ."""

    class_token: bool
    """True if a class token precedes the patches and yields the image's embedding; otherwise
    multi-head attention pooling (MAP) does."""
    norm_before_blocks: bool
    patch_bias: bool
    projection: Literal["always", "never", "optional"]
    """Projection to the shared embedding space after the pooling."""
    projection_bias: bool
    zero_class_token: bool
    """True if the class token is initialized with zeros, rather than at random."""
    whole_patches: bool
    """True if the image's side must be a multiple of the patch's."""
    block_init: Callable[[int, int], BlockInit]


FAMILIES: dict[str, ViTFamily] = {
    # Radford et al. 2021, section 2.4.
    "clip": ViTFamily(
        class_token=True,
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
        norm_before_blocks=False,
        patch_bias=True,
        projection="optional",
        projection_bias=True,
        zero_class_token=True,
        whole_patches=True,
        block_init=BlockInit.xavier,
    ),
}


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Shape of the image tower. The defaults are ViT-B/32 (Radford et al. 2021, section 2.4)."""

    image_size: int = 224
    """Side of the square input, pixels."""
    patch_size: int = 32
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over `width`; the product is rounded."""
    activation: Activation = "quick_gelu"
    norm_eps: float = 1e-5
    family: Literal["clip", "siglip", "vit"] = "clip"
    """CLIP's tower, SigLIP's, or the original vision transformer, which is LiT's. Sets tokens,
    norms, pooling, biases and initial values, as in `FAMILIES`."""
    head: bool = False
    """With family "vit": whether a projection with a bias follows. LiT-B16B has one, later LiTs
    have none."""

    def __post_init__(self) -> None:
        sizes = {"image_size": self.image_size, "patch_size": self.patch_size}
        check_sizes("vision", sizes)
        if self.grid < 1:
            raise InputError(
                f"image_size {self.image_size} is smaller than patch_size {self.patch_size}"
            )
        if self.image_size % self.patch_size and self.traits.whole_patches:
            raise InputError(
                f"image_size {self.image_size} is not divisible by patch_size {self.patch_size}\n"
                "choose an image size that is a multiple of the patch size"
            )
        if self.head and self.traits.projection != "optional":
            raise InputError(
                f'vision head is set, and family is "{self.family}"\n'
                'only with family "vit" there is a choice: leave it out'
            )
        check_transformer(
            "vision", self.width, self.layers, self.heads, self.mlp_ratio, self.norm_eps
        )

    @property
    def traits(self) -> ViTFamily:
        """The traits of the tower's family."""
        return FAMILIES[self.family]

    @property
    def mlp_width(self) -> int:
        return round(self.width * self.mlp_ratio)

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def class_tokens(self) -> int:
        """Positions before the patches: 1 or 0."""
        return int(self.traits.class_token)

    @property
    def has_projection(self) -> bool:
        """True if embeddings may have another width than the tower."""
        return self.traits.projection == "always" or self.head


class VisionTransformer(nn.Module):
    """Normalised pixels in, one embedding of `embed_dim` an image out (not yet unit norm)."""

    config: ViTConfig
    embed_dim: int
    compute: ComputeConfig = ComputeConfig()

    @nn.compact
    def __call__(
        self,
        pixels: Float[Array, "b h w 3"],
        train: bool = False,
        patch_ids: Int[Array, "b k"] | None = None,
    ) -> Float[Array, "b d"]:
        """`train` has no effect on this tower; it sees all patches, or `patch_ids`."""
        c, family, dtype = self.config, self.config.traits, self.compute.activation_dtype
        # A convolution whose stride is its kernel is a matrix product of flattened patches.
        side = c.grid * c.patch_size
        patches = rearrange(
            pixels[:, :side, :side],
            "b (h p) (w q) c -> b (h w) (p q c)",
            p=c.patch_size,
            q=c.patch_size,
        )
        if patch_ids is not None:
            patches = jnp.take_along_axis(patches, patch_ids[:, :, None], axis=1)
        x = nn.Dense(
            c.width,
            use_bias=family.patch_bias,
            dtype=dtype,
            kernel_init=logical(
                nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"), None, "embed"
            ),
            bias_init=logical(nn.initializers.zeros, "embed"),
            name="patch_embedding",
        )(patches)

        width_normal = nn.initializers.normal(c.width**-0.5)
        if family.class_token:
            init = nn.initializers.zeros if family.zero_class_token else width_normal
            class_embedding = self.param("class_embedding", logical(init, "embed"), (c.width,))
            class_token = jnp.broadcast_to(class_embedding, (x.shape[0], 1, c.width))
            x = jnp.concatenate([class_token.astype(x.dtype), x], axis=1)
        tokens = c.grid**2 + c.class_tokens
        position_embedding = self.param(
            "position_embedding", logical(width_normal, None, "embed"), (tokens, c.width)
        )
        positions = position_embedding[None].astype(x.dtype)
        if patch_ids is not None:
            # The class token, where there is one, comes first and is never left out.
            seen = jnp.pad(patch_ids + 1, ((0, 0), (1, 0))) if c.class_tokens else patch_ids
            positions = embedding_lookup(positions[0], seen)
        x = x + positions
        if family.norm_before_blocks:
            x = layer_norm("ln_pre", c.norm_eps)(x).astype(dtype)

        block = BlockConfig(
            c.heads,
            c.mlp_width,
            c.activation,
            init=family.block_init(c.width, c.mlp_width),
            norm_eps=c.norm_eps,
        )
        x = Transformer(c.layers, block, self.compute, name="transformer")(x)

        ln_post = layer_norm("ln_post", c.norm_eps)
        if not family.class_token:
            return MAPHead(block, self.compute, name="pool")(ln_post(x).astype(dtype))
        x = ln_post(x[:, 0])
        if not c.has_projection:
            return x
        return nn.Dense(
            self.embed_dim,
            use_bias=family.projection_bias,
            dtype=jnp.float32,
            kernel_init=logical(width_normal, "embed", None),
            bias_init=logical(nn.initializers.zeros, None),
            name="projection",
        )(x)


def sample_patches(key: Array, images: int, patches: int, count: int) -> Int[Array, "b k"]:
    """`count` of `patches` for each image, without replacement (FLIP; Li et al. 2023, section 3).

    An image's choice depends on the key and its place in the batch alone: it is the same on any
    mesh, and in every pass over any part of the batch.
    """
    return jax.lax.top_k(jax.random.uniform(key, (images, patches)), count)[1]
