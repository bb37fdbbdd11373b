"""A device's share of the logit matrix, as a whole."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxclip.losses.grid import DeviceGrid
from flaxclip.losses.lines import Share, lines_of, merge_over, own_part
from flaxclip.losses.precision import matmul


def gathered_share(
    objective: Any,
    grid: DeviceGrid,
    zimg: Float[Array, "m d"],
    ztxt: Float[Array, "m d"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    with_gradients: bool,
) -> Share:
    """Images of the grid row against texts of the grid column: one matrix for both directions.

    Inside `jax.shard_map` over the grid; `zimg` and `ztxt` are this device's own.
    """
    m = ztxt.shape[0]
    a, b = grid.position
    images, texts = grid.gather(zimg, "row"), grid.gather(ztxt, "column")
    logits = scale * matmul(images, texts.T) + bias
    rows = merge_over(objective, grid, lines_of(objective, logits, axis=1), "row")
    columns = merge_over(objective, grid, lines_of(objective, logits, axis=0), "column")
    own_block = jax.lax.dynamic_slice(logits, (b * m, a * m), (m, m))
    image_sums = text_sums = None
    if with_gradients:
        weights = objective.weights(logits, rows, columns)
        image_sums = grid.scatter_sum(matmul(weights, texts), "row")
        text_sums = grid.scatter_sum(matmul(weights.T, images), "column")
    return Share(
        rows=own_part(rows, b, m),
        columns=own_part(columns, a, m),
        positives=jnp.diagonal(own_block),
        image_sums=image_sums,
        text_sums=text_sums,
    )
