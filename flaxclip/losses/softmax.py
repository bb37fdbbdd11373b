"""The symmetric cross-entropy of CLIP over all pairs of a global batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float


class ContrastiveLoss(NamedTuple):
    """Scalars of one batch; the accuracies are those of picking one's own partner out of it."""

    loss: Float[Array, ""]
    image_to_text_accuracy: Float[Array, ""]
    text_to_image_accuracy: Float[Array, ""]


def softmax_contrastive_loss(
    zimg: Float[Array, "b d"],
    ztxt: Float[Array, "b d"],
    logit_scale: Float[Array, ""],
    batch_axes: tuple[str, ...] | None = None,
) -> ContrastiveLoss:
    """Mean of image-to-text and text-to-image cross-entropy (Radford et al. 2021, figure 3).

    Row i of `zimg` and row i of `ztxt` are a pair; every other combination is a negative. The
    arrays are global: on a mesh, name the axes that divide the batch as `batch_axes` and run under
    `jax.set_mesh`. Then texts are gathered once, and each of n devices multiplies its own images
    with all of them: one `[b/n, b]` matrix that serves both directions. A row's log-sum-exp is
    local; a column's needs a maximum and a sum of `[b]` vectors across devices. Peers compute two
    local matrices, at twice the FLOPs and twice the gathered bytes.

    Args:
        zimg: unit image embeddings, float32.
        ztxt: unit text embeddings, float32.
        logit_scale: log of the factor on cosine similarities.
        batch_axes: mesh axes that divide the batch; None on a single device.

    Memory a device: `4 b^2 / n` bytes for the matrix, as much for its gradient, `4 b d` for the
    gathered texts. Traffic a device: one all-gather and one reduce-scatter of `4 b d` bytes.
    """
    # HIGHEST: on TPU the default precision of a float32 product is a single bfloat16 pass, an
    # error of about 2^-8 in the cosine, which a scale of 100 turns into 0.4 in the logit.
    precision = jax.lax.Precision.HIGHEST
    scale = jnp.exp(logit_scale)
    if batch_axes is None:
        logits = scale * jnp.matmul(zimg, ztxt.T, precision=precision)
    else:
        gathered = jax.lax.with_sharding_constraint(ztxt, PartitionSpec())
        logits = scale * jnp.matmul(zimg, gathered.T, precision=precision)
        logits = jax.lax.with_sharding_constraint(logits, PartitionSpec(batch_axes, None))

    # The diagonal, from the embeddings where they lie: no look-up in a divided matrix.
    positives = scale * jnp.einsum("bd,bd->b", zimg, ztxt, precision=precision)
    image_to_text = jax.nn.logsumexp(logits, axis=1) - positives
    text_to_image = jax.nn.logsumexp(logits, axis=0) - positives
    return ContrastiveLoss(
        loss=(image_to_text.mean() + text_to_image.mean()) / 2,
        image_to_text_accuracy=_accuracy(logits, axis=1),
        text_to_image_accuracy=_accuracy(logits, axis=0),
    )


def _accuracy(logits: Float[Array, "b b"], axis: int) -> Float[Array, ""]:
    """Share of lines along `axis` whose largest entry is on the diagonal; ties share the credit.

    Without sharing, towers that map everything to one point would score 100%.
    """
    logits = jax.lax.stop_gradient(logits)
    is_largest = logits == logits.max(axis=axis, keepdims=True)
    position = jnp.arange(logits.shape[0])
    on_diagonal = position[:, None] == position[None, :]
    hits = (is_largest & on_diagonal).any(axis=axis)
    return (hits / is_largest.sum(axis=axis)).mean()
