"""The convolutional image tower of CLIP: a ResNet-D whose last layer is attention pooling.

Radford et al. 2021, section 2.4: three convolutions as stem, average pooling before every stride
(He et al. 2019; Zhang 2019), and a query from the mean of all positions in place of mean pooling.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange, reduce
from flax import linen as nn
from jaxtyping import Array, Float

from flaxclip.errors import InputError
from flaxclip.models.attention.pooling import AttentionPool
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.initializers import Initializer, logical, uniform
from flaxclip.models.layers import check_sizes
from flaxclip.models.trunks.trunk import TrunkConfig

EXPANSION = 4
"""Channels that a block puts out, over those of its 3x3 convolution (He et al. 2016)."""

BATCH_NORM_MOMENTUM = 0.1
"""Weight of the newest batch in the running statistics; PyTorch's default."""

BATCH_NORM_EPSILON = 1e-5
"""Added to variances; PyTorch's default."""

TORCH_KERNEL = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""PyTorch initializes `nn.Conv2d` and `nn.Linear` uniformly within +-fan_in^-1/2."""


@dataclasses.dataclass(frozen=True)
class ResNetConfig(TrunkConfig):
    """Shape of the image tower. The defaults are RN50's (Radford et al. 2021, table 19)."""

    image_size: int = 224
    """Side of the square input, pixels."""
    width: int = 64
    """Channels after the stem; the last stage puts out 32 times as many."""
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    """Bottleneck blocks of the four stages."""
    frozen_statistics: bool = False
    """Normalise with the running statistics in training too, and leave them unchanged."""
    family: Literal["resnet"] = "resnet"

    is_transformer = False

    def __post_init__(self) -> None:
        check_sizes("vision", {"image_size": self.image_size, "width": self.width})
        for layers in self.layers:
            check_sizes("vision", {"layers": layers})
        if self.image_size % self.patch_size:
            raise InputError(
                f"image_size {self.image_size} is not divisible by {self.patch_size}\n"
                f"a ResNet halves its input five times: choose a multiple of {self.patch_size}"
            )
        if self.width % 2:
            raise InputError(f"ResNet width {self.width} is odd\nits stem halves it")

    @property
    def patch_size(self) -> int:
        return 32  # five strides of 2

    @property
    def deepest_stack(self) -> int:
        return max(self.layers)

    @property
    def averages_statistics(self) -> bool:
        return not self.frozen_statistics

    def describe(self) -> str:
        return f"ResNet, blocks {'-'.join(map(str, self.layers))}, width {self.width}"

    def make_tower(self, embed_dim: int, compute: ComputeConfig) -> nn.Module:
        return ModifiedResNet(self, embed_dim, compute)

    @property
    def heads(self) -> int:
        """Of the attention pooling, 64 channels each (openai/CLIP, `clip/model.py`)."""
        return self.width * 8 * EXPANSION // 64


