"""Passes over all tiles of a batch's matrix of pairs, on a ring of devices."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from flaxclip.errors import InputError
from flaxclip.losses.grid import DeviceGrid

MAX_TILE = 1024
"""Rows and columns of a tile: 4 MiB, which stays in a TPU's on-chip memory or a CPU's cache."""
MIN_TILE = 128


class Side(NamedTuple):
    """Images, or texts, with their statistics and sums: trees of arrays, one row for each."""

    z: Any
    """Embeddings."""
    stats: Any
    """Complete since an earlier pass; if None, not needed."""
    sums: Any
    """Collected from the others in a pass."""


AddTile = Callable[[Side, Side, Bool[Array, "rows columns"] | None], tuple[Any, Any]]
"""(images, texts, which of their pairs belong together) -> sums of both, with those of one tile
added. The last argument is None where no pair can."""


def tile_size(length: int) -> int:
    """The largest divisor of `length` that is no larger than a tile.

    Raises:
        InputError: there is none that is worth the name.
    """
    tile = max(t for t in range(1, min(length, MAX_TILE) + 1) if length % t == 0)
    if tile < min(length, MIN_TILE):
        raise InputError(
            f"{length} pairs a device cannot be cut into equal tiles of {MIN_TILE} to {MAX_TILE}\n"
            f"choose a batch size of which every device gets a multiple of {MIN_TILE}"
        )
    return tile


def ring_pass(grid: DeviceGrid, add_tile: AddTile, images: Side, texts: Side) -> tuple[Any, Any]:
    """Sums of the images over the texts of this grid column, and of the own texts over all images.

    Texts go round the ring with the sums they have collected so far, and only the sums return.

    Inside `jax.shard_map` over the grid; `images` are those of the grid row, `texts` this device's
    own.

    Raises:
        InputError: the device's texts cannot be cut into tiles.
    """
    local = _length(texts.z)
    tile = tile_size(local)
    tiles = local // tile
    _, grid_column = grid.position

    def add_text_tile(
        image_sums: Any, text_tile: Side, own_index: Int[Array, ""] | None = None
    ) -> tuple[Any, Side]:
        """Add all images with one tile of texts, number `own_index` of this device or received."""

        def add_image_tile(index, carry):
            image_sums, text_sums = carry
            image_tile = _read(images._replace(sums=image_sums), index, tile)
            is_pair = None
            if own_index is not None:
                image = index * tile + jnp.arange(tile)[:, None]
                own_image = grid_column * local + own_index * tile + jnp.arange(tile)[None, :]
                is_pair = image == own_image
            tile_sums, text_sums = add_tile(image_tile, text_tile._replace(sums=text_sums), is_pair)
            return _write(image_sums, tile_sums, index, tile), text_sums

        count = _length(images.z) // tile
        carry = image_sums, text_tile.sums
        image_sums, text_sums = jax.lax.fori_loop(0, count, add_image_tile, carry)
        return image_sums, text_tile._replace(sums=text_sums)

    def own_step(index, carry):
        image_sums, text_sums = carry
        own_tile = _read(texts._replace(sums=text_sums), index, tile)
        image_sums, own_tile = add_text_tile(image_sums, own_tile, own_index=index)
        return image_sums, _write(text_sums, own_tile.sums, index, tile)

    image_sums, text_sums = jax.lax.fori_loop(0, tiles, own_step, (images.sums, texts.sums))
    if grid.rows == 1:
        return image_sums, text_sums

    def ring_step(index, carry):
        image_sums, block, arrived = carry
        # The next tile travels while this one is computed; with a single one there is no next.
        if tiles > 1:
            arriving = grid.send_up(_read(block, (index + 1) % tiles, tile))
        image_sums, arrived = add_text_tile(image_sums, arrived)
        block = _write(block, arrived, index % tiles, tile)
        if tiles == 1:
            arriving = grid.send_up(block)
        return image_sums, block, arriving

    block = texts._replace(sums=text_sums)
    arrived = grid.send_up(_read(block, 0, tile))
    image_sums, block, arrived = jax.lax.fori_loop(
        0, (grid.rows - 1) * tiles, ring_step, (image_sums, block, arrived)
    )
    home = _write(block.sums, arrived.sums, 0, tile)

    def send_home(index, sums):
        return _write(sums, grid.send_up(_read(sums, index, tile)), index, tile)

    return image_sums, jax.lax.fori_loop(1, tiles, send_home, home)


def _read(tree: Any, index: Int[Array, ""] | int, size: int) -> Any:
    """Tile number `index` of every array."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, index * size, size), tree)


def _write(tree: Any, tile: Any, index: Int[Array, ""] | int, size: int) -> Any:
    return jax.tree.map(
        lambda x, part: jax.lax.dynamic_update_slice_in_dim(x, part, index * size, 0), tree, tile
    )


def _length(tree: Any) -> int:
    return jax.tree.leaves(tree)[0].shape[0]
