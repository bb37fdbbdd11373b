"""ViTamin (Chen et al. 2024, "Designing Scalable Vision Models in the Vision-Language Era").

Two stages of inverted bottlenecks halve an image's sides three times; their output, halved once
more, is what a transformer sees, whose MLPs are gated. The mean of its positions is normed and
projected.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from flaxclip.errors import InputError
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.initializers import BlockInit, Initializer, logical
from flaxclip.models.layers import (
    Attention,
    BlockConfig,
    check_sizes,
    check_transformer,
    gelu,
    layer_norm,
)
from flaxclip.models.projections import Projection
from flaxclip.models.transformer import Transformer
from flaxclip.models.trunks.trunk import TrunkConfig
from flaxclip.sharding import constrain

STAGES = (2, 4)
"""Convolutional blocks of both stages; the first of each halves the resolution."""

EXPANSION = 4
"""Channels within a convolutional block, over those that it puts out."""

NORM_EPS = 1e-6

_NORMAL = nn.initializers.truncated_normal(0.02)
# open_clip, `timm_model.py`: its projections are PyTorch's `nn.Linear`.
_TORCH_KERNEL = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# timm, `models/vitamin.py`, `_init_conv`.
_STEM_KERNEL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


@dataclasses.dataclass(frozen=True)
class ViTaminConfig(TrunkConfig):
    """Shape of the image tower. The defaults are ViTamin-L's."""

    image_size: int = 224
    """Side of the square input, pixels."""
    width: int = 1024
    """Channels of the transformer."""
    layers: int = 31
    """Blocks of the transformer."""
    heads: int = 16
    stem_width: int = 160
    """Channels of the first stage; the second has twice as many."""
    positions: bool = True
    """True if there are position embeddings; otherwise the borders of convolutions tell places."""
    family: Literal["vitamin"] = "vitamin"

    is_transformer = False

    def __post_init__(self) -> None:
        check_sizes("vision", {"image_size": self.image_size, "stem_width": self.stem_width})
        check_transformer("vision", self.width, self.layers, self.heads, 2.0, NORM_EPS)
        if self.image_size % self.patch_size:
            raise InputError(
                f"image_size {self.image_size} is not divisible by {self.patch_size}\n"
                f"a ViTamin halves its input four times: choose a multiple of {self.patch_size}"
            )

    @property
    def patch_size(self) -> int:
        return 16

    @property
    def deepest_stack(self) -> int:
        return self.layers

    @property
    def tensor_divides(self) -> Mapping[str, int]:
        return {"heads": self.heads, "MLP channels": 2 * self.width}

    def describe(self) -> str:
        return (
            f"ViTamin, {self.layers} layers, width {self.width}, {self.heads} heads, behind "
            f"convolutions of width {self.stem_width}"
        )

    def make_tower(self, embed_dim: int, compute: ComputeConfig) -> nn.Module:
        return ViTamin(self, embed_dim, compute)


def _conv(
    channels: int, size: int, dtype: jnp.dtype, name: str, stride: int = 1, groups: int = 1,
    kernel_init: Initializer = _TORCH_KERNEL,
) -> nn.Conv:  # fmt: skip
    return nn.Conv(
        channels,
        (size, size),
        strides=stride,
        padding=size // 2,
        feature_group_count=groups,
        dtype=dtype,
        kernel_init=logical(kernel_init, None, None, None, "embed"),
        bias_init=logical(nn.initializers.zeros, "embed"),
        name=name,
    )


