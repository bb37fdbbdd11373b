"""The logit matrix one tile at a time, never stored, on a ring of devices."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flaxclip.losses.grid import DeviceGrid
from flaxclip.losses.ring import Side, ring_pass
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

MAX_IMAGES = 8192
"""Most images that a device gathers, so that texts travel less far."""


class Sums(NamedTuple):
    """Sums that images, or texts, collect from the others in a pass. If None, not in this pass."""

    stats: RowStats | None
    positives: Float[Array, " n"] | None
    weighted: Float[Array, "n d"] | None
    """Sum of the others' embeddings, weighted by the pair."""


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
    add_tile = functools.partial(_add_tile, objective, scale, bias)

    def no_stats(n: int) -> RowStats:
        return RowStats(max=jnp.full(n, -jnp.inf), sum=jnp.zeros(n), num_max=jnp.zeros(n))

    def no_weighted(n: int) -> Float[Array, "n d"]:
        return jnp.zeros((n, dim))

    in_one_pass = with_gradients and not objective.weights_need_stats
    image_sums, text_sums = ring_pass(
        grid,
        add_tile,
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
            grid,
            add_tile,
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


def _add_tile(
    objective: Objective,
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    images: Side,
    texts: Side,
    is_pair: Bool[Array, "rows columns"] | None,
) -> tuple[Sums, Sums]:
    """`ring.AddTile`, with the tile's logits."""
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
