"""The vision transformer of CLIP, that of SigLIP, and the original one."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, Int

from flaxclip.errors import InputError
from flaxclip.models.attention_pool import MAPHead
from flaxclip.models.layers import (
    Activation,
    AttentionKernel,
    BlockInit,
    check_sizes,
    check_transformer,
    layer_norm,
    logical,
)
from flaxclip.models.transformer import Remat, Transformer
from flaxclip.sharding import embedding_lookup


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
    """Hidden width of the MLP over `width`; the product is rounded."""
    activation: Activation = "quick_gelu"
    norm_eps: float = 1e-5
    pool: Literal["class", "map", "token"] = "class"
    """How the patches become one vector. "class", CLIP's: a class token, a norm before the blocks,
    and a projection. "map", SigLIP's (Zhai et al. 2023): multi-head attention pooling, no other
    token, norm or projection, and patches embedded with a bias. "token", that of the original
    vision transformer (Dosovitskiy et al. 2021) and LiT: a class token, and patches embedded with a
    bias; no norm before the blocks."""
    head: bool = False
    """With pool "token": whether a projection with a bias follows. LiT-B16B has one, later LiTs
    have none."""

    def __post_init__(self) -> None:
        sizes = {"image_size": self.image_size, "patch_size": self.patch_size}
        check_sizes("vision", sizes)
        if self.grid < 1:
            raise InputError(
                f"image_size {self.image_size} is smaller than patch_size {self.patch_size}"
            )
        # SigLIP So400m/14 at 384 pixels leaves the last 6 of each row and column unseen.
        if self.image_size % self.patch_size and self.pool != "map":
            raise InputError(
                f"image_size {self.image_size} is not divisible by patch_size {self.patch_size}\n"
                "choose an image size that is a multiple of the patch size"
            )
        if self.head and self.pool != "token":
            raise InputError(
                f'vision head is set, and pool is "{self.pool}"\n'
                'only with pool "token" there is a choice: leave it out'
            )
        check_transformer(
            "vision", self.width, self.layers, self.heads, self.mlp_ratio, self.norm_eps
        )

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
        return int(self.pool != "map")

    @property
    def has_projection(self) -> bool:
        """Whether embeddings may have another width than the tower."""
        return self.pool == "class" or self.head


class VisionTransformer(nn.Module):
    """Normalised pixels in, one embedding of `embed_dim` a picture out (not yet unit norm)."""

    config: VisionConfig
    embed_dim: int
    dtype: jnp.dtype
    unroll: int = 1
    remat: Remat = "names"
    attention: AttentionKernel = "auto"

    @nn.compact
    def __call__(
        self,
        pixels: Float[Array, "b h w 3"],
        train: bool = False,
        kept: Int[Array, "b k"] | None = None,
    ) -> Float[Array, "b d"]:
        """`train` makes no difference to this tower; of patches it sees all, or those `kept`."""
        c = self.config
        # A convolution whose stride is its kernel is a matrix product of flattened patches.
        side = c.grid * c.patch_size
        patches = rearrange(
            pixels[:, :side, :side],
            "b (h p) (w q) c -> b (h w) (p q c)",
            p=c.patch_size,
            q=c.patch_size,
        )
        if kept is not None:
            patches = jnp.take_along_axis(patches, kept[:, :, None], axis=1)
        x = nn.Dense(
            c.width,
            use_bias=c.pool != "class",
            dtype=self.dtype,
            kernel_init=logical(
                nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"), None, "embed"
            ),
            bias_init=logical(nn.initializers.zeros, "embed"),
            name="patch_embedding",
        )(patches)

        width_normal = nn.initializers.normal(c.width**-0.5)
        if c.class_tokens:
            born = width_normal if c.pool == "class" else nn.initializers.zeros
            class_embedding = self.param("class_embedding", logical(born, "embed"), (c.width,))
            class_token = jnp.broadcast_to(class_embedding, (x.shape[0], 1, c.width))
            x = jnp.concatenate([class_token.astype(x.dtype), x], axis=1)
        tokens = c.grid**2 + c.class_tokens
        position_embedding = self.param(
            "position_embedding", logical(width_normal, None, "embed"), (tokens, c.width)
        )
        positions = position_embedding[None].astype(x.dtype)
        if kept is not None:
            # The class token, where there is one, comes first and is never left out.
            seen = jnp.pad(kept + 1, ((0, 0), (1, 0))) if c.class_tokens else kept
            positions = embedding_lookup(positions[0], seen)
        x = x + positions
        if c.pool == "class":
            x = layer_norm("ln_pre", c.norm_eps)(x).astype(self.dtype)

        block_init = BlockInit.torch_default if c.pool == "class" else BlockInit.xavier
        x = Transformer(
            c.layers,
            c.heads,
            c.mlp_width,
            c.activation,
            causal=False,
            block_init=block_init(c.width, c.mlp_width),
            dtype=self.dtype,
            unroll=self.unroll,
            remat=self.remat,
            norm_eps=c.norm_eps,
            attention_kernel=self.attention,
            name="transformer",
        )(x)

        ln_post = layer_norm("ln_post", c.norm_eps)
        if c.pool == "map":
            head = MAPHead(c.heads, c.mlp_width, c.activation, c.norm_eps, self.dtype, name="pool")
            return head(ln_post(x).astype(self.dtype))
        x = ln_post(x[:, 0])
        if not c.has_projection:
            return x
        return nn.Dense(
            self.embed_dim,
            use_bias=c.pool == "token",
            dtype=jnp.float32,
            kernel_init=logical(width_normal, "embed", None),
            bias_init=logical(nn.initializers.zeros, None),
            name="projection",
        )(x)
