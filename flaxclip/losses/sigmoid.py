"""The pairwise sigmoid loss of SigLIP over all pairs of a global batch."""

import dataclasses
import math
from typing import ClassVar

import jax
from jaxtyping import Array, Float

from flaxclip.losses.pairs import ContrastiveLoss, Implementation, pair_loss
from flaxclip.losses.stats import RowStats


def sigmoid_contrastive_loss(
    zimg: Float[Array, "b d"],
    ztxt: Float[Array, "b d"],
    logit_scale: Float[Array, ""],
    logit_bias: Float[Array, ""],
    batch_axes: tuple[str, ...] | None = None,
    implementation: Implementation = "auto",
) -> ContrastiveLoss:
    """Each pair's binary cross-entropy over the batch size (Zhai et al. 2023, algorithm 1).

        logits = exp(logit_scale) * zimg @ ztxt.T + logit_bias  # [b, b]
        labels = 2 * eye(b) - 1                                 # 1 where it is a pair, else -1
        loss = -sum(log_sigmoid(labels * logits)) / b

    >>> import jax.numpy as jnp
    >>> scale, bias = jnp.log(10.0), jnp.float32(-5.0)
    >>> print(f"{sigmoid_contrastive_loss(jnp.eye(4), jnp.eye(4), scale, bias).loss:.4f}")
    0.0269

    Arguments, memory, traffic and errors are those of `softmax_contrastive_loss`, with `logit_bias`
    added to all logits. Since a pair's gradient depends on that pair alone, `tiled` needs one pass
    for loss and gradient: its texts travel once, `8 b d / c` bytes, and no logit is computed twice.
    """
    return pair_loss(
        SigmoidObjective(), implementation, batch_axes, zimg, ztxt, logit_scale, logit_bias
    )


def neutral_logit_bias(batch_size: int) -> float:
    """The bias at which uncorrelated pairs match as often as they do in a batch of that size.

    One pair in b matches, log-odds of -log(b - 1). SigLIP's -10 (Zhai et al. 2023, section 4.2) is
    that of a batch of 22,027.
    """
    return -math.log(max(batch_size - 1, 1))


@dataclasses.dataclass(frozen=True)
class SigmoidObjective:
    """A = sum of softplus(s_ij), since -log sigmoid(s) = softplus(s) - s."""

    weights_need_stats: ClassVar[bool] = False

    def sum_terms(
        self, logits: Float[Array, "rows columns"], largest: Float[Array, "..."], axis: int
    ) -> Float[Array, " n"]:
        """Of a row, its part of A; of a column, its part of dA / d bias."""
        return (jax.nn.softplus(logits) if axis == 1 else jax.nn.sigmoid(logits)).sum(axis)

    def rescale(
        self,
        sums: Float[Array, "parts n"],
        old_max: Float[Array, "parts n"],
        new_max: Float[Array, "1 n"],
    ) -> Float[Array, "parts n"]:
        return sums

    def value(
        self, rows: RowStats, columns: RowStats, positives: Float[Array, " n"]
    ) -> Float[Array, ""]:
        return (rows.sum - positives).sum()

    def weights(
        self,
        logits: Float[Array, "rows columns"],
        rows: RowStats | None,
        columns: RowStats | None,
    ) -> Float[Array, "rows columns"]:
        return jax.nn.sigmoid(logits)

    def bias_gradient(self, columns: RowStats) -> Float[Array, ""]:
        return columns.sum.sum() - columns.sum.size
