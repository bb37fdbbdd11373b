"""ConvNeXt (Liu et al. 2022, "A ConvNet for the 2020s"), the image tower of LAION's convnext_*.

Patches of 4 pixels, then four stages at halving resolutions, whose blocks are depthwise
convolutions of 7 x 7 and MLPs; the mean of all positions is normed and projected.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from flaxclip.errors import InputError
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.initializers import BlockInit, logical
from flaxclip.models.layers import MLP, BlockConfig, check_sizes, gelu, layer_norm
from flaxclip.models.trunks.trunk import TrunkConfig
from flaxclip.sharding import constrain

STEM = 4
"""Pixels on a side of the patches that the first stage sees."""

LAYER_SCALE = 1e-6
"""Initial factor on what a block adds (Touvron et al. 2021, "Going deeper", section 2)."""

# timm, `models/convnext.py`, `_init_weights`.
_KERNEL = nn.initializers.truncated_normal(0.02)
# open_clip, `timm_model.py`: its projections are PyTorch's `nn.Linear`.
_TORCH_KERNEL = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@dataclasses.dataclass(frozen=True)
class ConvNeXtConfig(TrunkConfig):
    """Shape of the image tower. The defaults are those of convnext_base."""

    image_size: int = 224
    """Side of the square input, pixels."""
    width: int = 128
    """Channels of the first stage; each further one has twice as many."""
    layers: tuple[int, int, int, int] = (3, 3, 27, 3)
    """Blocks of the four stages."""
    norm_eps: float = 1e-6
    head: Literal["linear", "mlp"] = "linear"
    """Projection after the pooling: a matrix, or an MLP whose inner width is twice the
    embedding's."""
    family: Literal["convnext"] = "convnext"

    is_transformer = False

    def __post_init__(self) -> None:
        check_sizes("vision", {"image_size": self.image_size, "width": self.width})
        for layers in self.layers:
            check_sizes("vision", {"layers": layers})
        if not 0 < self.norm_eps < 1:
            raise InputError(f"vision norm_eps is {self.norm_eps}\nexpected a small number")
        if self.image_size % self.patch_size:
            raise InputError(
                f"image_size {self.image_size} is not divisible by {self.patch_size}\n"
                f"a ConvNeXt halves patches of {STEM} pixels three times: choose a multiple of "
                f"{self.patch_size}"
            )

    @property
    def patch_size(self) -> int:
        return STEM * 8

    @property
    def deepest_stack(self) -> int:
        return max(self.layers)

    @property
    def tensor_divides(self) -> Mapping[str, int]:
        return {"MLP channels": 4 * self.width}

    def describe(self) -> str:
        return f"ConvNeXt, blocks {'-'.join(map(str, self.layers))}, width {self.width}"

    def make_tower(self, embed_dim: int, compute: ComputeConfig) -> nn.Module:
        return ConvNeXt(self, embed_dim, compute)


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution and an MLP, added to the input after a scale of their channels."""

    config: BlockConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        x = constrain(x, "batch", None, None, None)
        dtype, channels = self.compute.activation_dtype, x.shape[-1]
        h = nn.Conv(
            channels,
            (7, 7),
            padding=3,
            feature_group_count=channels,
            dtype=dtype,
            kernel_init=logical(_KERNEL, None, None, None, "embed"),
            bias_init=logical(nn.initializers.zeros, "embed"),
            name="depthwise",
        )(x)
        h = layer_norm("ln", self.config.norm_eps)(h).astype(dtype)
        h = MLP(self.config, self.compute, name="mlp")(rearrange(h, "b h w c -> b (h w) c"))
        scale = self.param(
            "layer_scale", logical(nn.initializers.constant(LAYER_SCALE), "embed"), (channels,)
        )
        return x + h.reshape(x.shape) * scale[None, None, None].astype(dtype)


class _Downsample(nn.Module):
    """Half the resolution, twice the channels."""

    norm_eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        return nn.Conv(
            2 * x.shape[-1],
            (2, 2),
            strides=2,
            padding="VALID",
            dtype=self.dtype,
            kernel_init=logical(_KERNEL, None, None, None, "embed"),
            bias_init=logical(nn.initializers.zeros, "embed"),
            name="conv",
        )(layer_norm("ln", self.norm_eps)(x).astype(self.dtype))


class Stage(nn.Module):
    """A downsampling, except for the first, then equal blocks, stacked and scanned."""

    layers: int
    downsamples: bool
    norm_eps: float
    compute: ComputeConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        if self.downsamples:
            dtype = self.compute.activation_dtype
            x = _Downsample(self.norm_eps, dtype, name="downsample")(x)
        width = x.shape[-1]
        block = BlockConfig(
            heads=1,
            mlp_width=4 * width,
            activation="gelu",
            init=BlockInit.truncated_normal(width, 4 * width),
            norm_eps=self.norm_eps,
        )
        stack = nn.scan(
            lambda block, x, _: (block(x), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.layers,
            unroll=min(self.compute.unroll or 1, self.layers),
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return stack(ConvNeXtBlock(block, self.compute, name="rest"), x, None)[0]


class ConvNeXt(nn.Module):
    """Normalised pixels in, one embedding of `embed_dim` an image out (not yet unit norm)."""

    config: ConvNeXtConfig
    embed_dim: int
    compute: ComputeConfig = ComputeConfig()

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w 3"], train: bool = False) -> Float[Array, "b d"]:
        """`train` has no effect on this tower."""
        c, dtype = self.config, self.compute.activation_dtype
        x = nn.Dense(
            c.width,
            dtype=dtype,
            kernel_init=logical(_KERNEL, None, "embed"),
            bias_init=logical(nn.initializers.zeros, "embed"),
            name="patch_embedding",
        )(rearrange(pixels, "b (h p) (w q) c -> b h w (p q c)", p=STEM, q=STEM))
        x = layer_norm("ln_pre", c.norm_eps)(x).astype(dtype)
        for number, layers in enumerate(c.layers, 1):
            x = Stage(layers, number > 1, c.norm_eps, self.compute, name=f"stage{number}")(x)
        x = x.astype(jnp.float32).mean(axis=(1, 2))
        x = layer_norm("ln_post", c.norm_eps)(x)
        if c.head == "mlp":
            x = gelu(self._dense(2 * self.embed_dim, True, "projection_hidden")(x))
        return self._dense(self.embed_dim, False, "projection")(x)

    def _dense(self, width: int, bias: bool, name: str) -> nn.Dense:
        return nn.Dense(
            width,
            use_bias=bias,
            dtype=jnp.float32,
            kernel_init=logical(_TORCH_KERNEL, "embed", None),
            bias_init=logical(nn.initializers.zeros, None),
            name=name,
        )
