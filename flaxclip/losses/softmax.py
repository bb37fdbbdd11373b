"""The symmetric cross-entropy of CLIP over all pairs of a global batch."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxclip.losses.pairs import ContrastiveLoss, Form, Lines, pair_loss


def softmax_contrastive_loss(
    zimg: Float[Array, "b d"],
    ztxt: Float[Array, "b d"],
    logit_scale: Float[Array, ""],
    batch_axes: tuple[str, ...] | None = None,
    form: Form = "auto",
) -> ContrastiveLoss:
    """Mean of image-to-text and text-to-image cross-entropy (Radford et al. 2021, figure 3).

    Row i of `zimg` and row i of `ztxt` are a pair; every other combination is a negative. The
    arrays are global: on a mesh, name the axes that divide the batch as `batch_axes` and run under
    `jax.set_mesh`.

    Args:
        zimg: unit image embeddings, float32.
        ztxt: unit text embeddings, float32.
        logit_scale: log of the factor on cosine similarities.
        batch_axes: mesh axes that divide the batch; None on a single device.
        form: how it is computed; see `losses.pairs.Form`. The result is the same.

    Of n devices, r x c of a grid as square as n allows, each needs

    - `gathered`: `4 b^2 / n` bytes for its share of the matrix, which serves both directions and
      is overwritten by its gradient, and `8 b d (1/r + 1/c)` for embeddings and their gradients.
      Traffic: `4 b d (1/r + 1/c)` bytes gathered, and as much reduced.
    - `tiled`: no matrix, but tiles of at most 4 MiB; `8 b d / n` for texts and their gradients on
      their way, and `8 b d / r` for images where c > 1, which is where they are few. Traffic: texts
      twice and their gradients once round a ring of r devices, `12 b d / c` bytes, and
      `8 b d / r` for images. FLOPs: 4/3 of gathered, since logits are computed again.
    """
    bias = jnp.zeros(())
    return pair_loss(SoftmaxObjective(), form, batch_axes, zimg, ztxt, logit_scale, bias)


@dataclasses.dataclass(frozen=True)
class SoftmaxObjective:
    """A = (sum of rows' log-sum-exp + sum of columns') / 2."""

    weights_need_lines = True

    def total(
        self, logits: Float[Array, "r c"], top: Float[Array, "..."], axis: int
    ) -> Float[Array, " n"]:
        """Sum of exponentials, relative to the largest."""
        return jnp.exp(logits - top).sum(axis)

    def rescale(
        self, total: Float[Array, "k n"], top: Float[Array, "k n"], new_top: Float[Array, "1 n"]
    ) -> Float[Array, "k n"]:
        return total * jnp.exp(top - new_top)

    def value(self, rows: Lines, columns: Lines, positives: Float[Array, " n"]) -> Float[Array, ""]:
        # Line by line, for a sum of large numbers less another would leave little of a small loss.
        both = (_log_sum_exp(rows) - positives) + (_log_sum_exp(columns) - positives)
        return both.sum() / 2

    def weights(
        self, logits: Float[Array, "r c"], rows: Lines, columns: Lines
    ) -> Float[Array, "r c"]:
        """The mean of a pair's probability among its row and among its column."""
        # Not exp(logit - log-sum-exp): where a pair is sure of itself, its gradient is 1 less its
        # probability, and the rounding of the log-sum-exp would be most of that.
        by_row = jnp.exp(logits - rows.top[:, None]) * (0.5 / rows.total)[:, None]
        by_column = jnp.exp(logits - columns.top[None, :]) * (0.5 / columns.total)[None, :]
        return by_row + by_column

    def bias_gradient(self, columns: Lines) -> Float[Array, ""]:
        """A constant added to all logits changes nothing."""
        return jnp.zeros(())


def _log_sum_exp(lines: Lines) -> Float[Array, " n"]:
    return lines.top + jnp.log(lines.total)
