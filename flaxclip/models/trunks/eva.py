"""EVA-CLIP's image towers (Sun et al. 2023, "EVA-CLIP"; Fang et al. 2023, "EVA-02", section 2).

Their blocks have biases on queries and values, and none on keys. EVA-02 has a gated MLP (SwiGLU),
norms inside attention and MLP, and rotary embeddings of its patches; its largest tower has none of
these, and norms what attention and MLP add to the residual stream, in place of what they read.
"""

import dataclasses

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from flaxclip.models.attention.dot_product import dot_product_attention
from flaxclip.models.attention.rotary import rotate
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.initializers import BlockInit, logical
from flaxclip.models.layers import MLP, BlockConfig, layer_norm
from flaxclip.models.projections import Projection, QKVProjection
from flaxclip.models.trunks.vit_family import RotaryGrid, ViTFamily
from flaxclip.sharding import constrain


class _QKVWithoutKeyBias(QKVProjection):
    def parameters(self) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        kernel = self.param("kernel", self.kernel_init, self.in_shape + self.out_shape)
        heads, _, channels = self.out_shape
        bias = self.param("bias", self.bias_init, (heads, 2, channels))
        queries, values = bias[:, 0], bias[:, 1]
        return kernel, jnp.stack([queries, jnp.zeros_like(queries), values], axis=1)


class _Attention(nn.Module):
    """Self-attention without a bias on keys, whose result may be normed before its projection."""

    config: BlockConfig
    compute: ComputeConfig
    inner_norm: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b l w"],
        padding_mask: Bool[Array, "b l"] | None,
        angles: Float[Array, "#b l half"] | None,
    ) -> Float[Array, "b l w"]:
        x = constrain(x, "batch", None, None)
        c, dtype, width = self.config, self.compute.activation_dtype, x.shape[-1]
        heads = (c.heads, width // c.heads)
        q, k, v = _QKVWithoutKeyBias(
            (width,),
            (c.heads, 3, width // c.heads),
            kernel_init=logical(c.init.qkv_kernel, "embed", "heads", None, None),
            bias_init=logical(nn.initializers.zeros, "heads", None, None),
            dtype=dtype,
            name="qkv",
        )(x)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        z = dot_product_attention(q, k, v, c.causal, self.compute.attention, padding_mask)
        z = constrain(rearrange(z, "b h l k -> b l (h k)"), "batch", None, "heads")
        if self.inner_norm:
            z = layer_norm("ln", c.norm_eps)(z).astype(dtype)
        z = Projection(
            heads,
            (width,),
            kernel_init=logical(c.init.out_kernel, "heads", None, "embed"),
            bias_init=logical(nn.initializers.zeros, "embed"),
            dtype=dtype,
            name="out",
        )(z)
        return constrain(z, "batch", None, None)


class _GatedMLP(nn.Module):
    """SwiGLU (Shazeer 2020, equation 6), normed before its last matrix."""

    config: BlockConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b l w"]) -> Float[Array, "b l w"]:
        c, dtype, width = self.config, self.compute.activation_dtype, x.shape[-1]
        x = constrain(x, "batch", None, None)

        def wide(name: str) -> Array:
            h = Projection(
                (width,),
                (c.mlp_width,),
                kernel_init=logical(c.init.fc1_kernel, "embed", "mlp"),
                bias_init=logical(c.init.fc1_bias, "mlp"),
                dtype=dtype,
                name=name,
            )(x)
            return checkpoint_name(constrain(h, "batch", None, "mlp"), "fc1")

        h = layer_norm("ln", c.norm_eps)(jax.nn.silu(wide("gate")) * wide("fc1")).astype(dtype)
        h = Projection(
            (c.mlp_width,),
            (width,),
            kernel_init=logical(c.init.fc2_kernel, "mlp", "embed"),
            bias_init=logical(c.init.fc2_bias, "embed"),
            dtype=dtype,
            name="fc2",
        )(h)
        return constrain(h, "batch", None, None)


class EVABlock(nn.Module):
    """EVA's residual block: attention, then MLP, each normed before."""

    config: BlockConfig
    compute: ComputeConfig
    is_eva02 = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b l w"],
        padding_mask: Bool[Array, "b l"] | None = None,
        angles: Float[Array, "#b l half"] | None = None,
    ) -> Float[Array, "b l w"]:
        c, dtype = self.config, self.compute.activation_dtype
        attention = _Attention(c, self.compute, self.is_eva02, name="attention")
        mlp = (_GatedMLP if self.is_eva02 else MLP)(c, self.compute, name="mlp")
        ln_1, ln_2 = layer_norm("ln_1", c.norm_eps), layer_norm("ln_2", c.norm_eps)
        x = x + attention(ln_1(x).astype(dtype), padding_mask, angles)
        x = checkpoint_name(x, "residual")
        return x + mlp(ln_2(x).astype(dtype))


class EVA02Block(EVABlock):
    """EVA-02's: with a gated MLP, and norms inside attention and MLP."""

    is_eva02 = True


class EVA02PostNormBlock(nn.Module):
    """That of EVA-02-E: what attention and MLP add is normed (Liu et al. 2022, "Swin V2")."""

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
        attention = _Attention(c, self.compute, False, name="attention")
        mlp = MLP(c, self.compute, name="mlp")
        ln_1, ln_2 = layer_norm("ln_1", c.norm_eps), layer_norm("ln_2", c.norm_eps)
        x = x + ln_1(attention(x, padding_mask, angles)).astype(dtype)
        x = checkpoint_name(x, "residual")
        return x + ln_2(mlp(x)).astype(dtype)


_EVA01 = ViTFamily(
    class_token=True,
    pooling="class token",
    norm_before_blocks=False,
    patch_bias=True,
    projection="always",
    projection_bias=True,
    zero_class_token=False,
    whole_patches=True,
    block_init=BlockInit.truncated_normal,
    block=EVABlock,
)

FAMILIES = {
    "eva01": _EVA01,
    "eva02": dataclasses.replace(_EVA01, block=EVA02Block, rotary=RotaryGrid(column_first=False)),
    "eva02_e": dataclasses.replace(_EVA01, block=EVA02PostNormBlock),
}
