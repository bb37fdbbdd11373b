"""Sums of normed convolutions that are one convolution once they are trained.

MobileOne (Vasu et al. 2022, section 3), after RepVGG (Ding et al. 2021, section 3.3). While they
are trained, every branch has a batch norm; with statistics that stand still it is a factor and a
bias of its kernel's output channels, and smaller kernels are larger ones with zeros around them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from flaxclip.models.initializers import logical
from flaxclip.models.modified_resnet import BATCH_NORM_EPSILON, TORCH_KERNEL, BatchNorm, ConvNorm


class BranchMode(NamedTuple):
    """What all sums of a tower have in common."""

    running: bool
    """True if batch norms use running statistics, and leave them unchanged."""
    merged: bool
    """True if each sum is one convolution."""
    dtype: jnp.dtype


class Branches(nn.Module):
    """Convolutions of several sizes and, if it has that shape, the input; each normed, and summed.

    Its variables: `size3/conv/kernel`, `size3/bn/...` and so on and `identity/...`, or, if merged,
    `conv/kernel` and `conv/bias`; `depthwise` in place of `conv` if it is so.
    """

    channels: int
    sizes: tuple[int, ...]
    """Sides of the kernels, the largest first."""
    mode: BranchMode
    stride: int = 1
    depthwise: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        mode = self.mode
        if mode.merged:
            size = self.sizes[0]
            return nn.Conv(
                self.channels,
                (size, size),
                strides=self.stride,
                padding=size // 2,
                feature_group_count=x.shape[-1] if self.depthwise else 1,
                dtype=mode.dtype,
                kernel_init=logical(TORCH_KERNEL, None, None, None, "embed"),
                bias_init=logical(nn.initializers.zeros, "embed"),
                name="depthwise" if self.depthwise else "conv",
            )(x)
        args = (mode.running, mode.dtype)
        branches = [
            ConvNorm(
                self.channels, size, *args, self.stride, depthwise=self.depthwise,
                name=f"size{size}",
            )(x)
            for size in self.sizes
        ]  # fmt: skip
        if self.stride == 1 and x.shape[-1] == self.channels:
            branches.append(BatchNorm(*args, name="identity")(x))
        return sum(branches[1:], start=branches[0])


class Convolution(NamedTuple):
    """Kernel and bias of a convolution, or those of a stack."""

    kernel: Float[Array, "*layers h w i o"]
    bias: Float[Array, "*layers o"]


def merged_branches(
    params: Mapping[str, Any], statistics: Mapping[str, Any]
) -> tuple[str, Convolution]:
    """Name and variables of the one convolution that is a trained `Branches`, or a stack of them.

    `params` and `statistics` are its parameters and its running statistics.
    """
    sizes = sorted((name for name in params if name.startswith("size")), reverse=True)
    kernels, biases = [], []
    for size in sizes:
        (name,) = params[size].keys() - {"bn"}
        factor, bias = norm_as_affine(params[size]["bn"], statistics[size]["bn"])
        kernels.append(params[size][name]["kernel"] * factor[..., None, None, None, :])
        biases.append(bias)
    shape = kernels[0].shape
    if "identity" in params:
        factor, bias = norm_as_affine(params["identity"], statistics["identity"])
        kernels.append(identity_kernel(shape) * factor[..., None, None, None, :])
        biases.append(bias)
    kernels = [_enlarged(kernel, shape[-4]) for kernel in kernels]
    return name, Convolution(sum(kernels[1:], start=kernels[0]), sum(biases[1:], start=biases[0]))


def norm_as_affine(
    params: Mapping[str, Any], statistics: Mapping[str, Any]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Factor and bias of a batch norm whose statistics stand still."""
    factor = params["scale"] * jax.lax.rsqrt(statistics["var"] + BATCH_NORM_EPSILON)
    return factor, params["bias"] - statistics["mean"] * factor


def identity_kernel(shape: tuple[int, ...]) -> Float[np.ndarray, "*layers h w i o"]:
    """Of a convolution, or a stack of them, that changes nothing."""
    height, width, inputs, outputs = shape[-4:]
    kernel = np.zeros((height, width, inputs, outputs), np.float32)
    # Of channels in groups, an output reads the one with its number in its group.
    kernel[height // 2, width // 2, np.arange(outputs) % inputs, np.arange(outputs)] = 1
    return np.broadcast_to(kernel, shape)


def _enlarged(kernel: Float[Array, "..."], size: int) -> Float[Array, "..."]:
    margin = (size - kernel.shape[-4]) // 2
    around = [(margin, margin), (margin, margin), (0, 0), (0, 0)]
    return jnp.pad(kernel, [(0, 0)] * (kernel.ndim - 4) + around)
