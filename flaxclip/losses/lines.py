"""What a loss needs to know of each row and column of the logit matrix, taken part by part."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxclip.losses.grid import DeviceGrid


class Lines(NamedTuple):
    """Of each row, or each column, as far as it has been seen."""

    top: Float[Array, "*parts n"]
    """The largest logit."""
    ties: Float[Array, "*parts n"]
    """How many logits are as large."""
    total: Float[Array, "*parts n"]
    """What the objective sums up, see there."""


class Objective(Protocol):
    """What tells one loss from another. Equal to others of its kind, so that JAX can cache."""

    weights_need_lines: bool
    """Whether a pair's weight depends on all others of its row and column."""

    def total(
        self, logits: Float[Array, "r c"], top: Float[Array, "..."], axis: int
    ) -> Float[Array, " n"]:
        """`Lines.total` along `axis`; `top` is the maximum there, kept as an axis of 1."""

    def rescale(
        self, total: Float[Array, "k n"], top: Float[Array, "k n"], new_top: Float[Array, "1 n"]
    ) -> Float[Array, "k n"]:
        """`total`, taken when the largest logit was `top`, for another one."""

    def value(self, rows: Lines, columns: Lines, positives: Float[Array, " n"]) -> Float[Array, ""]:
        """The part of B times the loss that these rows, columns and their crossings amount to."""

    def weights(
        self, logits: Float[Array, "r c"], rows: Lines | None, columns: Lines | None
    ) -> Float[Array, "r c"]:
        """Derivative of A (`losses.pairs`) by the logits; `Lines` are finished, or not needed."""

    def bias_gradient(self, columns: Lines) -> Float[Array, ""]:
        """The part of B dloss / dbias that these columns amount to."""


class Share(NamedTuple):
    """What a device knows of its own m images and texts once all pairs have been seen."""

    rows: Lines
    columns: Lines
    positives: Float[Array, " m"]
    """Their own logits, bit for bit those of the matrix: accuracies compare the two."""
    image_sums: Float[Array, "m d"] | None
    """sum_j weight_ij ztxt_j; None where no gradients are asked for."""
    text_sums: Float[Array, "m d"] | None
    """sum_i weight_ij zimg_i; likewise."""


def lines_of(objective: Any, logits: Float[Array, "r c"], axis: int) -> Lines:
    """All that these logits say of the rows (`axis` 1) or columns (0) that they are of."""
    top = logits.max(axis, keepdims=True)
    return Lines(
        top=top.squeeze(axis),
        ties=(logits == top).sum(axis, dtype=jnp.float32),
        total=objective.total(logits, top, axis),
    )


def merge_lines(objective: Any, parts: Lines) -> Lines:
    """Parts of the same lines, stacked along the first axis, as one."""
    top = parts.top.max(0, keepdims=True)
    return Lines(
        top=top.squeeze(0),
        ties=jnp.where(parts.top == top, parts.ties, 0).sum(0),
        total=objective.rescale(parts.total, parts.top, top).sum(0),
    )


def merge_over(objective: Any, grid: DeviceGrid, lines: Lines, over: str) -> Lines:
    """Lines of which each device of a grid row or column has seen a part, as one."""
    return merge_lines(objective, jax.tree.map(lambda x: grid.gather(x[None], over), lines))


def own_part(lines: Lines, position: Any, length: int) -> Lines:
    """The lines that belong to the device at `position` of those that were gathered."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, position * length, length), lines)
