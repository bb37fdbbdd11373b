"""The text transformer: CLIP's, SigLIP's, and BERT, which is LiT's."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from flaxclip.errors import InputError
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.initializers import BlockInit, Initializer, logical
from flaxclip.models.layers import (
    Activation,
    BlockConfig,
    check_sizes,
    check_transformer,
    layer_norm,
)
from flaxclip.models.transformer import Transformer
from flaxclip.sharding import constrain, embedding_lookup

PADDING = 0
"""BERT's id that fills up rows; no position attends to it (big_vision,
`proj/flaxformer/bert.py`)."""

SEGMENTS = 2
"""Segments that BERT knows; a caption is one, the first."""


@dataclasses.dataclass(frozen=True)
class TextFamily:
    """The traits in which families of text towers differ."""

    readout: Literal["end of text", "last position", "first position"]
    """Position of the caption's embedding. The last position may be padding."""
    causal: bool
    attends_to_padding: bool
    post_norm: bool
    """True if norms follow the residual sums, and one follows the embeddings; otherwise they
    precede attention and MLP, and one follows the blocks."""
    segments: bool
    projection_bias: bool
    more_positions: bool
    """True if there may be more position embeddings than a caption has positions."""
    token_init: Callable[[int], Initializer]
    """Initializer by the tower's width, as for the next one."""
    position_init: Callable[[int], Initializer]
    block_init: Callable[[int, int, int], BlockInit]
    """Initializers by the tower's width, the MLP's width, and the number of layers."""
    projection_init: Callable[[int], Initializer]


def _normal(std: float | None = None) -> Callable[[int], Initializer]:
    """Normal with this standard deviation; if None, width^-1/2."""
    return lambda width: nn.initializers.normal(width**-0.5 if std is None else std)


# google-research/bert, `modeling.py`: cut at twice the deviation; biases are zero.
_BERT_NORMAL = nn.initializers.truncated_normal(0.02)
_BERT_BLOCK = BlockInit(
    qkv_kernel=_BERT_NORMAL,
    out_kernel=_BERT_NORMAL,
    fc1_kernel=_BERT_NORMAL,
    fc1_bias=nn.initializers.zeros,
    fc2_kernel=_BERT_NORMAL,
    fc2_bias=nn.initializers.zeros,
)

