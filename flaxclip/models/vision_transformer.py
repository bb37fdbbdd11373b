"""The image tower of CLIP: a vision transformer with a class token and a norm before the blocks."""

import dataclasses

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from flaxclip.errors import InputError
from flaxclip.models.layers import (
    Activation,
    BlockInit,
    Transformer,
    check_heads,
    layer_norm,
    logical,
)


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Shape of the image tower. The defaults are ViT-B/32 (Radford et al. 2021, section 2.4)."""

    image_size: int = 224
    """Side of the square input, pixels."""
    patch_size: int = 32
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over `width`, rounded down as open_clip does."""
    activation: Activation = "quick_gelu"

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise InputError(
                f"image_size {self.image_size} is not divisible by patch_size {self.patch_size}\n"
                "choose an image size that is a multiple of the patch size"
            )
        check_heads("vision", self.width, self.heads)

    @property
    def mlp_width(self) -> int:
        return int(self.width * self.mlp_ratio)


class VisionTransformer(nn.Module):
    """Normalised pixels in, one embedding of `embed_dim` a picture out (not yet unit norm)."""

    config: VisionConfig
    embed_dim: int
    dtype: jnp.dtype
    unroll: int = 1

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        c = self.config
        # A convolution whose stride is its kernel is a matrix product of flattened patches.
        patches = rearrange(
            pixels, "b (h p) (w q) c -> b (h w) (p q c)", p=c.patch_size, q=c.patch_size
        )
        x = nn.Dense(
            c.width,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=logical(
                nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"), None, "embed"
            ),
            name="patch_embedding",
        )(patches)

        width_normal = nn.initializers.normal(c.width**-0.5)
        class_embedding = self.param("class_embedding", logical(width_normal, "embed"), (c.width,))
        position_embedding = self.param(
            "position_embedding",
            logical(width_normal, None, "embed"),
            (patches.shape[1] + 1, c.width),
        )
        class_token = jnp.broadcast_to(class_embedding, (x.shape[0], 1, c.width))
        x = jnp.concatenate([class_token.astype(x.dtype), x], axis=1)
        x = x + position_embedding[None].astype(x.dtype)

        x = layer_norm("ln_pre")(x).astype(self.dtype)
        x = Transformer(
            c.layers,
            c.heads,
            c.mlp_width,
            c.activation,
            causal=False,
            block_init=BlockInit.torch_default(c.width, c.mlp_width),
            dtype=self.dtype,
            unroll=self.unroll,
            name="transformer",
        )(x)
        x = layer_norm("ln_post")(x[:, 0])
        return nn.Dense(
            self.embed_dim,
            use_bias=False,
            dtype=jnp.float32,
            kernel_init=logical(width_normal, "embed", None),
            name="projection",
        )(x)
