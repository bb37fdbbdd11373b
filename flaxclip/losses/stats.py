"""Statistics of the logit matrix's rows and columns, taken part by part and merged."""

from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flaxclip.losses.grid import DeviceGrid, Over

Stats = TypeVar("Stats", bound=tuple)


class RowStats(NamedTuple):
    """Statistics of each row of the matrix, or each column, over the part seen so far."""

    max: Float[Array, "*parts n"]
    """The largest logit."""
    sum: Float[Array, "*parts n"]
    """Sum of the objective's terms (`Objective.sum_terms`)."""
    num_max: Float[Array, "*parts n"]
    """Number of logits that equal the largest."""


@runtime_checkable
class Objective(Protocol):
    """The terms in which contrastive losses differ; `losses.pairs` has the rest.

    Equal to others of its kind, so that JAX can cache.
    """

    @property
    def weights_need_stats(self) -> bool:
        """True if a pair's weight depends on all others of its row and column."""
        ...

    def sum_terms(
        self, logits: Float[Array, "rows columns"], largest: Float[Array, "..."], axis: int
    ) -> Float[Array, " n"]:
        """`RowStats.sum` along `axis`; `largest` is the maximum there, kept as an axis of 1."""
        ...

    def rescale(
        self,
        sums: Float[Array, "parts n"],
        old_max: Float[Array, "parts n"],
        new_max: Float[Array, "1 n"],
    ) -> Float[Array, "parts n"]:
        """Convert `sums`, taken when the largest logit was `old_max`, for `new_max`."""
        ...

    def value(
        self, rows: RowStats, columns: RowStats, positives: Float[Array, " n"]
    ) -> Float[Array, ""]:
        """The part of B times the loss that these rows, columns and their crossings contribute."""
        ...

    def weights(
        self,
        logits: Float[Array, "rows columns"],
        rows: RowStats | None,
        columns: RowStats | None,
    ) -> Float[Array, "rows columns"]:
        """Derivative of A (`losses.pairs`) with respect to the logits, from complete statistics."""
        ...

    def bias_gradient(self, columns: RowStats) -> Float[Array, ""]:
        """The part of B dloss / dbias that these columns contribute."""
        ...


class LocalResult(NamedTuple):
    """A device's results for its own images and texts, after all pairs have been compared."""

    rows: RowStats
    columns: RowStats
    positives: Float[Array, " local"]
    """Their own logits, bit for bit those of the matrix: accuracies compare the two."""
    weighted_texts: Float[Array, "local d"] | None
    """sum_j weight_ij ztxt_j for each image i; None if no gradients are requested."""
    weighted_images: Float[Array, "local d"] | None
    """sum_i weight_ij zimg_i for each text j; likewise."""


def stats_along(objective: Objective, logits: Float[Array, "rows columns"], axis: int) -> RowStats:
    """Statistics of the rows (`axis` 1) or columns (0) of these logits alone."""
    largest = logits.max(axis, keepdims=True)
    return RowStats(
        max=largest.squeeze(axis),
        sum=objective.sum_terms(logits, largest, axis),
        num_max=(logits == largest).sum(axis, dtype=jnp.float32),
    )


def merge_stats(objective: Objective, parts: RowStats) -> RowStats:
    """Merge statistics of parts of the same rows, stacked along the first axis."""
    largest = parts.max.max(0, keepdims=True)
    return RowStats(
        max=largest.squeeze(0),
        sum=objective.rescale(parts.sum, parts.max, largest).sum(0),
        num_max=jnp.where(parts.max == largest, parts.num_max, 0).sum(0),
    )


def merge_over(objective: Objective, grid: DeviceGrid, stats: RowStats, over: Over) -> RowStats:
    """Merge statistics of rows of which each device of a grid row or column has seen a part."""
    return merge_stats(objective, jax.tree.map(lambda x: grid.gather(x[None], over), stats))


def own_part(stats: Stats, position: Int[Array, ""] | int, local: int) -> Stats:
    """The `local` rows of the device at `position`, out of gathered ones, in every array."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, position * local, local), stats)


def hits(chosen: Float[Array, " n"], stats: RowStats) -> Float[Array, ""]:
    """Number of rows whose `chosen` logit is the largest; if several tie, they share the credit."""
    # A compiler may compute a logit anew for each of its uses, with the product and the sum rounded
    # at once in one and apart in another: the largest may then be larger, and equal none.
    return jnp.where(chosen >= stats.max, 1 / jnp.maximum(stats.num_max, 1), 0).sum()
