"""The image tower of TIPSv2 (google-deepmind/tips; transformers, `models/tipsv2`).

DINOv2's blocks, which scale what they add to the residual stream, channel by channel. Its two class
tokens have learned from captions of the web and from written ones; the first yields the embedding,
and the second has no position: to others it is a register (Darcet et al. 2024). The giant one's MLP
is gated.
"""

import dataclasses
import functools

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from flaxclip.models.compute import ComputeConfig
from flaxclip.models.initializers import BlockInit, logical
from flaxclip.models.layers import MLP, Attention, BlockConfig, layer_norm
from flaxclip.models.transformer import GatedMLP
from flaxclip.models.trunks.vit_family import ViTFamily


class _LayerScale(nn.Module):
    """A factor for each channel (Touvron et al. 2021)."""

    @nn.compact
    def __call__(self, x: Float[Array, "b l w"]) -> Float[Array, "b l w"]:
        scale = self.param("scale", logical(nn.initializers.ones, "embed"), (x.shape[-1],))
        return x * scale[None, None].astype(x.dtype)


class TIPSBlock(nn.Module):
    """Attention, then MLP, each normed before and scaled after."""

    config: BlockConfig
    compute: ComputeConfig
    is_gated = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b l w"],
        padding_mask: Bool[Array, "b l"] | None = None,
        angles: Float[Array, "#b l half"] | None = None,
    ) -> Float[Array, "b l w"]:
        c, dtype = self.config, self.compute.activation_dtype
        mlp = functools.partial(GatedMLP, activation=jax.nn.silu) if self.is_gated else MLP
        ln_1, ln_2 = layer_norm("ln_1", c.norm_eps), layer_norm("ln_2", c.norm_eps)
        attention = Attention(c, self.compute, name="attention")
        added = attention(ln_1(x).astype(dtype), padding_mask, angles)
        x = checkpoint_name(x + _LayerScale(name="scale_1")(added), "residual")
        return x + _LayerScale(name="scale_2")(
            mlp(c, self.compute, name="mlp")(ln_2(x).astype(dtype))
        )


class GatedTIPSBlock(TIPSBlock):
    """With a gated MLP."""

    is_gated = True


_TIPS = ViTFamily(
    class_token=True,
    pooling="class token",
    norm_before_blocks=False,
    patch_bias=True,
    projection="never",
    projection_bias=False,
    zero_class_token=False,
    whole_patches=True,
    block_init=BlockInit.truncated_normal,
    block=TIPSBlock,
    registers=1,
)

FAMILIES = {"tips": _TIPS, "tips_gated": dataclasses.replace(_TIPS, block=GatedTIPSBlock)}
