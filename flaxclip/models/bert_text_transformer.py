"""BERT as a text tower: that of LiT."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from flaxclip.errors import InputError
from flaxclip.models.layers import AttentionKernel, BlockInit, layer_norm, logical
from flaxclip.models.text_transformer import TextConfig
from flaxclip.models.transformer import Remat, Transformer
from flaxclip.sharding import embedding_lookup

PADDING = 0
"""The id that fills rows up; no position attends to it (big_vision, `proj/flaxformer/bert.py`)."""

SEGMENTS = 2


class BertTextTransformer(nn.Module):
    """Token ids in, one embedding of `embed_dim` a caption out (not yet unit norm).

    Devlin et al. 2019, section 3, without the pooler: LiT projects the last layer's first token
    (google-research/big_vision, `models/proj/flaxformer/bert.py`; google/flaxformer,
    `architectures/bert/bert.py`). A caption is one segment, the first of two that BERT knows.
    """

    config: TextConfig
    embed_dim: int
    dtype: jnp.dtype
    unroll: int = 1
    remat: Remat = "names"
    attention: AttentionKernel = "auto"

    @nn.compact
    def __call__(self, tokens: Int[Array, "b l"]) -> Float[Array, "b d"]:
        c = self.config
        if tokens.shape[1] > c.position_count:
            raise InputError(
                f"captions of {tokens.shape[1]} tokens for a text tower that has embeddings for "
                f"{c.position_count} positions\ncut them"
            )
        # google-research/bert, `modeling.py`: cut at twice the deviation; biases are zero.
        normal, zeros = nn.initializers.truncated_normal(0.02), nn.initializers.zeros

        def embedding(name: str, rows: int, axis: str | None) -> Float[Array, "rows w"]:
            return self.param(name, logical(normal, axis, "embed"), (rows, c.width))

        words = embedding("token_embedding", c.vocab_size, "vocab")
        positions = embedding("position_embedding", c.position_count, None)
        segments = embedding("segment_embedding", SEGMENTS, None)
        # Padding comes last and is not seen, so a context shorter than ours is exact.
        x = embedding_lookup(words, tokens)
        x = x + positions[None, : tokens.shape[1]] + segments[None, :1]
        x = Transformer(
            c.layers,
            c.heads,
            c.mlp_width,
            c.activation,
            causal=False,
            block_init=BlockInit(normal, normal, normal, zeros, normal, zeros),
            dtype=self.dtype,
            unroll=self.unroll,
            remat=self.remat,
            norm_eps=c.norm_eps,
            attention_kernel=self.attention,
            post_norm=True,
            name="transformer",
        )(layer_norm("ln_embedding", c.norm_eps)(x).astype(self.dtype), tokens != PADDING)
        return nn.Dense(
            self.embed_dim,
            dtype=jnp.float32,
            kernel_init=logical(nn.initializers.lecun_normal(), "embed", None),
            bias_init=logical(zeros, None),
            name="projection",
        )(x[:, 0])