def _halved(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Means of squares of 3 x 3 around every second pixel, of what of them is in the image."""
    return nn.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)), count_include_pad=False)


class _Bottleneck(nn.Module):
    """Wide, depthwise, narrow, beside a shortcut: MBConv (Sandler et al. 2018), with layer norm."""

    channels: int
    halves: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        wide, dtype = EXPANSION * self.channels, self.dtype
        h = layer_norm("ln", NORM_EPS)(x).astype(dtype)
        h = gelu(_conv(wide, 1, dtype, "widen_conv")(h))
        h = gelu(_conv(wide, 3, dtype, "depthwise", 2 if self.halves else 1, wide)(h))
        h = _conv(self.channels, 1, dtype, "narrow_conv")(h)
        if self.halves:
            x = _halved(x)
        if x.shape[-1] != self.channels:
            x = _conv(self.channels, 1, dtype, "shortcut_conv")(x)
        return x + h


class _Stem(nn.Module):
    """A sixteenth of the resolution, with the transformer's channels."""

    config: ViTaminConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b h16 w16 c"]:
        c, dtype = self.config, self.dtype
        x = _conv(c.stem_width, 3, dtype, "pixel_projection", 2, kernel_init=_STEM_KERNEL)(x)
        x = gelu(layer_norm("ln_pixels", NORM_EPS)(x).astype(dtype))
        x = _conv(c.stem_width, 3, dtype, "conv", kernel_init=_STEM_KERNEL)(x)
        for stage, blocks in enumerate(STAGES):
            for block in range(blocks):
                name, width = f"stage{stage + 1}_{block}", c.stem_width * 2**stage
                x = _Bottleneck(width, block == 0, dtype, name=name)(x)
        return _conv(c.width, 3, dtype, "last_conv", 2)(
            layer_norm("ln_last", NORM_EPS)(x).astype(dtype)
        )


class _GatedMLP(nn.Module):
    """GeGLU (Shazeer 2020, equation 6), behind a norm of its own."""

    config: BlockConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b l w"]) -> Float[Array, "b l w"]:
        c, width = self.config, x.shape[-1]
        x = layer_norm("ln", c.norm_eps)(constrain(x, "batch", None, None)).astype(self.dtype)

        def wide(name: str) -> Array:
            h = Projection(
                (width,),
                (c.mlp_width,),
                kernel_init=logical(c.init.fc1_kernel, "embed", "mlp"),
                bias_init=logical(c.init.fc1_bias, "mlp"),
                dtype=self.dtype,
                name=name,
            )(x)
            return checkpoint_name(constrain(h, "batch", None, "mlp"), "fc1")

        h = Projection(
            (c.mlp_width,),
            (width,),
            kernel_init=logical(c.init.fc2_kernel, "mlp", "embed"),
            bias_init=logical(c.init.fc2_bias, "embed"),
            dtype=self.dtype,
            name="fc2",
        )(gelu(wide("gate")) * wide("fc1"))
        return constrain(h, "batch", None, None)


class ViTaminBlock(nn.Module):
    """Attention, then the gated MLP; what the MLP reads is normed twice."""

    config: BlockConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b l w"],
        padding_mask: Bool[Array, "b l"] | None = None,
        angles: Float[Array, "#b l half"] | None = None,
    ) -> Float[Array, "b l w"]:
        c, dtype = self.config, self.compute.activation_dtype
        ln_1, ln_2 = layer_norm("ln_1", c.norm_eps), layer_norm("ln_2", c.norm_eps)
        attention = Attention(c, self.compute, name="attention")
        x = x + attention(ln_1(x).astype(dtype), padding_mask, angles)
        x = checkpoint_name(x, "residual")
        return x + _GatedMLP(c, dtype, name="mlp")(ln_2(x).astype(dtype))


class ViTamin(nn.Module):
    """Normalised pixels in, one embedding of `embed_dim` an image out (not yet unit norm)."""

    config: ViTaminConfig
    embed_dim: int
    compute: ComputeConfig = ComputeConfig()

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w 3"], train: bool = False) -> Float[Array, "b d"]:
        """`train` has no effect on this tower."""
        c, dtype = self.config, self.compute.activation_dtype
        x = rearrange(_Stem(c, dtype, name="stem")(pixels), "b h w c -> b (h w) c")
        if c.positions:
            shape = (c.grid**2, c.width)
            positions = self.param("position_embedding", logical(_NORMAL, None, "embed"), shape)
            x = x + positions[None].astype(x.dtype)
        block = BlockConfig(
            c.heads,
            2 * c.width,
            "gelu",
            init=BlockInit.truncated_normal(c.width, 2 * c.width),
            norm_eps=NORM_EPS,
        )
        x = Transformer(c.layers, block, self.compute, ViTaminBlock, name="transformer")(x)
        return nn.Dense(
            self.embed_dim,
            use_bias=False,
            dtype=jnp.float32,
            kernel_init=logical(_TORCH_KERNEL, "embed", None),
            name="projection",
        )(layer_norm("ln_post", NORM_EPS)(x.astype(jnp.float32).mean(axis=1)))
