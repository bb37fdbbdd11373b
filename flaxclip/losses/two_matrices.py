"""The matrices of all pairs of a student and of its teacher, side by side, stored or in tiles.

What a student learns of a pair takes the same pair's logit by the teacher, and the statistics of
its row and column in both matrices.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flaxclip.losses.grid import DeviceGrid, Over
from flaxclip.losses.ring import Side, ring_pass
from flaxclip.losses.softmax import SoftmaxObjective
from flaxclip.losses.stats import RowStats, merge_stats, own_part, stats_along
from flaxclip.numerics import matmul, similarity

_SOFTMAX: Any = SoftmaxObjective()


class Embeddings(NamedTuple):
    """Images, or texts, by the student and by the teacher."""

    student: Float[Array, "n d"]
    teacher: Float[Array, "n dt"]


class PairStats(NamedTuple):
    """Statistics of each row of both matrices, or of each column."""

    student: RowStats
    teacher: RowStats
    chosen: Float[Array, "*parts n"]
    """The student's logit where the teacher's is largest."""


class Sums(NamedTuple):
    """Sums that images, or texts, collect from the others."""

    cross: Float[Array, " n"]
    """Of the teacher's probabilities times the student's logits, these relative to the largest."""
    weighted: Float[Array, "n d"] | None
    """Of the others' embeddings, weighted by the gradient with respect to the pair's logit. If
    None, no gradients are requested."""


class Scales(NamedTuple):
    """Factors on cosine similarities."""

    student: Float[Array, ""]
    teacher: Float[Array, ""]


def gathered_sums(
    grid: DeviceGrid, images: Embeddings, texts: Embeddings, scales: Scales, with_gradients: bool
) -> tuple[PairStats, PairStats, Sums, Sums]:
    """Images of the grid row against texts of the grid column, as `pairs.gathered_result`."""
    local = texts.student.shape[0]
    grid_row, grid_column = grid.position
    images = Embeddings(*(grid.gather(z, "row") for z in images))
    texts = Embeddings(*(grid.gather(z, "column") for z in texts))
    student, teacher = _logits(images, texts, scales)
    rows = _merge_over(grid, _stats_along(student, teacher, 1), "row")
    columns = _merge_over(grid, _stats_along(student, teacher, 0), "column")
    image_sums, text_sums = _sums(
        student, teacher, rows, columns, images.student, texts.student, with_gradients
    )
    return (
        own_part(rows, grid_column, local),
        own_part(columns, grid_row, local),
        jax.tree.map(lambda x: grid.scatter_sum(x, "row"), image_sums),
        jax.tree.map(lambda x: grid.scatter_sum(x, "column"), text_sums),
    )


def tiled_sums(
    grid: DeviceGrid, images: Embeddings, texts: Embeddings, scales: Scales, with_gradients: bool
) -> tuple[PairStats, PairStats, Sums, Sums]:
    """Tile after tile, as `tiled.tiled_result`: one pass for the statistics, one for the sums."""
    local, dim = texts.student.shape
    _, grid_column = grid.position
    images = Embeddings(*(grid.gather(z, "row") for z in images))
    held = images.student.shape[0]

    def no_stats(n: int) -> PairStats:
        none = RowStats(max=jnp.full(n, -jnp.inf), sum=jnp.zeros(n), num_max=jnp.zeros(n))
        return PairStats(none, none, jnp.full(n, -jnp.inf))

    def no_sums(n: int) -> Sums:
        return Sums(jnp.zeros(n), jnp.zeros((n, dim)) if with_gradients else None)

    def add_stats(
        images: Side, texts: Side, is_pair: Bool[Array, "rows columns"] | None
    ) -> tuple[PairStats, PairStats]:
        logits = _logits(images.z, texts.z, scales)
        return (
            _merge_two(images.sums, _stats_along(*logits, 1)),
            _merge_two(texts.sums, _stats_along(*logits, 0)),
        )

    def add_sums(
        images: Side, texts: Side, is_pair: Bool[Array, "rows columns"] | None
    ) -> tuple[Sums, Sums]:
        new = _sums(
            *_logits(images.z, texts.z, scales), images.stats, texts.stats,
            images.z.student, texts.z.student, with_gradients,
        )  # fmt: skip
        return jax.tree.map(jnp.add, (images.sums, texts.sums), new)

    row_parts, columns = ring_pass(
        grid, add_stats, Side(images, None, no_stats(held)), Side(texts, None, no_stats(local))
    )
    rows = _merge_over(grid, row_parts, "row")
    image_sums, text_sums = ring_pass(
        grid, add_sums, Side(images, rows, no_sums(held)), Side(texts, columns, no_sums(local))
    )
    image_sums = jax.tree.map(lambda x: grid.scatter_sum(x, "row"), image_sums)
    return own_part(rows, grid_column, local), columns, image_sums, text_sums


def _logits(
    images: Embeddings, texts: Embeddings, scales: Scales
) -> tuple[Float[Array, "rows columns"], Float[Array, "rows columns"]]:
    """Of the student, and of the teacher."""
    teacher = (z.teacher.astype(jnp.float32) for z in (images, texts))
    return (
        scales.student * similarity(images.student, texts.student),
        scales.teacher * similarity(*teacher),
    )


def _stats_along(
    student: Float[Array, "rows columns"], teacher: Float[Array, "rows columns"], axis: int
) -> PairStats:
    is_largest = teacher == teacher.max(axis, keepdims=True)
    return PairStats(
        stats_along(_SOFTMAX, student, axis),
        stats_along(_SOFTMAX, teacher, axis),
        jnp.where(is_largest, student, -jnp.inf).max(axis),
    )


def _merge(parts: PairStats) -> PairStats:
    """Of parts of the same rows, stacked along the first axis."""
    teacher = merge_stats(_SOFTMAX, parts.teacher)
    chosen = jnp.where(parts.teacher.max == teacher.max[None], parts.chosen, -jnp.inf).max(0)
    return PairStats(merge_stats(_SOFTMAX, parts.student), teacher, chosen)


def _merge_two(stats: PairStats, more: PairStats) -> PairStats:
    return _merge(jax.tree.map(lambda *part: jnp.stack(part), stats, more))


def _merge_over(grid: DeviceGrid, stats: PairStats, over: Over) -> PairStats:
    return _merge(jax.tree.map(lambda x: grid.gather(x[None], over), stats))


def _sums(
    student: Float[Array, "rows columns"],
    teacher: Float[Array, "rows columns"],
    rows: PairStats,
    columns: PairStats,
    zimg: Float[Array, "rows d"],
    ztxt: Float[Array, "columns d"],
    with_gradients: bool,
) -> tuple[Sums, Sums]:
    """Sums of images and of texts over these logits, from complete statistics."""
    by_row = _probabilities(teacher, rows.teacher, 1)
    by_column = _probabilities(teacher, columns.teacher, 0)
    image_cross = (by_row * (student - rows.student.max[:, None])).sum(1)
    text_cross = (by_column * (student - columns.student.max[None, :])).sum(0)
    if not with_gradients:
        return Sums(image_cross, None), Sums(text_cross, None)
    weights = _SOFTMAX.weights(student, rows.student, columns.student) - (by_row + by_column) / 2
    return (
        Sums(image_cross, matmul(weights, ztxt)),
        Sums(text_cross, matmul(weights.T, zimg)),
    )


def _probabilities(
    logits: Float[Array, "rows columns"], stats: RowStats, axis: int
) -> Float[Array, "rows columns"]:
    largest, total = (jnp.expand_dims(x, axis) for x in (stats.max, stats.sum))
    return jnp.exp(logits - largest) / total
