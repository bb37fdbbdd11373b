"""The mean over all pairs of a batch that the contrastive losses share, and its gradient.

With logits `s_ij = scale zimg_i . ztxt_j + bias`, both losses are

    (A(s) - sum_i s_ii) / B

and differ in A alone. The derivative of A with respect to `s_ij` is called the weight of a pair. So
the gradient with respect to `zimg_i` is `scale / B (sum_j weight_ij ztxt_j - ztxt_i)`, and likewise
for texts.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from flaxclip.losses.grid import DeviceGrid
from flaxclip.losses.stats import (
    LocalResult,
    Objective,
    hits,
    merge_over,
    own_part,
    stats_along,
)
from flaxclip.losses.tiled import MAX_IMAGES, tiled_result
from flaxclip.numerics import matmul, similarity

Implementation = Literal["auto", "gathered", "tiled"]
"""`gathered`: a device's part of the logit matrix is stored whole. `tiled`: it never is. `auto`:
gathered while that part takes no more than `MAX_MATRIX_BYTES`."""

MAX_MATRIX_BYTES = 2**28


class ContrastiveLoss(NamedTuple):
    """Scalars of one batch; the accuracies are those of picking one's own partner out of it.

    If several tie for the largest logit, they share the credit: otherwise towers that map
    everything to one point would score 100%.
    """

    loss: Float[Array, ""]
    image_to_text_accuracy: Float[Array, ""]
    text_to_image_accuracy: Float[Array, ""]


class Gradients(NamedTuple):
    """Gradients of the loss."""

    zimg: Float[Array, "b d"]
    ztxt: Float[Array, "b d"]
    logit_scale: Float[Array, ""]
    logit_bias: Float[Array, ""]


# The gradient of a scalar only waits for the factor that it is multiplied with, so it is computed
# together with the loss, and nothing else is kept for the backward pass. The rule stands outside
# the shard_map: inside of one that does not check replication, JAX would divide its gradients by
# the number of devices.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def pair_loss(
    objective: Objective,
    implementation: Implementation,
    batch_axes: tuple[str, ...] | None,
    zimg: Float[Array, "b d"],
    ztxt: Float[Array, "b d"],
    logit_scale: Float[Array, ""],
    logit_bias: Float[Array, ""],
) -> ContrastiveLoss:
    """The loss of an `Objective`; other arguments as in `softmax_contrastive_loss`."""
    return _evaluate(
        objective, implementation, batch_axes, False, zimg, ztxt, logit_scale, logit_bias
    )[0]  # fmt: skip


def _forward(
    objective: Objective,
    implementation: Implementation,
    batch_axes: tuple[str, ...] | None,
    *inputs: Float[Array, "..."],
) -> tuple[ContrastiveLoss, Gradients | None]:
    return _evaluate(objective, implementation, batch_axes, True, *inputs)


def _backward(
    objective: Objective,
    implementation: Implementation,
    batch_axes: tuple[str, ...] | None,
    gradients: Gradients,
    cotangents: ContrastiveLoss,
) -> tuple[Float[Array, "..."], ...]:
    return tuple(cotangents.loss * gradient for gradient in gradients)


pair_loss.defvjp(_forward, _backward)


def choose_implementation(
    implementation: Implementation, batch_size: int, devices: int, matrices: int = 1
) -> Literal["gathered", "tiled"]:
    """`implementation`, or the one that `auto` stands for when `devices` share a batch.

    `matrices` of all pairs would be stored.
    """
    if implementation != "auto":
        return implementation
    matrix_bytes = 4 * matrices * batch_size**2 // devices
    return "gathered" if matrix_bytes <= MAX_MATRIX_BYTES else "tiled"


def gathered_result(
    objective: Objective,
    grid: DeviceGrid,
    zimg: Float[Array, "local d"],
    ztxt: Float[Array, "local d"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    with_gradients: bool,
) -> LocalResult:
    """Images of the grid row against texts of the grid column: one matrix for both directions.

    Inside `jax.shard_map` over the grid; `zimg` and `ztxt` are this device's own.
    """
    local = ztxt.shape[0]
    grid_row, grid_column = grid.position
    images, texts = grid.gather(zimg, "row"), grid.gather(ztxt, "column")
    logits = scale * similarity(images, texts) + bias
    rows = merge_over(objective, grid, stats_along(objective, logits, axis=1), "row")
    columns = merge_over(objective, grid, stats_along(objective, logits, axis=0), "column")
    own_logits = jax.lax.dynamic_slice(
        logits, (grid_column * local, grid_row * local), (local, local)
    )
    weighted_texts = weighted_images = None
    if with_gradients:
        weights = objective.weights(logits, rows, columns)
        weighted_texts = grid.scatter_sum(matmul(weights, texts), "row")
        weighted_images = grid.scatter_sum(matmul(weights.T, images), "column")
    return LocalResult(
        rows=own_part(rows, grid_column, local),
        columns=own_part(columns, grid_row, local),
        positives=jnp.diagonal(own_logits),
        weighted_texts=weighted_texts,
        weighted_images=weighted_images,
    )


def _evaluate(
    objective: Objective,
    implementation: Implementation,
    batch_axes: tuple[str, ...] | None,
    with_gradients: bool,
    zimg: Float[Array, "b d"],
    ztxt: Float[Array, "b d"],
    logit_scale: Float[Array, ""],
    logit_bias: Float[Array, ""],
) -> tuple[ContrastiveLoss, Gradients | None]:
    """The loss, and its gradients if requested, on the devices of `batch_axes`."""
    grid = DeviceGrid.squarest(batch_axes)
    local = zimg.shape[0] // grid.size
    compute = gathered_result
    if choose_implementation(implementation, zimg.shape[0], grid.size) == "tiled":
        grid = DeviceGrid.squarest(batch_axes, max_columns=MAX_IMAGES // local)
        compute = tiled_result
    on_device = functools.partial(_on_device, objective, compute, grid, with_gradients)
    if batch_axes is not None:
        divided, whole = PartitionSpec(batch_axes), PartitionSpec()
        gradients = Gradients._make((divided, divided, whole, whole)) if with_gradients else None
        on_device = jax.shard_map(
            on_device,
            in_specs=(divided, divided, whole, whole),
            out_specs=(whole, gradients),
            check_vma=False,
        )
    return on_device(zimg, ztxt, logit_scale, logit_bias)


def _on_device(
    objective: Objective,
    compute: Callable[..., LocalResult],
    grid: DeviceGrid,
    with_gradients: bool,
    zimg: Float[Array, "local d"],
    ztxt: Float[Array, "local d"],
    logit_scale: Float[Array, ""],
    logit_bias: Float[Array, ""],
) -> tuple[ContrastiveLoss, Gradients | None]:
    batch = grid.size * zimg.shape[0]
    scale = jnp.exp(logit_scale)
    result = compute(objective, grid, zimg, ztxt, scale, logit_bias, with_gradients)

    def mean(x: Float[Array, ""]) -> Float[Array, ""]:
        return grid.sum(x) / batch

    loss = ContrastiveLoss(
        loss=mean(objective.value(result.rows, result.columns, result.positives)),
        image_to_text_accuracy=mean(hits(result.positives, result.rows)),
        text_to_image_accuracy=mean(hits(result.positives, result.columns)),
    )
    if not with_gradients:
        return loss, None
    assert result.weighted_texts is not None
    assert result.weighted_images is not None
    zimg_gradient = (result.weighted_texts - ztxt) * (scale / batch)
    return loss, Gradients(
        zimg=zimg_gradient,
        ztxt=(result.weighted_images - zimg) * (scale / batch),
        logit_scale=grid.sum((zimg_gradient * zimg).sum()),
        logit_bias=mean(objective.bias_gradient(result.columns)),
    )
