"""The text transformer: CLIP's, SigLIP's, BERT, which is LiT's, and those of `text_trunks/`."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from flaxclip.errors import InputError
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.initializers import Initializer, logical
from flaxclip.models.layers import (
    Activation,
    BlockConfig,
    check_sizes,
    check_transformer,
    gelu,
    layer_norm,
)
from flaxclip.models.projections import take_positions
from flaxclip.models.text_families import FAMILIES, Family
from flaxclip.models.text_trunks.positions import RANGES, distance_ranges, sinusoids
from flaxclip.models.text_trunks.text_family import TextFamily
from flaxclip.models.transformer import Transformer
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
    family: Family = "clip"
    """CLIP's tower, SigLIP's, CLIPA's, MobileCLIP's, or BERT, which is LiT's; others are described
    in `models/text_trunks/`. Sets pooling, masks, norms, biases and initial values, as in
    `FAMILIES`."""
    positions: int | None = None
    """With family "bert" or "xlm_roberta", number of position embeddings: 512 and 514, even if
    captions take fewer. If None, as many as captions take."""
    end_id: int | None = None
    """With family "clip", id whose first position yields the caption's embedding, or position 0 if
    a caption has none: MetaCLIP 2's is 2. If None, the highest id of a caption."""

    def __post_init__(self) -> None:
        sizes = {"context_length": self.context_length, "vocab_size": self.vocab_size}
        check_sizes("text", sizes)
        check_transformer(
            "text", self.width, self.layers, self.heads, self.mlp_ratio, self.norm_eps
        )
        if self.positions is not None and not self.traits.more_positions:
            raise InputError(
                f'text positions is {self.positions}, and family is "{self.family}"\n'
                'only with family "bert" or "xlm_roberta" are there others: leave them out'
            )
        if self.end_id is not None and (
            self.traits.readout != "end of text" or not 0 <= self.end_id < self.vocab_size
        ):
            raise InputError(
                f'text end_id is {self.end_id}, family is "{self.family}" and vocab_size '
                f"{self.vocab_size}\n"
                'expected an id of the vocabulary, and only with family "clip": leave it out'
            )
        if not self.has_room(self.context_length):
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
        """Rows of the position embedding; 0 if there is none."""
        if self.traits.positions != "learned":
            return RANGES if self.traits.positions == "distances" else 0
        needed = self.context_length + (self.traits.numbered_from or 0)
        return needed if self.positions is None else self.positions

    def has_room(self, length: int) -> bool:
        """True if there are positions for captions of so many tokens."""
        needed = length + (self.traits.numbered_from or 0)
        return self.traits.positions != "learned" or needed <= self.position_count

    @property
    def mlp_width(self) -> int:
        return round(self.width * self.mlp_ratio)

    def describe(self) -> str:
        """Its shape, for people."""
        return (
            f"{self.layers} layers, width {self.width}, {self.heads} heads, {self.activation}, "
            f"family {self.family}"
        )