FAMILIES: dict[str, TextFamily] = {
    # Radford et al. 2021, section 2.4; initial values of openai/CLIP, `clip/model.py`.
    "clip": TextFamily(
        readout="end of text",
        causal=True,
        attends_to_padding=True,
        post_norm=False,
        segments=False,
        projection_bias=False,
        more_positions=False,
        token_init=_normal(0.02),
        position_init=_normal(0.01),
        block_init=BlockInit.scaled_normal,
        projection_init=_normal(),
    ),
    # Zhai et al. 2023; initial values of big_vision's `nn.Embed` and learned positions.
    "siglip": TextFamily(
        readout="last position",
        causal=False,
        attends_to_padding=True,
        post_norm=False,
        segments=False,
        projection_bias=True,
        more_positions=False,
        token_init=_normal(),
        position_init=_normal(),
        block_init=lambda width, mlp_width, layers: BlockInit.xavier(width, mlp_width),
        projection_init=_normal(),
    ),
    # Devlin et al. 2019, section 3, without the pooler, as in LiT (Zhai et al. 2022;
    # google-research/big_vision, `models/proj/flaxformer/bert.py`; google/flaxformer,
    # `architectures/bert/bert.py`).
    "bert": TextFamily(
        readout="first position",
        causal=False,
        attends_to_padding=False,
        post_norm=True,
        segments=True,
        projection_bias=True,
        more_positions=True,
        token_init=lambda width: _BERT_NORMAL,
        position_init=lambda width: _BERT_NORMAL,
        block_init=lambda width, mlp_width, layers: _BERT_BLOCK,
        projection_init=lambda width: nn.initializers.lecun_normal(),
    ),
}


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
    family: Literal["clip", "siglip", "bert"] = "clip"
    """CLIP's tower, SigLIP's, or BERT, which is LiT's. Sets pooling, masks, norms, biases and
    initial values, as in `FAMILIES`."""
    positions: int | None = None
    """With family "bert", number of position embeddings: BERT's are 512, even if captions take
    fewer. If None, `context_length`."""

    def __post_init__(self) -> None:
        sizes = {"context_length": self.context_length, "vocab_size": self.vocab_size}
        check_sizes("text", sizes)
        check_transformer(
            "text", self.width, self.layers, self.heads, self.mlp_ratio, self.norm_eps
        )
        if self.positions is not None and not self.traits.more_positions:
            raise InputError(
                f'text positions is {self.positions}, and family is "{self.family}"\n'
                'only with family "bert" they are other than context_length: leave them out'
            )
        if self.position_count < self.context_length:
            raise InputError(
                f"text context_length {self.context_length} is more than its {self.positions} "
                "positions\nchoose a shorter context"
            )

    @property
    def traits(self) -> TextFamily:
        """The traits of the tower's family."""
        return FAMILIES[self.family]

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
    compute: ComputeConfig = ComputeConfig()

    @nn.compact
    def __call__(self, tokens: Int[Array, "b l"]) -> Float[Array, "b d"]:
        c, family, dtype = self.config, self.config.traits, self.compute.activation_dtype
        _check_length(c, tokens.shape[1])

        def embedding(
            name: str, init: Initializer, rows: int, axis: str | None
        ) -> Float[Array, "rows w"]:
            return self.param(name, logical(init, axis, "embed"), (rows, c.width))

        words = embedding("token_embedding", family.token_init(c.width), c.vocab_size, "vocab")
        position_init = family.position_init(c.width)
        positions = embedding("position_embedding", position_init, c.position_count, None)
        # Where padding comes last and no text attends to it, a context shorter than ours is exact.
        x = embedding_lookup(words, tokens) + positions[None, : tokens.shape[1]]
        if family.segments:
            x = x + embedding("segment_embedding", position_init, SEGMENTS, None)[None, :1]
        if family.post_norm:
            x = layer_norm("ln_embedding", c.norm_eps)(x)
        block = BlockConfig(
            c.heads,
            c.mlp_width,
            c.activation,
            init=family.block_init(c.width, c.mlp_width, c.layers),
            causal=family.causal,
            norm_eps=c.norm_eps,
            post_norm=family.post_norm,
        )
        seen = None if family.attends_to_padding else tokens != PADDING
        transformer = Transformer(c.layers, block, self.compute, name="transformer")
        x = _read_out(family, transformer(x.astype(dtype), seen), tokens)
        if not family.post_norm:
            x = layer_norm("ln_final", c.norm_eps)(x)
        return nn.Dense(
            self.embed_dim,
            use_bias=family.projection_bias,
            dtype=jnp.float32,
            kernel_init=logical(family.projection_init(c.width), "embed", None),
            bias_init=logical(nn.initializers.zeros, None),
            name="projection",
        )(x)


def _read_out(
    family: TextFamily, x: Float[Array, "b l w"], tokens: Int[Array, "b l"]
) -> Float[Array, "b w"]:
    if family.readout == "end of text":
        # End-of-text has the highest id of CLIP's vocabulary: argmax finds its first position.
        end = tokens.argmax(axis=-1)[:, None, None]
        return constrain(jnp.take_along_axis(x, end, axis=1)[:, 0], "batch", None)
    return x[:, -1 if family.readout == "last position" else 0]


def _check_length(config: TextConfig, length: int) -> None:
    if config.traits.readout == "last position" and length != config.context_length:
        raise InputError(
            f"captions of {length} tokens for a text tower that was trained with "
            f"{config.context_length}\npad them: it attends to padding, and reads the last position"
        )
    if length > config.position_count:
        raise InputError(
            f"captions of {length} tokens for a text tower that has embeddings for "
            f"{config.position_count} positions\ncut them"
        )
