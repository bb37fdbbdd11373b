"""The text tower of CLIP: a causal transformer, read out at the end-of-text token."""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from flaxclip.models.layers import (
    Activation,
    BlockInit,
    Transformer,
    check_heads,
    layer_norm,
    logical,
)


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Shape of the text tower. The defaults are ViT-B/32's (Radford et al. 2021, section 2.4)."""

    context_length: int = 77
    """Tokens, start and end included."""
    vocab_size: int = 49408
    width: int = 512
    layers: int = 12
    heads: int = 8
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over `width`, rounded down as open_clip does."""
    activation: Activation = "quick_gelu"

    def __post_init__(self) -> None:
        check_heads("text", self.width, self.heads)

    @property
    def mlp_width(self) -> int:
        return int(self.width * self.mlp_ratio)


class TextTransformer(nn.Module):
    """Token ids in, one embedding of `embed_dim` a caption out (not yet unit norm)."""

    config: TextConfig
    embed_dim: int
    dtype: jnp.dtype
    unroll: int = 1

    @nn.compact
    def __call__(self, tokens: Int[Array, "b l"]) -> Float[Array, "b d"]:
        c = self.config
        token_embedding = self.param(
            "token_embedding",
            logical(nn.initializers.normal(0.02), "vocab", "embed"),
            (c.vocab_size, c.width),
        )
        position_embedding = self.param(
            "position_embedding",
            logical(nn.initializers.normal(0.01), None, "embed"),
            (c.context_length, c.width),
        )
        # Attention is causal and padding comes last: a context shorter than the model's is exact.
        positions = position_embedding[: tokens.shape[1]]
        x = (token_embedding[tokens] + positions[None]).astype(self.dtype)
        x = Transformer(
            c.layers,
            c.heads,
            c.mlp_width,
            c.activation,
            causal=True,
            block_init=BlockInit.scaled_normal(c.width, c.mlp_width, c.layers),
            dtype=self.dtype,
            unroll=self.unroll,
            name="transformer",
        )(x)
        # End-of-text has the highest id of CLIP's vocabulary, so argmax finds its first position.
        end = tokens.argmax(axis=-1)[:, None, None]
        x = layer_norm("ln_final")(jnp.take_along_axis(x, end, axis=1)[:, 0])
        return nn.Dense(
            self.embed_dim,
            use_bias=False,
            dtype=jnp.float32,
            kernel_init=logical(nn.initializers.normal(c.width**-0.5), "embed", None),
            name="projection",
        )(x)