class TextTransformer(nn.Module):
    """Token ids in, one embedding of `embed_dim` a caption out (not yet unit norm)."""

    config: TextConfig
    embed_dim: int
    compute: ComputeConfig = ComputeConfig()

    @nn.compact
    def __call__(self, tokens: Int[Array, "b l"], pooled_only: bool = False) -> Float[Array, "b d"]:
        """With `pooled_only`, for inference, the last block computes only what is read out."""
        c, family, dtype = self.config, self.config.traits, self.compute.activation_dtype
        _check_length(c, tokens.shape[1])

        def embedding(
            name: str, init: Initializer, rows: int, axis: str | None
        ) -> Float[Array, "rows w"]:
            return self.param(name, logical(init, axis, "embed"), (rows, c.width))

        words = embedding("token_embedding", family.token_init(c.width), c.vocab_size, "vocab")
        position_init = family.position_init(c.width)
        # Where padding comes last and no text attends to it, a context shorter than ours is exact.
        is_token = tokens != family.padding
        x = embedding_lookup(words, tokens)
        if family.scaled_tokens:
            x = x * c.width**0.5
        places = None
        if family.positions == "distances":
            init = logical(position_init, None, "heads")
            biases = self.param("position_embedding", init, (RANGES, c.heads))
            places = rearrange(biases[distance_ranges(tokens.shape[1])], "q k h -> 1 h q k")
        else:
            x = x + self._positions(is_token)
        if family.segments:
            x = x + embedding("segment_embedding", position_init, family.segments, None)[None, :1]
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
        seen = None if family.attends_to_padding else is_token
        transformer = Transformer(c.layers, block, self.compute, family.block, name="transformer")
        read = None
        if pooled_only and family.readout != "mean":
            read = _read_position(c, tokens)
        x = transformer(x.astype(dtype), seen, places, read)
        # Of one position, the norm can wait until it is alone.
        if family.readout != "mean":
            x = _read_out(c, x, tokens) if read is None else constrain(x[:, 0], "batch", None)
        if not family.post_norm:
            x = family.norm("ln_final", c.norm_eps)(x)
        if family.readout == "mean":
            x = _read_out(c, x, tokens)
        return self._project(x)

    def _positions(self, is_token: Bool[Array, "b l"]) -> Float[Array, "#b l w"]:
        """What is added to the tokens' embeddings."""
        c, family, length = self.config, self.config.traits, is_token.shape[1]
        first = family.numbered_from
        if family.positions == "sinusoidal":
            table = sinusoids(length + (first or 0), c.width)
            if first is not None:
                table[first - 1] = 0  # padding's
            rows = jnp.asarray(table)
        else:
            init = logical(family.position_init(c.width), None, "embed")
            rows = self.param("position_embedding", init, (c.position_count, c.width))
        if first is None:
            return rows[None, :length]
        numbers = first - 1 + jnp.cumsum(is_token, axis=1) * is_token
        return embedding_lookup(rows, numbers)

    def _project(self, x: Float[Array, "b w"]) -> Float[Array, "b d"]:
        c, family = self.config, self.config.traits
        if family.projection == "none":
            return x.astype(jnp.float32)
        if family.projection == "mlp":
            x = nn.Dense(
                (c.width + self.embed_dim) // 2,
                use_bias=False,
                dtype=jnp.float32,
                kernel_init=logical(family.projection_init(c.width), "embed", None),
                name="projection_hidden",
            )(x)
            x = gelu(x)
        return nn.Dense(
            self.embed_dim,
            use_bias=family.projection_bias,
            dtype=jnp.float32,
            kernel_init=logical(family.projection_init(c.width), "embed", None),
            bias_init=logical(nn.initializers.zeros, None),
            name="projection",
        )(x)


def _read_out(
    config: TextConfig, x: Float[Array, "b l w"], tokens: Int[Array, "b l"]
) -> Float[Array, "b w"]:
    family = config.traits
    if family.readout == "mean":
        weight = (tokens != family.padding).astype(jnp.float32)[:, :, None]
        return (x.astype(jnp.float32) * weight).sum(1) / weight.sum(1)
    if family.readout == "end of text":
        position = _read_position(config, tokens)
        return constrain(take_positions(x, position)[:, 0], "batch", None)
    return x[:, -1 if family.readout == "last position" else 0]


def _read_position(config: TextConfig, tokens: Int[Array, "b l"]) -> Int[Array, " b"]:
    """The position that is read out of each caption."""
    if config.traits.readout == "end of text":
        # End-of-text has the highest id of CLIP's vocabulary: argmax finds its first position.
        is_end = tokens if config.end_id is None else (tokens == config.end_id).astype(jnp.int32)
        return is_end.argmax(axis=-1)
    last = config.traits.readout == "last position"
    return jnp.full(tokens.shape[0], tokens.shape[1] - 1 if last else 0)


def needed_length(config: TextConfig, tokens: Int[np.ndarray, "b l"]) -> int:
    """How many of the first positions the captions' embeddings depend on.

    All of them unless the tower is causal and reads the end of text: then nothing behind it.
    """
    if not config.traits.causal or config.traits.readout != "end of text" or not len(tokens):
        return tokens.shape[1]
    is_end = tokens if config.end_id is None else tokens == config.end_id
    return int(is_end.argmax(axis=1).max()) + 1


def _check_length(config: TextConfig, length: int) -> None:
    if config.traits.readout == "last position" and length != config.context_length:
        raise InputError(
            f"captions of {length} tokens for a text tower that was trained with "
            f"{config.context_length}\npad them: it attends to padding, and reads the last position"
        )
    if not config.has_room(length):
        raise InputError(
            f"captions of {length} tokens for a text tower that has embeddings for "
            f"{config.position_count} positions\ncut them"
        )
