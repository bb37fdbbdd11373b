"""The alternative that the contrastive loss is measured against: a matrix for each direction.

Every device gathers all images and all texts, and multiplies its own images with all texts and its
own texts with all images, as open_clip does with `--local-loss --gather-with-grad`
(`open_clip/loss.py`, `ClipLoss`).
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float


def two_matrix_loss(
    zimg: Float[Array, "b d"],
    ztxt: Float[Array, "b d"],
    logit_scale: Float[Array, ""],
    batch_axes: tuple[str, ...],
) -> Float[Array, ""]:
    """Like `softmax_contrastive_loss`, without accuracies, in the same precision."""

    def on_device(zimg, ztxt, logit_scale):
        first = jax.lax.axis_index(batch_axes) * zimg.shape[0]
        own = first + jnp.arange(zimg.shape[0])

        def cross_entropy(queries, keys):
            keys = jax.lax.all_gather(keys, batch_axes, tiled=True)
            product = jnp.matmul(queries, keys.T, precision=jax.lax.Precision.HIGHEST)
            log_probabilities = jax.nn.log_softmax(jnp.exp(logit_scale) * product)
            return -jnp.take_along_axis(log_probabilities, own[:, None], axis=1).mean()

        loss = (cross_entropy(zimg, ztxt) + cross_entropy(ztxt, zimg)) / 2
        return jax.lax.pmean(loss, batch_axes)

    divided = PartitionSpec(batch_axes)
    return jax.shard_map(
        on_device, in_specs=(divided, divided, PartitionSpec()), out_specs=PartitionSpec()
    )(zimg, ztxt, logit_scale)
