"""Attention of one query to all positions, which pools them to one vector: ResNet, SigLIP."""

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from flaxclip.models.attention.dot_product import dot_product_attention
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.initializers import Initializer, logical
from flaxclip.models.layers import MLP, BlockConfig, layer_norm
from flaxclip.models.projections import Projection


class AttentionPool(nn.Module):
    """Multi-head attention with separate projections, of queries to other vectors."""

    heads: int
    out_width: int
    kernel_init: Initializer
    bias_init: Initializer
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        queries: Float[Array, "#b q w"],
        x: Float[Array, "b l w"],
        padding_mask: Bool[Array, "b l"] | None = None,
    ) -> Float[Array, "b q out"]:
        """`padding_mask`: True for vectors that are attended to. If None, all."""
        width = x.shape[-1]
        heads = (self.heads, width // self.heads)

        def project(name: str, inputs: Array) -> Array:
            projected = Projection(
                (width,),
                heads,
                kernel_init=logical(self.kernel_init, "embed", "heads", None),
                bias_init=logical(self.bias_init, "heads", None),
                dtype=self.dtype,
                name=name,
            )(inputs)
            return rearrange(projected, "b l (h k) -> b h l k", h=self.heads)

        q, k, v = project("query", queries), project("key", x), project("value", x)
        q = jnp.broadcast_to(q, (x.shape[0], *q.shape[1:]))
        z = dot_product_attention(q, k, v, causal=False, padding_mask=padding_mask)
        z = rearrange(z, "b h l k -> b l (h k)")
        return Projection(
            heads,
            (self.out_width,),
            kernel_init=logical(self.kernel_init, "heads", None, "embed"),
            bias_init=logical(self.bias_init, "embed"),
            dtype=self.dtype,
            name="out",
        )(z)


class MAPHead(nn.Module):
    """Multi-head attention pooling: the query is a learned probe, and an MLP follows.

    Zhai et al. 2022, "Scaling Vision Transformers", section 3.2; big_vision, `models/vit.py`.
    """

    config: BlockConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l w"], padding_mask: Bool[Array, "b l"] | None = None
    ) -> Float[Array, "b w"]:
        """`padding_mask`: True for positions that are pooled. If None, all."""
        c, dtype = self.config, self.compute.activation_dtype
        width = x.shape[-1]
        probe = self.param(
            "probe", logical(nn.initializers.xavier_uniform(), None, "embed"), (1, width)
        )
        x = AttentionPool(
            c.heads, width, c.init.out_kernel, nn.initializers.zeros, dtype, name="attention"
        )(probe[None].astype(dtype), x, padding_mask)
        mlp = MLP(c, self.compute, name="mlp")
        x = x + mlp(layer_norm("ln", c.norm_eps)(x).astype(dtype))
        return x[:, 0].astype(jnp.float32)
