"""The encoder of mT5 (Xue et al. 2021): T5 (Raffel et al. 2020) in 101 languages.

Norms are by the root mean square and nothing has a bias, but attention: a learned one for each head
and range of distances between two positions, the same in all layers. Queries are not scaled, and
the MLP is gated (Shazeer 2020; transformers, `models/mt5`). The mean and the projection are
open_clip's (`hf_model.py`).
"""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from flaxclip.models.attention.dot_product import dot_product_attention
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.initializers import BlockInit, logical
from flaxclip.models.layers import ACTIVATIONS, BlockConfig
from flaxclip.models.projections import Projection, QKVProjection
from flaxclip.models.text_trunks.text_family import TextFamily, normal
from flaxclip.models.transformer import GatedMLP
from flaxclip.sharding import constrain

_ZEROS = nn.initializers.zeros


class RMSNorm(nn.Module):
    """Division by the root mean square, in float32 (Zhang & Sennrich 2019)."""

    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "*rows w"]) -> Float[Array, "*rows w"]:
        scale = self.param("scale", logical(nn.initializers.ones, "embed"), (x.shape[-1],))
        x = x.astype(jnp.float32)
        square = checkpoint_name(jnp.square(x).mean(-1, keepdims=True), "norm")
        rows = (1,) * (x.ndim - 1)
        return x * jax.lax.rsqrt(square + self.epsilon) * scale.reshape(*rows, -1)


def rms_norm(name: str, eps: float) -> RMSNorm:
    """A norm of this name."""
    return RMSNorm(eps, name=name)


class _Attention(nn.Module):
    config: BlockConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b l w"],
        padding_mask: Bool[Array, "b l"] | None,
        bias: Float[Array, "1 h l l"],
    ) -> Float[Array, "b l w"]:
        x = constrain(x, "batch", None, None)
        c, dtype, width = self.config, self.compute.activation_dtype, x.shape[-1]
        heads, head_dim = c.heads, width // c.heads
        q, k, v = QKVProjection(
            (width,),
            (heads, 3, head_dim),
            kernel_init=logical(c.init.qkv_kernel, "embed", "heads", None, None),
            bias_init=_ZEROS,
            dtype=dtype,
            use_bias=False,
            name="qkv",
        )(x)
        z = dot_product_attention(
            q, k, v, c.causal, self.compute.attention, padding_mask, bias=bias, scale=1.0
        )
        z = Projection(
            (heads, head_dim),
            (width,),
            kernel_init=logical(c.init.out_kernel, "heads", None, "embed"),
            bias_init=_ZEROS,
            dtype=dtype,
            use_bias=False,
            name="out",
        )(constrain(rearrange(z, "b h l k -> b l (h k)"), "batch", None, "heads"))
        return constrain(z, "batch", None, None)


class T5Block(nn.Module):
    """T5's residual block: attention, then the gated MLP, each normed before."""

    config: BlockConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b l w"],
        padding_mask: Bool[Array, "b l"] | None,
        bias: Float[Array, "1 h l l"],
    ) -> Float[Array, "b l w"]:
        """`bias`: of attention weights before the softmax, by the distance of two positions."""
        c, dtype = self.config, self.compute.activation_dtype
        ln_1, ln_2 = rms_norm("ln_1", c.norm_eps), rms_norm("ln_2", c.norm_eps)
        attention = _Attention(c, self.compute, name="attention")
        x = x + attention(ln_1(x).astype(dtype), padding_mask, bias)
        x = checkpoint_name(x, "residual")
        mlp = GatedMLP(c, self.compute, ACTIVATIONS[c.activation], use_bias=False, name="mlp")
        return x + mlp(ln_2(x).astype(dtype))


def _block_init(width: int, mlp_width: int, layers: int) -> BlockInit:
    """Those of Mesh TensorFlow; queries are small, as nothing else scales them."""

    def qkv(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        std = np.array([shape[-1] ** -0.5, 1.0, 1.0]).reshape(3, 1) * width**-0.5
        return jax.random.normal(key, shape, dtype) * jnp.asarray(std, dtype)[None, None]

    of_width = nn.initializers.normal(width**-0.5)
    return BlockInit(
        qkv_kernel=qkv,
        out_kernel=of_width,
        fc1_kernel=of_width,
        fc1_bias=_ZEROS,
        fc2_kernel=nn.initializers.normal(mlp_width**-0.5),
        fc2_bias=_ZEROS,
    )


FAMILIES = {
    "mt5": TextFamily(
        readout="mean",
        causal=False,
        attends_to_padding=False,
        post_norm=False,
        segments=0,
        projection_bias=False,
        more_positions=False,
        token_init=normal(1.0),
        position_init=normal(),
        block_init=_block_init,
        projection_init=lambda width: nn.initializers.lecun_normal(),
        projection="mlp",
        positions="distances",
        block=T5Block,
        norm=rms_norm,
    ),
}