class BatchNorm(nn.Module):
    """Batch normalisation over the whole batch, on all its devices; as in PyTorch.

    The collection `batch_stats` holds the running `mean` and `var`. The latter is unbiased, while
    the batch is divided by its biased deviation. Computed in float32, whatever the type of the
    activations.
    """

    use_running_statistics: bool
    dtype: jnp.dtype
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        shape = x.shape[-1:]
        scale = self.param("scale", logical(self.scale_init, "embed"), shape)
        bias = self.param("bias", logical(nn.initializers.zeros, "embed"), shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        x = x.astype(jnp.float32)
        if self.use_running_statistics:
            mean, var = running_mean.value, running_var.value
        else:
            mean, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
            count = x.size // x.shape[-1]
            if count == 1:
                raise InputError(
                    "batch normalisation of a single value a channel\n"
                    "train with more images a batch, or larger ones"
                )
            unbiased = var * (count / (count - 1))
            running_mean.value += BATCH_NORM_MOMENTUM * (mean - running_mean.value)
            running_var.value += BATCH_NORM_MOMENTUM * (unbiased - running_var.value)
        mean, factor, bias = (
            v[None, None, None]
            for v in (mean, scale * jax.lax.rsqrt(var + BATCH_NORM_EPSILON), bias)
        )
        return ((x - mean) * factor + bias).astype(self.dtype)


def halve(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Mean of every 2x2 square: a stride that does not alias."""
    return reduce(x, "b (h p) (w q) c -> b h w c", "mean", p=2, q=2)


class ConvNorm(nn.Module):
    """A convolution without bias, and the norm that follows it."""

    channels: int
    kernel: int
    use_running_statistics: bool
    dtype: jnp.dtype
    stride: int = 1
    scale_init: Initializer = nn.initializers.ones
    depthwise: bool = False
    """True if every channel is read by itself."""
    kernel_init: Initializer = TORCH_KERNEL

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        x = nn.Conv(
            self.channels,
            (self.kernel, self.kernel),
            strides=self.stride,
            padding=self.kernel // 2,
            feature_group_count=x.shape[-1] if self.depthwise else 1,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=logical(self.kernel_init, None, None, None, "embed"),
            name="depthwise" if self.depthwise else "conv",
        )(x)
        return BatchNorm(self.use_running_statistics, self.dtype, self.scale_init, name="bn")(x)


class Stem(nn.Module):
    """Three convolutions and a pooling: a quarter of the resolution, `width` channels."""

    width: int
    use_running_statistics: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b h4 w4 c"]:
        args = (3, self.use_running_statistics, self.dtype)
        x = nn.relu(ConvNorm(self.width // 2, *args, stride=2, name="conv1")(x))
        x = nn.relu(ConvNorm(self.width // 2, *args, name="conv2")(x))
        x = nn.relu(ConvNorm(self.width, *args, name="conv3")(x))
        return halve(x)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution beside a shortcut (He et al. 2016).

    The first block of a stage changes the shape, so its shortcut has a convolution too.
    """

    channels: int
    stride: int
    first: bool
    use_running_statistics: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        args = (self.use_running_statistics, self.dtype)
        out = self.channels * EXPANSION
        h = nn.relu(ConvNorm(self.channels, 1, *args, name="conv1")(x))
        h = nn.relu(ConvNorm(self.channels, 3, *args, name="conv2")(h))
        if self.stride == 2:
            h, x = halve(h), halve(x)
        # Starts as the identity: openai/CLIP, `CLIP.initialize_parameters`.
        h = ConvNorm(out, 1, *args, scale_init=nn.initializers.zeros, name="conv3")(h)
        if self.first:
            x = ConvNorm(out, 1, *args, name="shortcut")(x)
        return nn.relu(h + x)


class Stage(nn.Module):
    """The block that changes the shape, then `layers - 1` equal ones, stacked and scanned."""

    layers: int
    channels: int
    stride: int
    use_running_statistics: bool
    dtype: jnp.dtype
    unroll: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        args = (self.use_running_statistics, self.dtype)
        x = Bottleneck(self.channels, self.stride, True, *args, name="first")(x)
        if self.layers == 1:
            return x
        stack = nn.scan(
            lambda block, x, _: (block(x), None),
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=self.layers - 1,
            unroll=min(self.unroll, self.layers - 1),
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return stack(Bottleneck(self.channels, 1, False, *args, name="rest"), x, None)[0]


class ModifiedResNet(nn.Module):
    """Normalised pixels in, one embedding of `embed_dim` an image out (not yet unit norm)."""

    config: ResNetConfig
    embed_dim: int
    compute: ComputeConfig = ComputeConfig()

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w 3"], train: bool = False) -> Float[Array, "b d"]:
        """`train`: normalise with the batch's statistics, and update the running ones."""
        c, dtype = self.config, self.compute.activation_dtype
        running = c.frozen_statistics or not train
        x = Stem(c.width, running, dtype, name="stem")(pixels)
        for index, layers in enumerate(c.layers):
            x = Stage(
                layers,
                channels=c.width * 2**index,
                stride=1 if index == 0 else 2,
                use_running_statistics=running,
                dtype=dtype,
                unroll=self.compute.unroll or 1,
                name=f"stage{index + 1}",
            )(x)

        x = rearrange(x, "b h w c -> b (h w) c")
        x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
        width = x.shape[-1]
        width_normal = nn.initializers.normal(width**-0.5)
        position_embedding = self.param(
            "position_embedding", logical(width_normal, None, "embed"), (c.grid**2 + 1, width)
        )
        x = x + position_embedding[None].astype(x.dtype)
        pool = AttentionPool(
            c.heads, self.embed_dim, width_normal, uniform(width**-0.5), dtype, name="pool"
        )
        return pool(x[:, :1], x)[:, 0].astype(jnp.float32)
