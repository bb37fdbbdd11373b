"""Initialization of parameters: named axes, and the initial values of a transformer block."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array

Initializer = Callable[..., Any]
"""Makes an array, or one whose axes have names."""


def logical(init: Initializer, *axes: str | None) -> Initializer:
    """Name the axes of what `init` makes; `sharding.LOGICAL_AXIS_RULES` maps names to the mesh."""
    return nn.with_logical_partitioning(init, axes)


def uniform(bound: float) -> Initializer:
    """Numbers between -`bound` and `bound`."""

    def init(key: Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def sincos_2d(grid: int, others: int) -> Initializer:
    """Position embeddings of `grid`² patches, and zeros for `others` before them.

    MoCo v3 (Chen et al. 2021), as in big_vision's `posemb_sincos_2d` (`models/vit.py`).
    """

    def init(key: Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Array:
        quarter = shape[-1] // 4
        frequencies = 10_000.0 ** -(np.arange(quarter) / (quarter - 1))
        rows, columns = (place.reshape(-1, 1) * frequencies for place in np.mgrid[:grid, :grid])
        parts = [np.sin(columns), np.cos(columns), np.sin(rows), np.cos(rows)]
        return jnp.asarray(np.pad(np.concatenate(parts, axis=1), ((others, 0), (0, 0))), dtype)

    return init


@dataclasses.dataclass(frozen=True)
class BlockInit:
    """Initial values of one transformer block's parameters."""

    qkv_kernel: Initializer
    out_kernel: Initializer
    fc1_kernel: Initializer
    fc1_bias: Initializer
    fc2_kernel: Initializer
    fc2_bias: Initializer

    @classmethod
    def scaled_normal(cls, width: int, mlp_width: int, layers: int) -> "BlockInit":
        """OpenAI's text tower (`CLIP.initialize_parameters`): residuals shrink with depth.

        That function leaves the biases of `nn.Linear` at PyTorch's own: U(+-fan_in^-1/2).
        """
        residual_std = width**-0.5 * (2 * layers) ** -0.5
        return cls(
            qkv_kernel=nn.initializers.normal(width**-0.5),
            out_kernel=nn.initializers.normal(residual_std),
            fc1_kernel=nn.initializers.normal((2 * width) ** -0.5),
            fc1_bias=uniform(width**-0.5),
            fc2_kernel=nn.initializers.normal(residual_std),
            fc2_bias=uniform(mlp_width**-0.5),
        )

    @classmethod
    def torch_default(cls, width: int, mlp_width: int) -> "BlockInit":
        """OpenAI's image tower, which leaves its blocks at the defaults of PyTorch's modules.

        `nn.MultiheadAttention`: Xavier-uniform over the joint [3 w, w] matrix, zero biases, output
        U(+-fan_in^-1/2). `nn.Linear`: weight and bias U(+-fan_in^-1/2).
        """
        return cls(
            qkv_kernel=uniform((6 / (width + 3 * width)) ** 0.5),
            out_kernel=uniform(width**-0.5),
            fc1_kernel=uniform(width**-0.5),
            fc1_bias=uniform(width**-0.5),
            fc2_kernel=uniform(mlp_width**-0.5),
            fc2_bias=uniform(mlp_width**-0.5),
        )

    @classmethod
    def xavier(cls, width: int, mlp_width: int) -> "BlockInit":
        """Both towers of SigLIP (big_vision, `models/vit.py`): every matrix by itself."""
        width_bound = (6 / (2 * width)) ** 0.5
        mlp_bound = (6 / (width + mlp_width)) ** 0.5
        return cls(
            qkv_kernel=uniform(width_bound),
            out_kernel=uniform(width_bound),
            fc1_kernel=uniform(mlp_bound),
            fc1_bias=nn.initializers.normal(1e-6),
            fc2_kernel=uniform(mlp_bound),
            fc2_bias=nn.initializers.normal(1e-6),
        )

    @classmethod
    def truncated_normal(cls, width: int, mlp_width: int) -> "BlockInit":
        """Timm's `Eva`, the image towers of PE and EVA (`models/eva.py`): deviation 0.02.

        timm divides output and second matrix of layer l by (2 l)^1/2; here no layer differs.
        """
        normal = nn.initializers.truncated_normal(0.02)
        zeros = nn.initializers.zeros
        return cls(normal, normal, normal, zeros, normal, zeros)
