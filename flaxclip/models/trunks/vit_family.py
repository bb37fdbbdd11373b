"""The traits in which families of vision transformers differ."""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

from flax import linen as nn

from flaxclip.models.initializers import BlockInit
from flaxclip.models.transformer import TransformerBlock


class RotaryGrid(NamedTuple):
    """Coordinates of patches for rotary position embeddings."""

    column_first: bool
    """True if the first half of a head's channels turns with the column, not with the row."""
    offset: int = 0
    """Coordinate of the first patch."""


@dataclasses.dataclass(frozen=True)
class ViTFamily:
    """One family of image towers."""

    class_token: bool
    """True if a class token precedes the patches."""
    pooling: Literal["class token", "attention", "mean"]
    """Position or pooling that yields the image's embedding: the class token; multi-head attention
    pooling (MAP) of all positions; or the mean of the patches."""
    norm_before_blocks: bool
    patch_bias: bool
    projection: Literal["always", "never", "optional"]
    """Projection to the shared embedding space after the pooling."""
    projection_bias: bool
    zero_class_token: bool
    """True if the class token is initialized with zeros, rather than at random."""
    whole_patches: bool
    """True if the image's side must be a multiple of the patch's."""
    block_init: Callable[[int, int], BlockInit]
    """Initializers by the tower's width and the MLP's."""
    block: type[nn.Module] = TransformerBlock
    sincos_positions: bool = False
    """True if position embeddings are initialized with sines and cosines, rather than at random."""
    rotary: RotaryGrid | None = None
    """Rotation of queries and keys by their patches' places. If None, disabled."""
    pool_heads: int | None = None
    """Heads of attention pooling, whose MLP has four times the tower's width. If None, heads and
    MLP are as in the blocks."""
    registers: int = 0
    """Learned tokens between the class token and the patches, at no position."""
