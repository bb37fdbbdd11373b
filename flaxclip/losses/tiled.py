"""The logit matrix one tile at a time, never stored, on a ring of devices."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flaxclip.errors import InputError
from flaxclip.losses.grid import DeviceGrid
from flaxclip.losses.stats import (
    LocalResult,
    Objective,
    RowStats,
    merge_over,
    merge_stats,
    own_part,
    stats_along,
)
from flaxclip.numerics import matmul, similarity

MAX_TILE = 1024
"""Rows and columns of a tile: 4 MiB, which stays in a TPU's on-chip memory or a CPU's cache."""
MIN_TILE = 128
MAX_IMAGES = 8192
"""Most images that a device gathers, so that texts travel less far."""


class Sums(NamedTuple):
    """Sums that images, or texts, collect from the others in a pass. If None, not in this pass."""

    stats: RowStats | None
    positives: Float[Array, " n"] | None
    weighted: Float[Array, "n d"] | None
    """Sum of the others' embeddings, weighted by the pair."""


class Side(NamedTuple):
    """Images, or texts, with their statistics and sums."""

    z: Float[Array, "n d"]
    stats: RowStats | None
    """Complete since an earlier pass, or not needed."""
    sums: Sums


def tiled_result(
    objective: Objective,
    grid: DeviceGrid,
    zimg: Float[Array, "local d"],
    ztxt: Float[Array, "local d"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    with_gradients: bool,
) -> LocalResult:
    """Images of the grid row stay, texts of the grid column go round a ring, tile after tile.

    Log-sum-exps are updated online, as in FlashAttention (Dao et al. 2022, section 3.1). If a
    gradient needs them complete, a second pass computes every logit again.

    Inside `jax.shard_map` over the grid; `zimg` and `ztxt` are this device's own.

    Raises:
        InputError: `local` has no divisor that is fit for a tile.
    """
    local, dim = ztxt.shape
    _, grid_column = grid.position
    images = grid.gather(zimg, "row")
    held = images.shape[0]
    ring_pass = functools.partial(_ring_pass, objective, grid, scale, bias)

    def no_stats(n: int) -> RowStats:
        return RowStats(max=jnp.full(n, -jnp.inf), sum=jnp.zeros(n), num_max=jnp.zeros(n))

    def no_weighted(n: int) -> Float[Array, "n d"]:
        return jnp.zeros((n, dim))

    in_one_pass = with_gradients and not objective.weights_need_stats
    image_sums, text_sums = ring_pass(
        Side(images, None, Sums(no_stats(held), None, no_weighted(held) if in_one_pass else None)),
        Side(
            ztxt,
            None,
            Sums(no_stats(local), jnp.zeros(local), no_weighted(local) if in_one_pass else None),
        ),
    )
    assert image_sums.stats is not None, "asked for above"
    assert text_sums.stats is not None, "asked for above"
    rows = merge_over(objective, grid, image_sums.stats, "row")
    columns, positives = text_sums.stats, text_sums.positives
    if with_gradients and not in_one_pass:
        image_sums, text_sums = ring_pass(
            Side(images, rows, Sums(None, None, no_weighted(held))),
            Side(ztxt, columns, Sums(None, None, no_weighted(local))),
        )
    assert positives is not None, "the first pass has added them up"
    weighted = image_sums.weighted
    return LocalResult(
        rows=own_part(rows, grid_column, local),
        columns=columns,
        positives=positives,
        weighted_texts=None if weighted is None else grid.scatter_sum(weighted, "row"),
        weighted_images=text_sums.weighted,
    )


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


def _ring_pass(
    objective: Objective,
    grid: DeviceGrid,
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    images: Side,
    texts: Side,
) -> tuple[Sums, Sums]:
    """Sums of the images over the texts of this grid column, and of the own texts over all images.

    Texts go round the ring with the sums they have collected so far, and only the sums return.
    """
    local = texts.z.shape[0]
    tile = tile_size(local)
    tiles = local // tile
    _, grid_column = grid.position

    def add_text_tile(
        image_sums: Sums, text_tile: Side, own_index: Int[Array, ""] | None = None
    ) -> tuple[Sums, Side]:
        """Add all images with one tile of texts, number `own_index` of this device or received."""

        def add_image_tile(index, carry):
            image_sums, text_sums = carry
            image_tile = _read(images._replace(sums=image_sums), index, tile)
            is_pair = None
            if own_index is not None:
                image = index * tile + jnp.arange(tile)[:, None]
                own_image = grid_column * local + own_index * tile + jnp.arange(tile)[None, :]
                is_pair = image == own_image
            tile_sums, text_sums = _add_tile(
                objective, scale, bias, image_tile, text_tile._replace(sums=text_sums), is_pair
            )
            return _write(image_sums, tile_sums, index, tile), text_sums

        count = images.z.shape[0] // tile
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


def _add_tile(
    objective: Objective,
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    images: Side,
    texts: Side,
    is_pair: Bool[Array, "rows columns"] | None,
) -> tuple[Sums, Sums]:
    """Sums of both sides, with those of one tile of logits added."""
    logits = scale * similarity(images.z, texts.z) + bias
    image_sums, text_sums = images.sums, texts.sums
    if image_sums.stats is not None and text_sums.stats is not None:
        rows = _add_stats(objective, image_sums.stats, logits, 1)
        columns = _add_stats(objective, text_sums.stats, logits, 0)
        image_sums, text_sums = image_sums._replace(stats=rows), text_sums._replace(stats=columns)
        if is_pair is not None:
            assert text_sums.positives is not None, "added up in the pass of the statistics"
            positives = text_sums.positives + jnp.where(is_pair, logits, 0).sum(0)
            text_sums = text_sums._replace(positives=positives)
    if image_sums.weighted is not None and text_sums.weighted is not None:
        weights = objective.weights(logits, images.stats, texts.stats)
        image_sums = image_sums._replace(weighted=image_sums.weighted + matmul(weights, texts.z))
        text_sums = text_sums._replace(weighted=text_sums.weighted + matmul(weights.T, images.z))
    return image_sums, text_sums


def _add_stats(
    objective: Objective, stats: RowStats, logits: Float[Array, "rows columns"], axis: int
) -> RowStats:
    parts = stats, stats_along(objective, logits, axis)
    return merge_stats(objective, jax.tree.map(lambda *part: jnp.stack(part), *parts))


def _read(tree: Any, index: Int[Array, ""] | int, size: int) -> Any:
    """Tile number `index` of every array."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, index * size, size), tree)


def _write(tree: Any, tile: Any, index: Int[Array, ""] | int, size: int) -> Any:
    return jax.tree.map(
        lambda x, part: jax.lax.dynamic_update_slice_in_dim(x, part, index * size, 0), tree, tile
    )
