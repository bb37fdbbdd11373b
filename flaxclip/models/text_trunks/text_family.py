"""The traits in which families of text towers differ."""

import dataclasses
from collections.abc import Callable
from typing import Literal

from flax import linen as nn

from flaxclip.models.initializers import BlockInit, Initializer
from flaxclip.models.layers import layer_norm
from flaxclip.models.transformer import TransformerBlock


@dataclasses.dataclass(frozen=True)
class TextFamily:
    """One family of text towers."""

    readout: Literal["end of text", "last position", "first position", "mean"]
    """Position of the caption's embedding, or the mean of all that are not padding. The last
    position may be padding."""
    causal: bool
    attends_to_padding: bool
    post_norm: bool
    """True if norms follow the residual sums, and one follows the embeddings; otherwise they
    precede attention and MLP, and one follows the blocks."""
    segments: int
    """Segments that the tower has embeddings for; a caption is one, the first. 0 if there are no
    such embeddings."""
    projection_bias: bool
    more_positions: bool
    """True if there may be more position embeddings than a caption has positions."""
    token_init: Callable[[int], Initializer]
    """Initializer by the tower's width, as for the next one."""
    position_init: Callable[[int], Initializer]
    block_init: Callable[[int, int, int], BlockInit]
    """Initializers by the tower's width, the MLP's width, and the number of layers."""
    projection_init: Callable[[int], Initializer]
    padding: int = 0
    """The id that fills up rows, where no position attends to it."""
    numbered_from: int | None = None
    """Number of the position of a caption's first token; those after it count what is no padding.
    If None, places in the row count."""
    projection: Literal["none", "linear", "mlp"] = "linear"
    """Projection to the shared embedding space: none; one layer; or two with GELU between them."""
    positions: Literal["learned", "sinusoidal", "distances"] = "learned"
    """What tells positions apart: learned embeddings; sines and cosines (Vaswani et al. 2017,
    section 3.5); or learned biases of attention weights, by the distance of two positions."""
    scaled_tokens: bool = False
    """True if token embeddings are multiplied by width^1/2 (Vaswani et al. 2017, section 3.4)."""
    block: type[nn.Module] = TransformerBlock
    norm: Callable[[str, float], nn.Module] = layer_norm
    """That after the blocks, by its name and epsilon."""


def normal(std: float | None = None) -> Callable[[int], Initializer]:
    """Normal with this standard deviation; if None, width^-1/2."""
    return lambda width: nn.initializers.normal(width**-0.5 if std is None else std)


BERT_NORMAL = nn.initializers.truncated_normal(0.02)
"""google-research/bert, `modeling.py`: cut at twice the deviation; biases are zero."""

BERT_BLOCK = BlockInit(
    qkv_kernel=BERT_NORMAL,
    out_kernel=BERT_NORMAL,
    fc1_kernel=BERT_NORMAL,
    fc1_bias=nn.initializers.zeros,
    fc2_kernel=BERT_NORMAL,
    fc2_bias=nn.initializers.zeros,
)
