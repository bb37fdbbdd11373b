"""The symmetric cross-entropy of CLIP over all pairs of a global batch.

`softmax_contrastive_loss` defines it. `SoftmaxObjective` computes it, on one device or a grid of
them, by the sums in which `losses.pairs` writes every contrastive loss.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxclip.losses.pairs import ContrastiveLoss, Implementation, pair_loss
from flaxclip.losses.stats import RowStats


def softmax_contrastive_loss(
    zimg: Float[Array, "b d"],
    ztxt: Float[Array, "b d"],
    logit_scale: Float[Array, ""],
    batch_axes: tuple[str, ...] | None = None,
    implementation: Implementation = "auto",
) -> ContrastiveLoss:
    """Mean of image-to-text and text-to-image cross-entropy (Radford et al. 2021, figure 3).

        logits = exp(logit_scale) * zimg @ ztxt.T               # [b, b]
        labels = arange(b)                                      # row i of each is a pair
        loss_image = cross_entropy(logits, labels, axis=1)      # which text is this image's
        loss_text = cross_entropy(logits, labels, axis=0)       # which image is this text's
        loss = mean(loss_image + loss_text) / 2

    Each image and each text is contrasted with all others in the batch. The arrays are global: on
    a mesh, name the axes that divide the batch as `batch_axes` and run under `jax.set_mesh`.

    >>> import jax.numpy as jnp
    >>> zimg, ztxt = jnp.eye(4), jnp.eye(4)[jnp.array([0, 1, 3, 2])]  # two pairs are mixed up
    >>> result = softmax_contrastive_loss(zimg, ztxt, logit_scale=jnp.log(10.0))
    >>> print(f"{result.loss:.3f} {result.image_to_text_accuracy}")
    5.000 0.5

    Args:
        zimg: unit image embeddings, float32.
        ztxt: unit text embeddings, float32.
        logit_scale: log of the factor on cosine similarities.
        batch_axes: mesh axes that divide the batch; None on a single device.
        implementation: see `losses.pairs.Implementation`. The result is the same.

    Of n devices, r x c of a grid as square as n allows, each needs

    - `gathered`: `4 b^2 / n` bytes for its part of the matrix, which serves both directions and
      is overwritten by its gradient, and `8 b d (1/r + 1/c)` for embeddings and their gradients.
      Traffic: `4 b d (1/r + 1/c)` bytes gathered, and as much reduced.
    - `tiled`: no matrix, but tiles of at most 4 MiB; `8 b d / n` for texts and their gradients on
      their way, and `8 b d / r` for images where c > 1, which is where they are few. Traffic: texts
      twice and their gradients once round a ring of r devices, `12 b d / c` bytes, and
      `8 b d / r` for images. FLOPs: 4/3 of gathered, since logits are computed again.

    Raises:
        InputError: `tiled`, and a device's part of the batch cannot be cut into tiles.
    """
    no_bias = jnp.zeros(())
    return pair_loss(
        SoftmaxObjective(), implementation, batch_axes, zimg, ztxt, logit_scale, no_bias
    )


@dataclasses.dataclass(frozen=True)
class SoftmaxObjective:
    """A = (sum of rows' log-sum-exp + sum of columns') / 2."""

    weights_need_stats: ClassVar[bool] = True

    def sum_terms(
        self, logits: Float[Array, "rows columns"], largest: Float[Array, "..."], axis: int
    ) -> Float[Array, " n"]:
        """Sum of exponentials, relative to the largest."""
        return jnp.exp(logits - largest).sum(axis)

    def rescale(
        self,
        sums: Float[Array, "parts n"],
        old_max: Float[Array, "parts n"],
        new_max: Float[Array, "1 n"],
    ) -> Float[Array, "parts n"]:
        return sums * jnp.exp(old_max - new_max)

    def value(
        self, rows: RowStats, columns: RowStats, positives: Float[Array, " n"]
    ) -> Float[Array, ""]:
        # Row by row, for a sum of large numbers less another would leave little of a small loss.
        both = (_log_sum_exp(rows) - positives) + (_log_sum_exp(columns) - positives)
        return both.sum() / 2

    def weights(
        self, logits: Float[Array, "rows columns"], rows: RowStats, columns: RowStats
    ) -> Float[Array, "rows columns"]:
        """The mean of a pair's probability among its row and among its column."""
        # Not exp(logit - log-sum-exp): where a pair is sure of itself, its gradient is 1 less its
        # probability, and the rounding of the log-sum-exp would be most of that.
        by_row = jnp.exp(logits - rows.max[:, None]) * (0.5 / rows.sum)[:, None]
        by_column = jnp.exp(logits - columns.max[None, :]) * (0.5 / columns.sum)[None, :]
        return by_row + by_column

    def bias_gradient(self, columns: RowStats) -> Float[Array, ""]:
        """A constant added to all logits changes nothing."""
        return jnp.zeros(())


def _log_sum_exp(stats: RowStats) -> Float[Array, " n"]:
    return stats.max + jnp.log(stats.sum)
