"""The pairwise sigmoid loss of SigLIP over all pairs of a global batch."""

import dataclasses
import math

import jax
from jaxtyping import Array, Float

from flaxclip.losses.pairs import ContrastiveLoss, Form, Lines, pair_loss


def sigmoid_contrastive_loss(
    zimg: Float[Array, "b d"],
    ztxt: Float[Array, "b d"],
    logit_scale: Float[Array, ""],
    logit_bias: Float[Array, ""],
    batch_axes: tuple[str, ...] | None = None,
    form: Form = "auto",
) -> ContrastiveLoss:
    """Each pair's binary cross-entropy, matching or not, over the batch size (Zhai et al. 2023).

    `-1/b sum_ij log sigmoid(y_ij (scale zimg_i . ztxt_j + bias))` with y = 1 on the diagonal and -1
    elsewhere: section 3.2, algorithm 1 there.

    Arguments, memory and traffic are those of `softmax_contrastive_loss`, with `logit_bias` added
    to all logits. Since a pair's gradient depends on that pair alone, `tiled` needs one walk for
    loss and gradient: its texts travel once, `8 b d / c` bytes, and no logit is computed twice.
    """
    return pair_loss(SigmoidObjective(), form, batch_axes, zimg, ztxt, logit_scale, logit_bias)


def neutral_logit_bias(batch_size: int) -> float:
    """The bias at which uncorrelated pairs match as often as they do in a batch of that size.

    One pair in b matches, log-odds of -log(b - 1). SigLIP's -10 (Zhai et al. 2023, section 4.2) is
    that of a batch of 22,027.
    """
    return -math.log(max(batch_size - 1, 1))


@dataclasses.dataclass(frozen=True)
class SigmoidObjective:
    """A = sum of softplus(s_ij), since -log sigmoid(s) = softplus(s) - s."""

    weights_need_lines = False

    def total(
        self, logits: Float[Array, "r c"], top: Float[Array, "..."], axis: int
    ) -> Float[Array, " n"]:
        """Of a row, its part of A; of a column, its part of dA / d bias."""
        return (jax.nn.softplus(logits) if axis == 1 else jax.nn.sigmoid(logits)).sum(axis)

    def rescale(
        self, total: Float[Array, "k n"], top: Float[Array, "k n"], new_top: Float[Array, "1 n"]
    ) -> Float[Array, "k n"]:
        return total

    def value(self, rows: Lines, columns: Lines, positives: Float[Array, " n"]) -> Float[Array, ""]:
        return (rows.total - positives).sum()

    def weights(
        self, logits: Float[Array, "r c"], rows: Lines | None, columns: Lines | None
    ) -> Float[Array, "r c"]:
        return jax.nn.sigmoid(logits)

    def bias_gradient(self, columns: Lines) -> Float[Array, ""]:
        return columns.total.sum() - columns.total.size
