"""What the contrastive losses share: a mean over all pairs of a batch, and its gradient.

With logits `s_ij = scale zimg_i . ztxt_j + bias`, both losses are

    (A(s) - sum_i s_ii) / B

and differ in A alone, whose derivative by `s_ij` is here called the weight of a pair. So the
gradient by `zimg_i` is `scale / B (sum_j weight_ij ztxt_j - ztxt_i)`, and alike for texts.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from flaxclip.losses.gathered import gathered_share
from flaxclip.losses.grid import DeviceGrid
from flaxclip.losses.lines import Lines
from flaxclip.losses.tiled import MAX_IMAGES, tiled_share

Form = Literal["auto", "gathered", "tiled"]
"""`gathered`: a device's share of the logit matrix exists as a whole. `tiled`: it never does.
`auto`: gathered while the share takes no more than `MAX_MATRIX_BYTES`."""

MAX_MATRIX_BYTES = 2**28


class ContrastiveLoss(NamedTuple):
    """Scalars of one batch; the accuracies are those of picking one's own partner out of it.

    Where several tie for the largest logit they share the credit: else towers that map everything
    to one point would score 100%.
    """

    loss: Float[Array, ""]
    image_to_text_accuracy: Float[Array, ""]
    text_to_image_accuracy: Float[Array, ""]


class Gradients(NamedTuple):
    """Of the loss."""

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
    objective: Any,
    form: Form,
    batch_axes: tuple[str, ...] | None,
    zimg: Float[Array, "b d"],
    ztxt: Float[Array, "b d"],
    logit_scale: Float[Array, ""],
    logit_bias: Float[Array, ""],
) -> ContrastiveLoss:
    """The loss of an `Objective`; other arguments as in `softmax_contrastive_loss`."""
    return _evaluate(
        objective, form, batch_axes, False, zimg, ztxt, logit_scale, logit_bias
    )[0]  # fmt: skip


def _forward(objective, form, batch_axes, *inputs):
    return _evaluate(objective, form, batch_axes, True, *inputs)


def _backward(objective, form, batch_axes, gradients, cotangents):
    return tuple(cotangents.loss * gradient for gradient in gradients)


pair_loss.defvjp(_forward, _backward)


def choose_form(form: Form, batch_size: int, devices: int) -> Literal["gathered", "tiled"]:
    """What `auto` stands for when `devices` share a batch."""
    if form != "auto":
        return form
    share_bytes = 4 * batch_size**2 // devices
    return "gathered" if share_bytes <= MAX_MATRIX_BYTES else "tiled"


def _evaluate(
    objective: Any,
    form: Form,
    batch_axes: tuple[str, ...] | None,
    with_gradients: bool,
    zimg: Float[Array, "b d"],
    ztxt: Float[Array, "b d"],
    logit_scale: Float[Array, ""],
    logit_bias: Float[Array, ""],
) -> tuple[ContrastiveLoss, Gradients | None]:
    """The loss, and where asked for its gradients, on the devices of `batch_axes`."""
    grid = DeviceGrid.squarest(batch_axes)
    local = zimg.shape[0] // grid.size
    form = choose_form(form, zimg.shape[0], grid.size)
    if form == "tiled":
        grid = DeviceGrid.squarest(batch_axes, max_columns=MAX_IMAGES // local)
    compute = {"gathered": gathered_share, "tiled": tiled_share}[form]
    on_device = functools.partial(_on_device, objective, compute, grid, with_gradients)
    if batch_axes is not None:
        divided, whole = PartitionSpec(batch_axes), PartitionSpec()
        gradients = Gradients(divided, divided, whole, whole) if with_gradients else None
        on_device = jax.shard_map(
            on_device,
            in_specs=(divided, divided, whole, whole),
            out_specs=(whole, gradients),
            check_vma=False,
        )
    return on_device(zimg, ztxt, logit_scale, logit_bias)


def _on_device(
    objective, compute, grid, with_gradients, zimg, ztxt, logit_scale, logit_bias
) -> tuple[ContrastiveLoss, Gradients | None]:
    batch = grid.size * zimg.shape[0]
    scale = jnp.exp(logit_scale)
    share = compute(objective, grid, zimg, ztxt, scale, logit_bias, with_gradients)

    def mean(x: Float[Array, ""]) -> Float[Array, ""]:
        return grid.sum(x) / batch

    loss = ContrastiveLoss(
        loss=mean(objective.value(share.rows, share.columns, share.positives)),
        image_to_text_accuracy=mean(_hits(share.positives, share.rows)),
        text_to_image_accuracy=mean(_hits(share.positives, share.columns)),
    )
    if not with_gradients:
        return loss, None
    zimg_gradient = (share.image_sums - ztxt) * (scale / batch)
    return loss, Gradients(
        zimg=zimg_gradient,
        ztxt=(share.text_sums - zimg) * (scale / batch),
        logit_scale=grid.sum((zimg_gradient * zimg).sum()),
        logit_bias=mean(objective.bias_gradient(share.columns)),
    )


def _hits(positives: Float[Array, " m"], lines: Lines) -> Float[Array, ""]:
    # A compiler may compute a logit anew for each of its uses, with the product and the sum rounded
    # at once in one and apart in another: the largest may then be larger, and equal none.
    return jnp.where(positives >= lines.top, 1 / jnp.maximum(lines.ties, 1), 0).sum()
