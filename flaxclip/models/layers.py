"""The layers of transformers: norms, projections, attention, MLP."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from flaxclip.errors import InputError
from flaxclip.models.attention.dot_product import (
    channels_for_kernel,
    dot_product_attention,
    uses_tpu_kernel,
)
from flaxclip.models.attention.rotary import rotate
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.initializers import BlockInit, logical
from flaxclip.models.projections import Projection, QKVProjection, take_positions
from flaxclip.sharding import constrain

Activation = Literal["quick_gelu", "gelu", "gelu_tanh", "relu"]


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Sigmoid approximation of GELU that OpenAI trained with (openai/CLIP, `clip/model.py`)."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU by the error function (Hendrycks & Gimpel 2016, equation 1), for 16 bits in float32."""
    if x.dtype.itemsize > 2:
        return jax.nn.gelu(x, approximate=False)
    # JAX's takes 1 - erf, which keeps the digits of a small probability but is two polynomials and
    # an exponential, forward and backward. 16 bits have no room for those digits.
    y = x.astype(jnp.float32)
    return (y * (0.5 + 0.5 * jax.lax.erf(y * math.sqrt(0.5)))).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": gelu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


MAX_LAYERS = 1000
"""The deepest published tower has 48. A file that asks for a billion is damaged, or an attack."""


def check_sizes(tower: str, sizes: Mapping[str, float]) -> None:
    """Raise `InputError` if a size is not positive, or there are absurdly many layers."""
    for name, size in sizes.items():
        most = MAX_LAYERS if name == "layers" else 2**31
        if not 0 < size < most:
            raise InputError(
                f"{tower} {name} is {size}\nexpected a positive number, below {most:,}"
            )


def check_transformer(
    tower: str, width: int, layers: int, heads: int, mlp_ratio: float, norm_eps: float
) -> None:
    """Raise `InputError` if there can be no transformer of these sizes."""
    sizes = {"width": width, "layers": layers, "heads": heads, "mlp_ratio": mlp_ratio}
    check_sizes(tower, sizes)
    if not 0 < norm_eps < 1:
        raise InputError(f"{tower} norm_eps is {norm_eps}\nexpected a small number, such as 1e-6")
    if width % heads:
        raise InputError(
            f"{tower} width {width} is not divisible by its {heads} heads\n"
            f"choose a multiple of {heads} as width, or another number of heads"
        )


class LayerNorm(nn.Module):
    """LayerNorm in float32, whatever the type of the activations (Ba et al. 2016).

    Two-pass variance: E[x^2] - E[x]^2 cancels if a residual stream has a large mean. Mean and
    variance have names, so that the backward pass need not compute them again: they are a
    thousandth of what they are computed from.
    """

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "*rows w"]) -> Float[Array, "*rows w"]:
        width = (x.shape[-1],)
        scale = self.param("scale", logical(nn.initializers.ones, "embed"), width)
        bias = self.param("bias", logical(nn.initializers.zeros, "embed"), width)
        x = x.astype(jnp.float32)
        mean = checkpoint_name(x.mean(-1, keepdims=True), "norm")
        variance = checkpoint_name(jnp.square(x - mean).mean(-1, keepdims=True), "norm")
        rows = (1,) * (x.ndim - 1)
        factor = jax.lax.rsqrt(variance + self.epsilon) * scale.reshape(*rows, -1)
        return (x - mean) * factor + bias.reshape(*rows, -1)


def layer_norm(name: str, eps: float = 1e-5) -> LayerNorm:
    """A norm of this name."""
    return LayerNorm(eps, name=name)


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """One transformer block; all blocks of a tower are alike."""

    heads: int
    mlp_width: int
    activation: Activation
    init: BlockInit
    causal: bool = False
    """True if a position attends to itself and those before it alone."""
    norm_eps: float = 1e-5
    post_norm: bool = False
    """True if norms follow the residual sums, as in the first transformers (Vaswani et al. 2017,
    section 3.1; Devlin et al. 2019), instead of preceding attention and MLP."""
    qkv_bias: bool = True
    """True if queries, keys and values have biases."""


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection to queries, keys and values."""

    config: BlockConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b l w"],
        padding_mask: Bool[Array, "b l"] | None = None,
        angles: Float[Array, "#b l half"] | None = None,
        read: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b #l w"]:
        """`angles`: of rotary position embeddings. If None, there are none. `read`: one position of
        each example, whose output is the only one. If None, all.
        """
        x = constrain(x, "batch", None, None)
        c, dtype = self.config, self.compute.activation_dtype
        width = x.shape[-1]
        head_dim = width // c.heads
        uses_kernel = uses_tpu_kernel(self.compute.attention, x.shape[1], head_dim, dtype)
        channels = channels_for_kernel(head_dim) if uses_kernel and read is None else head_dim
        q, k, v = QKVProjection(
            (width,),
            (c.heads, 3, head_dim),
            kernel_init=logical(c.init.qkv_kernel, "embed", "heads", None, None),
            bias_init=logical(nn.initializers.zeros, "heads", None, None),
            dtype=dtype,
            sums_by_product=uses_kernel,
            use_bias=c.qkv_bias,
            head_channels=channels,
            name="qkv",
        )(x, read)
        if angles is not None:
            rest = (channels - head_dim) // 2  # of zeros, which any angle leaves as they are
            of_queries = angles = jnp.pad(angles, ((0, 0), (0, 0), (0, rest)))
            if read is not None:
                of_each = jnp.broadcast_to(angles, (x.shape[0], *angles.shape[1:]))
                of_queries = take_positions(of_each, read)
            q, k = rotate(q, of_queries), rotate(k, angles)
        causal = c.causal
        if causal and read is not None:
            earlier = jnp.arange(x.shape[1])[None] <= read[:, None]
            padding_mask = earlier if padding_mask is None else padding_mask & earlier
            causal = False
        scale = None if channels == head_dim else head_dim**-0.5
        z = dot_product_attention(
            q, k, v, causal, self.compute.attention, padding_mask, scale=scale
        )
        z = constrain(rearrange(z, "b h l k -> b l (h k)"), "batch", None, "heads")
        z = Projection(
            (c.heads, head_dim),
            (width,),
            kernel_init=logical(c.init.out_kernel, "heads", None, "embed"),
            bias_init=logical(nn.initializers.zeros, "embed"),
            dtype=dtype,
            head_channels=channels,
            name="out",
        )(z)
        return constrain(z, "batch", None, None)


class MLP(nn.Module):
    """Two dense layers around the activation."""

    config: BlockConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b l w"]) -> Float[Array, "b l w"]:
        c, dtype = self.config, self.compute.activation_dtype
        x = constrain(x, "batch", None, None)
        width = x.shape[-1]
        h = Projection(
            (width,),
            (c.mlp_width,),
            kernel_init=logical(c.init.fc1_kernel, "embed", "mlp"),
            bias_init=logical(c.init.fc1_bias, "mlp"),
            dtype=dtype,
            name="fc1",
        )(x)
        h = checkpoint_name(constrain(h, "batch", None, "mlp"), "fc1")
        h = Projection(
            (c.mlp_width,),
            (width,),
            kernel_init=logical(c.init.fc2_kernel, "mlp", "embed"),
            bias_init=logical(c.init.fc2_bias, "embed"),
            dtype=dtype,
            name="fc2",
        )(ACTIVATIONS[c.activation](h))
        return constrain(h, "batch", None, None)
