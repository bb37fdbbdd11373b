"""Images at their own aspect ratio, as rows of patches: NaFlex (Tschannen et al. 2025, SigLIP 2).

An image of `rows` by `columns` patches fills the first `rows * columns` places of its row, the rest
is padding. Where a patch lies follows from the grid alone, and so does which places are padding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, Int32, UInt8

from flaxclip.sharding import constrain

LEARNED_DENSITY = 4
"""Patches for each learned position up to which published models have been trained: 1,024 on the
16 x 16 grid of SigLIP 2's NaFlex (Tschannen et al. 2025, section 2.4.2), which extrapolates badly
(figure 3)."""


class ImagePatches(NamedTuple):
    """Images cut into patches. NumPy arrays on the host, `jax.Array`s on the mesh."""

    patches: UInt8[Array, "batch n pixels"]
    """`patch * patch * 3` values each, by row, column and colour; of an image row by row, from the
    top."""
    grid: Int32[Array, "batch 2"]
    """Rows and columns of each image; their product is at most `n`, and at least 1."""


def is_patch(grid: Int32[Array, "b 2"], length: int) -> Bool[Array, "b n"]:
    """True for patches among `length` places, False for padding."""
    return jnp.arange(length)[None] < jnp.prod(grid, axis=1)[:, None]


def beyond_learned(patches: int, side: int) -> str | None:
    """What to warn of, if images of so many patches have more than published models have been
    trained on, with as many learned positions: `side` x `side`.
    """
    learned = LEARNED_DENSITY * side**2
    if patches <= learned:
        return None
    return (
        f"images of up to {patches:,} patches have positions resampled from {side} x {side} "
        f"learned ones; published models have been trained on up to {LEARNED_DENSITY} patches for "
        f"each, here {learned:,}"
    )


def resample_positions(
    learned: Float[Array, "side side w"], grid: Int32[Array, "b 2"], length: int
) -> Float[Array, "b n w"]:
    """Position embeddings of each image's patches, resampled from the learned square grid.

    Bilinear, antialiased, corners not aligned, in float32: PyTorch's `interpolate`, with which
    `Siglip2VisionEmbeddings` (transformers 5.24) resamples, and the same as big_vision's
    `scale_and_translate` (`naflex_vit.py`). Padding gets the embedding of the first patch.

    Resizing is linear in either direction: each place's embedding is the learned grid, weighted by
    its row and by its column. The weights of all places are one matrix an image, whose shape
    depends on `length` alone, so that one program serves all grids.
    """
    place = jnp.where(is_patch(grid, length), jnp.arange(length)[None], 0)
    rows, columns = grid[:, :1], grid[:, 1:]
    side = learned.shape[0]
    weights = jnp.einsum(
        "bny,bnx->bnyx",
        _weights(place // columns, rows, side),
        _weights(place % columns, columns, side),
    )
    positions = jnp.einsum(
        "bns,sw->bnw",
        rearrange(weights, "b n y x -> b n (y x)"),
        rearrange(learned, "y x w -> (y x) w"),
        precision=jax.lax.Precision.HIGHEST,
    )
    return constrain(positions, "batch", None, None)


def _weights(
    index: Int32[Array, "b n"], size: Int32[Array, "b 1"], side: int
) -> Float[Array, "b n side"]:
    """Of `side` learned values for the one at `index` of `size`: a triangle around its centre, one
    value wide on either side, or one step of the new grid where that is coarser.
    """
    step = side / size.astype(jnp.float32)
    centre = (index + 0.5) * step - 0.5
    learned = jnp.arange(side, dtype=jnp.float32)[None, None]
    distance = jnp.abs(learned - centre[..., None])
    triangle = jnp.maximum(1 - distance / jnp.maximum(step, 1)[..., None], 0)
    return triangle / triangle.sum(axis=-1, keepdims=True)


def sample_patches(key: Array, images: int, patches: int, count: int) -> Int[Array, "b k"]:
    """`count` of `patches` for each image, without replacement (FLIP; Li et al. 2023, section 3).

    An image's choice depends on the key and its place in the batch alone: it is the same on any
    mesh, and in every pass over any part of the batch.
    """
    return jax.lax.top_k(jax.random.uniform(key, (images, patches)), count)[1]


def with_registers(
    x: Float[Array, "b l w"],
    registers: Float[Array, "r w"],
    place: int,
    padding_mask: Bool[Array, "b l"] | None,
) -> tuple[Float[Array, "b m w"], Bool[Array, "b m"] | None]:
    """`x` with registers behind its first `place` positions, and the mask of all."""
    registers = jnp.broadcast_to(registers[None], (x.shape[0], *registers.shape))
    # Of a batch whose size is a symbol, an index would be a gather.
    first = jax.lax.slice_in_dim(x, 0, place, axis=1)
    others = jax.lax.slice_in_dim(x, place, None, axis=1)
    if padding_mask is not None:
        more = ((0, 0), (registers.shape[1], 0))
        padding_mask = jnp.pad(padding_mask, more, constant_values=True)
    return jnp.concatenate([first, registers.astype(x.dtype), others], axis=1), padding_mask
