"""What halves a FastViT's resolution: its stem, and what stands between its stages."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from flaxclip.models.initializers import logical, uniform
from flaxclip.models.layers import gelu
from flaxclip.models.trunks.branches import Branches, BranchMode

SPATIAL_SIZE = 7
"""Side of the kernels between stages, before MLPs and of positions."""


def gate_width(channels: int) -> int:
    """Of the gates between stages: a quarter, as a multiple of 8 (timm's `make_divisible`)."""
    return max(8, (channels // 4 + 4) // 8 * 8)


class Gates(nn.Module):
    """Channels scaled by gates that are read from all their means (Hu et al. 2018)."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        h = x.astype(jnp.float32).mean(axis=(1, 2)).astype(self.dtype)
        h = nn.relu(self._dense(self.width, h.shape[-1], "fc1")(h))
        h = self._dense(x.shape[-1], self.width, "fc2")(h)
        return x * jax.nn.sigmoid(h)[:, None, None]

    def _dense(self, width: int, inputs: int, name: str) -> nn.Dense:
        init = uniform(inputs**-0.5)
        return nn.Dense(
            width,
            dtype=self.dtype,
            kernel_init=logical(init, "embed", None),
            bias_init=logical(init, None),
            name=name,
        )


class Stem(nn.Module):
    """A quarter of the resolution, `width` channels."""

    width: int
    sizes: tuple[int, ...]
    mode: BranchMode

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b h4 w4 c"]:
        x = gelu(Branches(self.width, self.sizes, self.mode, 2, name="conv1")(x))
        x = gelu(Branches(self.width, self.sizes, self.mode, 2, depthwise=True, name="conv2")(x))
        return gelu(Branches(self.width, (1,), self.mode, name="conv3")(x))


class Downsample(nn.Module):
    """Half the resolution, twice the channels.

    Positions are told by convolutions of what surrounds them (Chu et al. 2021).
    """

    channels: int
    gates: bool
    positions: bool
    mode: BranchMode

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        mode, sizes = self.mode, (SPATIAL_SIZE, 3)
        x = Branches(self.channels, sizes, mode, 2, depthwise=True, name="spatial")(x)
        if self.gates:
            x = Gates(gate_width(self.channels), mode.dtype, name="squeeze")(x)
        x = gelu(Branches(self.channels, (1,), mode, name="pointwise")(gelu(x)))
        if self.positions:
            h = nn.Conv(
                self.channels,
                (SPATIAL_SIZE, SPATIAL_SIZE),
                padding=SPATIAL_SIZE // 2,
                feature_group_count=self.channels,
                dtype=mode.dtype,
                kernel_init=logical(uniform(1 / SPATIAL_SIZE), None, None, None, "embed"),
                bias_init=logical(uniform(1 / SPATIAL_SIZE), "embed"),
                name="position_depthwise",
            )(x)
            x = h if mode.merged else x + h
        return x
