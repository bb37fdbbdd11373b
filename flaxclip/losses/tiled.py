"""The logit matrix tile by tile, none of it ever kept, on a ring of devices."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flaxclip.errors import InputError
from flaxclip.losses.grid import DeviceGrid
from flaxclip.losses.lines import Lines, Share, lines_of, merge_lines, merge_over, own_part
from flaxclip.losses.precision import matmul

MAX_TILE = 1024
"""Rows and columns of a tile: 4 MiB, which stays in a TPU's on-chip memory or a CPU's cache."""
MIN_TILE = 128
MAX_IMAGES = 8192
"""Images that a device gathers at most, so that texts have a shorter way to go."""


class Sums(NamedTuple):
    """What images, or texts, gather on their walk over the others. None: not on this walk."""

    lines: Lines | None
    positives: Float[Array, " n"] | None
    gradient: Float[Array, "n d"] | None


class Side(NamedTuple):
    """Images, or texts, with all that belongs to them."""

    z: Float[Array, "n d"]
    lines: Lines | None
    """Finished on an earlier walk, or not needed."""
    sums: Sums


def tiled_share(
    objective: Any,
    grid: DeviceGrid,
    zimg: Float[Array, "m d"],
    ztxt: Float[Array, "m d"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    with_gradients: bool,
) -> Share:
    """Images of the grid row stay, texts of the grid column come by, tile after tile.

    Log-sum-exps grow online, as in FlashAttention (Dao et al. 2022, section 3.1). Where a gradient
    needs them finished, a second walk computes every logit again.

    Inside `jax.shard_map` over the grid; `zimg` and `ztxt` are this device's own.

    Raises:
        InputError: m has no divisor that is fit for a tile.
    """
    m, d = ztxt.shape
    _, b = grid.position
    images = grid.gather(zimg, "row")
    held = images.shape[0]
    walk = functools.partial(_walk, objective, grid, scale, bias)

    def zero_lines(n: int) -> Lines:
        return Lines(jnp.full(n, -jnp.inf), jnp.zeros(n), jnp.zeros(n))

    at_once = with_gradients and not objective.weights_need_lines
    image_sums, text_sums = walk(
        Side(images, None, Sums(zero_lines(held), None, jnp.zeros((held, d)) if at_once else None)),
        Side(ztxt, None, Sums(zero_lines(m), jnp.zeros(m), jnp.zeros((m, d)) if at_once else None)),
    )
    rows = merge_over(objective, grid, image_sums.lines, "row")
    columns, positives = text_sums.lines, text_sums.positives
    if with_gradients and not at_once:
        image_sums, text_sums = walk(
            Side(images, rows, Sums(None, None, jnp.zeros((held, d)))),
            Side(ztxt, columns, Sums(None, None, jnp.zeros((m, d)))),
        )
    return Share(
        rows=own_part(rows, b, m),
        columns=columns,
        positives=positives,
        image_sums=grid.scatter_sum(image_sums.gradient, "row") if with_gradients else None,
        text_sums=text_sums.gradient,
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


def _walk(
    objective: Any,
    grid: DeviceGrid,
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    images: Side,
    texts: Side,
) -> tuple[Sums, Sums]:
    """Sums of the images over the texts of this grid column, and of the own texts over all images.

    Texts go round the ring with the sums they have gathered so far, and only those come home.
    """
    m = texts.z.shape[0]
    tile = tile_size(m)
    tiles = m // tile
    _, b = grid.position

    def visit(image_sums: Sums, text_tile: Side, own: Any = None) -> tuple[Sums, Side]:
        """All images with one tile of texts: of this device itself, number `own`, or arrived."""

        def meet(i, carry):
            image_sums, text_sums = carry
            image_tile = _read(images._replace(sums=image_sums), i, tile)
            is_pair = None
            if own is not None:
                image = i * tile + jnp.arange(tile)[:, None]
                is_pair = image == b * m + own * tile + jnp.arange(tile)[None, :]
            text_tile_now = text_tile._replace(sums=text_sums)
            part, text_sums = _meet(objective, scale, bias, image_tile, text_tile_now, is_pair)
            return _write(image_sums, part, i, tile), text_sums

        count = images.z.shape[0] // tile
        carry = image_sums, text_tile.sums
        image_sums, text_sums = jax.lax.fori_loop(0, count, meet, carry)
        return image_sums, text_tile._replace(sums=text_sums)

    def visit_own(j, carry):
        image_sums, text_sums = carry
        own_tile = _read(texts._replace(sums=text_sums), j, tile)
        image_sums, own_tile = visit(image_sums, own_tile, own=j)
        return image_sums, _write(text_sums, own_tile.sums, j, tile)

    image_sums, text_sums = jax.lax.fori_loop(0, tiles, visit_own, (images.sums, texts.sums))
    if grid.rows == 1:
        return image_sums, text_sums

    def visit_arrived(k, carry):
        image_sums, block, arrived = carry
        # The next tile travels while this one is computed; with a single one there is no next.
        if tiles > 1:
            arriving = grid.send_up(_read(block, (k + 1) % tiles, tile))
        image_sums, arrived = visit(image_sums, arrived)
        block = _write(block, arrived, k % tiles, tile)
        if tiles == 1:
            arriving = grid.send_up(block)
        return image_sums, block, arriving

    block = texts._replace(sums=text_sums)
    arrived = grid.send_up(_read(block, 0, tile))
    image_sums, block, arrived = jax.lax.fori_loop(
        0, (grid.rows - 1) * tiles, visit_arrived, (image_sums, block, arrived)
    )
    home = _write(block.sums, arrived.sums, 0, tile)

    def send_home(j, sums):
        return _write(sums, grid.send_up(_read(sums, j, tile)), j, tile)

    return image_sums, jax.lax.fori_loop(1, tiles, send_home, home)


def _meet(
    objective: Any,
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    images: Side,
    texts: Side,
    is_pair: Bool[Array, "r c"] | None,
) -> tuple[Sums, Sums]:
    """One tile of logits, and what it adds to the sums of either side."""
    logits = scale * matmul(images.z, texts.z.T) + bias
    image_sums, text_sums = images.sums, texts.sums
    if image_sums.lines is not None:
        image_sums, text_sums = (
            sums._replace(lines=_add_lines(objective, sums.lines, logits, axis))
            for sums, axis in ((image_sums, 1), (text_sums, 0))
        )
        if is_pair is not None:
            positives = text_sums.positives + jnp.where(is_pair, logits, 0).sum(0)
            text_sums = text_sums._replace(positives=positives)
    if image_sums.gradient is not None:
        weights = objective.weights(logits, images.lines, texts.lines)
        image_sums = image_sums._replace(gradient=image_sums.gradient + matmul(weights, texts.z))
        text_sums = text_sums._replace(gradient=text_sums.gradient + matmul(weights.T, images.z))
    return image_sums, text_sums


def _add_lines(objective: Any, lines: Lines, logits: Float[Array, "r c"], axis: int) -> Lines:
    parts = lines, lines_of(objective, logits, axis)
    return merge_lines(objective, jax.tree.map(lambda *part: jnp.stack(part), *parts))


def _read(tree: Any, index: Int[Array, ""] | int, size: int) -> Any:
    """Tile number `index` of every array."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, index * size, size), tree)


def _write(tree: Any, tile: Any, index: Int[Array, ""] | int, size: int) -> Any:
    return jax.tree.map(
        lambda x, part: jax.lax.dynamic_update_slice_in_dim(x, part, index * size, 0), tree, tile
    )
