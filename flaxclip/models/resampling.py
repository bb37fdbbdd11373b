"""Position embeddings for another resolution or context length, resized as in open_clip."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from flaxclip.models.clip import CLIPConfig


def resize_grid(
    embedding: Float[Array | np.ndarray, "positions w"], old_grid: int, new_grid: int
) -> Float[Array, "new_positions w"]:
    """Embeddings of `new_grid`² patches from those of `old_grid`²; earlier positions are kept.

    Bicubic with antialiasing: open_clip's `resize_pos_embed`.
    """
    others = embedding.shape[0] - old_grid**2
    grid = rearrange(embedding[others:], "(h w) c -> h w c", h=old_grid)
    resized = jax.image.resize(grid, (new_grid, new_grid, grid.shape[-1]), "cubic")
    resized = rearrange(resized, "h w c -> (h w) c")
    return jnp.concatenate([embedding[:others], resized.astype(embedding.dtype)])


def resize_context(
    embedding: Float[Array | np.ndarray, "positions w"], length: int
) -> Float[Array, "length w"]:
    """Embeddings of `length` tokens, by linear interpolation: open_clip's `resize_text_pos_embed`.

    All positions move, so a causal tower should be trained further after this.
    """
    shape = (length, embedding.shape[-1])
    resized = jax.image.resize(embedding, shape, "linear", antialias=False)
    return resized.astype(embedding.dtype)


def resample_position_embedding(
    name: str, value: Float[Array | np.ndarray, "..."], old: CLIPConfig, new: CLIPConfig
) -> Float[Array | np.ndarray, "..."]:
    """The parameter `name` of a model like `old`, converted for one like `new`.

    Position embeddings are resized to the resolution and the context length of `new`; all others
    are unchanged.
    """
    if name == "vision/position_embedding" and new.vision.grid != old.vision.grid:
        return resize_grid(value, old.vision.grid, new.vision.grid)
    length = new.text.position_count
    if name == "text/position_embedding" and length != old.text.position_count:
        return resize_context(value, length)
    return value
