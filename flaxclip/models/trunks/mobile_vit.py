"""The image tower of MobileCLIP-B (Vasu et al. 2024): a vision transformer behind convolutions.

Their strides are their kernels, 4, 2 and 2 pixels, so that no patch of 16 pixels sees another but
through batch norms. The class token has no position.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, Int

from flaxclip.errors import InputError
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.initializers import BlockInit, logical
from flaxclip.models.layers import BlockConfig, check_sizes, check_transformer, gelu, layer_norm
from flaxclip.models.modified_resnet import TORCH_KERNEL, BatchNorm
from flaxclip.models.transformer import Transformer
from flaxclip.models.trunks.trunk import TrunkConfig
from flaxclip.sharding import embedding_lookup

PATCH_SIZE = 16

_NORMAL = nn.initializers.truncated_normal(0.02)


@dataclasses.dataclass(frozen=True)
class MobileViTConfig(TrunkConfig):
    """Shape of the image tower. The defaults are MobileCLIP-B's."""

    image_size: int = 224
    """Side of the square input, pixels."""
    width: int = 768
    layers: int = 12
    heads: int = 12
    frozen_statistics: bool = False
    """Normalise with the running statistics in training too, and leave them unchanged."""
    family: Literal["mobile_vit"] = "mobile_vit"

    is_transformer = True

    def __post_init__(self) -> None:
        check_sizes("vision", {"image_size": self.image_size})
        check_transformer("vision", self.width, self.layers, self.heads, 4.0, 1e-6)
        if self.image_size % PATCH_SIZE:
            raise InputError(
                f"image_size {self.image_size} is not divisible by {PATCH_SIZE}\n"
                f"choose a multiple of MobileCLIP-B's patch size, {PATCH_SIZE}"
            )
        if self.width % 4:
            raise InputError(
                f"vision width {self.width} is not divisible by 4\n"
                "the first two convolutions of MobileCLIP-B have a quarter of its channels"
            )

    @property
    def patch_size(self) -> int:
        return PATCH_SIZE

    @property
    def deepest_stack(self) -> int:
        return self.layers

    @property
    def averages_statistics(self) -> bool:
        return not self.frozen_statistics

    @property
    def architecture(self) -> "MobileViTConfig":
        return dataclasses.replace(self, frozen_statistics=False)

    @property
    def tensor_divides(self) -> Mapping[str, int]:
        return {"heads": self.heads, "MLP channels": 4 * self.width}

    def describe(self) -> str:
        return (
            f"{self.layers} layers, width {self.width}, {self.heads} heads, gelu, "
            f"family {self.family}"
        )

    def make_tower(self, embed_dim: int, compute: ComputeConfig) -> nn.Module:
        return MobileViT(self, embed_dim, compute)


class _Stem(nn.Module):
    """Patches of 4 pixels, joined twice to those of twice the side.

    As the strides are the kernels, a convolution is a matrix product. Whole patches come first, so
    that those that are left out are not computed.
    """

    width: int
    running: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, patches: Float[Array, "b n 16 16 3"]) -> Float[Array, "b n w"]:
        narrow = self.width // 4
        x = self._joined(patches, 4, narrow, "patch_embedding")
        x = gelu(self._normed(x, "bn1"))
        x = gelu(self._normed(self._joined(x, 2, narrow, "join1"), "bn2"))
        return self._joined(x, 2, self.width, "join2")[:, :, 0, 0]

    def _joined(self, x: Float[Array, "b n h w c"], size: int, width: int, name: str) -> Array:
        return nn.Dense(
            width,
            use_bias=name == "join2",
            dtype=self.dtype,
            kernel_init=logical(TORCH_KERNEL, None, "embed"),
            bias_init=logical(nn.initializers.zeros, "embed"),
            name=name,
        )(rearrange(x, "b n (h p) (w q) c -> b n h w (p q c)", p=size, q=size))

    def _normed(self, x: Float[Array, "b n h w c"], name: str) -> Float[Array, "b n h w c"]:
        norm = BatchNorm(self.running, self.dtype, name=name)
        return norm(rearrange(x, "b n h w c -> b n (h w) c")).reshape(x.shape)


class MobileViT(nn.Module):
    """Normalised pixels in, one embedding of `embed_dim` an image out (not yet unit norm)."""

    config: MobileViTConfig
    embed_dim: int
    compute: ComputeConfig = ComputeConfig()

    @nn.compact
    def __call__(
        self,
        pixels: Float[Array, "b h w 3"],
        train: bool = False,
        patch_ids: Int[Array, "b k"] | None = None,
    ) -> Float[Array, "b d"]:
        """`train`: normalise with the batch's statistics, and update the running ones. The tower
        sees all patches, or `patch_ids`.
        """
        c, dtype = self.config, self.compute.activation_dtype
        patches = rearrange(pixels, "b (h p) (w q) c -> b (h w) p q c", p=PATCH_SIZE, q=PATCH_SIZE)
        if patch_ids is not None:
            patches = jnp.take_along_axis(patches, patch_ids[:, :, None, None, None], axis=1)
        x = _Stem(c.width, c.frozen_statistics or not train, dtype, name="stem")(patches)
        position_embedding = self.param(
            "position_embedding", logical(_NORMAL, None, "embed"), (c.grid**2, c.width)
        )
        if patch_ids is None:
            x = x + position_embedding[None].astype(x.dtype)
        else:
            x = x + embedding_lookup(position_embedding, patch_ids).astype(x.dtype)
        init = nn.initializers.normal(1e-6)
        class_embedding = self.param("class_embedding", logical(init, "embed"), (c.width,))
        class_token = jnp.broadcast_to(class_embedding, (x.shape[0], 1, c.width))
        x = jnp.concatenate([class_token.astype(x.dtype), x], axis=1)
        block = BlockConfig(
            c.heads,
            4 * c.width,
            "gelu",
            init=BlockInit.truncated_normal(c.width, 4 * c.width),
            norm_eps=1e-6,
        )
        x = Transformer(c.layers, block, self.compute, name="transformer")(x)
        return nn.Dense(
            self.embed_dim,
            dtype=jnp.float32,
            kernel_init=logical(_NORMAL, "embed", None),
            bias_init=logical(nn.initializers.zeros, None),
            name="projection",
        )(layer_norm("ln_post", 1e-6)(x[:, 0]))
