"""Rotary position embeddings of patches (Su et al. 2021, "RoFormer"; in two dimensions)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

BASE = 10_000.0
"""Ratio of the highest frequency to the lowest, nearly (Su et al. 2021, section 3.2.2)."""


def rotation_angles(
    grid: int, reference_grid: int, channels: int, column_first: bool, offset: int = 0
) -> Float[np.ndarray, "patches half"]:
    """Angle by which each pair of a head's channels turns at each patch, rows first.

    Half of the pairs turn with one coordinate, half with the other, at the same frequencies.

    Args:
        grid: patches along one side.
        reference_grid: of the grid whose coordinates were learned. Those of another grid are spread
            over its range (EVA-02: Fang et al. 2023; timm, `layers/pos_embed_sincos.py`).
        channels: of a head; a multiple of 4.
        column_first: whether the first half turns with the column, or with the row.
        offset: coordinate of the first patch, before it is spread.
    """
    frequencies = BASE ** -(np.arange(channels // 4) / (channels // 4))
    places = (np.arange(grid) + offset) / grid * reference_grid
    rows, columns = np.meshgrid(places, places, indexing="ij")
    coordinates = (columns, rows) if column_first else (rows, columns)
    angles = np.stack(coordinates, axis=-1)[..., None] * frequencies
    return angles.reshape(grid**2, channels // 2)


def rotate(
    x: Float[Array, "b h l k"], angles: Float[Array, "#b l half"]
) -> Float[Array, "b h l k"]:
    """Turn channels 0 and 1, 2 and 3, ... of `x` by `angles`, in float32."""
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
