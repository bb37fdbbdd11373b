"""The text transformer of CLIP, and that of SigLIP."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from flaxclip.errors import InputError
from flaxclip.models.layers import (
    Activation,
    AttentionKernel,
    BlockInit,
    check_sizes,
    check_transformer,
    layer_norm,
    logical,
)
from flaxclip.models.transformer import Remat, Transformer
from flaxclip.sharding import constrain, embedding_lookup


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
    """Hidden width of the MLP over `width`; the product is rounded."""
    activation: Activation = "quick_gelu"
    norm_eps: float = 1e-5
    pool: Literal["end", "last", "class"] = "end"
    """Where the caption is read out. "end", CLIP's: at the end-of-text token, attention is causal.
    "last", SigLIP's (Zhai et al. 2023): at the last position, padding or not; attention looks both
    ways and the projection has a bias. "class", that of BERT in LiT (Devlin et al. 2019; Zhai et
    al. 2022): at the first token, which begins every caption; attention sees all but padding,
    norms come after residual sums, and the projection has a bias."""
    positions: int | None = None
    """With pool "class", positions that have an embedding: BERT's are 512, however few of them
    captions take. None: `context_length`."""

    def __post_init__(self) -> None:
        sizes = {"context_length": self.context_length, "vocab_size": self.vocab_size}
        check_sizes("text", sizes)
        check_transformer(
            "text", self.width, self.layers, self.heads, self.mlp_ratio, self.norm_eps
        )
        if self.positions is not None and self.pool != "class":
            raise InputError(
                f'text positions is {self.positions}, and pool is "{self.pool}"\n'
                'only with pool "class" they are other than context_length: leave them out'
            )
        if self.position_count < self.context_length:
            raise InputError(
                f"text context_length {self.context_length} is more than its {self.positions} "
                "positions\nchoose a shorter context"
            )

    @property
    def position_count(self) -> int:
        """Rows of the position embedding."""
        return self.context_length if self.positions is None else self.positions

    @property
    def mlp_width(self) -> int:
        return round(self.width * self.mlp_ratio)


class TextTransformer(nn.Module):
    """Token ids in, one embedding of `embed_dim` a caption out (not yet unit norm)."""

    config: TextConfig
    embed_dim: int
    dtype: jnp.dtype
    unroll: int = 1
    remat: Remat = "names"
    attention: AttentionKernel = "auto"

    @nn.compact
    def __call__(self, tokens: Int[Array, "b l"]) -> Float[Array, "b d"]:
        c = self.config
        if c.pool == "last" and tokens.shape[1] != c.context_length:
            raise InputError(
                f"captions of {tokens.shape[1]} tokens for a text tower that was trained with "
                f"{c.context_length}\npad them: it attends to padding, and reads the last position"
            )
        # OpenAI's numbers, or those of big_vision's `nn.Embed` and learned positions.
        token_std, position_std = (
            (0.02, 0.01) if c.pool == "end" else (c.width**-0.5, c.width**-0.5)
        )
        token_embedding = self.param(
            "token_embedding",
            logical(nn.initializers.normal(token_std), "vocab", "embed"),
            (c.vocab_size, c.width),
        )
        position_embedding = self.param(
            "position_embedding",
            logical(nn.initializers.normal(position_std), None, "embed"),
            (c.context_length, c.width),
        )
        # Where attention is causal and padding comes last, a context shorter than ours is exact.
        positions = position_embedding[: tokens.shape[1]]
        x = (embedding_lookup(token_embedding, tokens) + positions[None]).astype(self.dtype)
        x = Transformer(
            c.layers,
            c.heads,
            c.mlp_width,
            c.activation,
            causal=c.pool == "end",
            block_init=(
                BlockInit.scaled_normal(c.width, c.mlp_width, c.layers)
                if c.pool == "end"
                else BlockInit.xavier(c.width, c.mlp_width)
            ),
            dtype=self.dtype,
            unroll=self.unroll,
            remat=self.remat,
            norm_eps=c.norm_eps,
            attention_kernel=self.attention,
            name="transformer",
        )(x)
        if c.pool == "end":
            # End-of-text has the highest id of CLIP's vocabulary: argmax finds its first position.
            end = tokens.argmax(axis=-1)[:, None, None]
            x = constrain(jnp.take_along_axis(x, end, axis=1)[:, 0], "batch", None)
        else:
            x = x[:, -1]
        return nn.Dense(
            self.embed_dim,
            use_bias=c.pool == "last",
            dtype=jnp.float32,
            kernel_init=logical(nn.initializers.normal(c.width**-0.5), "embed", None),
            bias_init=logical(nn.initializers.zeros, None),
            name="projection",
        )(layer_norm("ln_final", c.norm_eps)(x))
