"""Learning from a teacher: what it thinks of every pair of a batch, not only of the matching ones.

`distillation_loss` defines the loss over a batch's similarities, `feature_regression` that of
single embeddings. Both are pure functions of global arrays.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from flaxclip.losses.grid import DeviceGrid
from flaxclip.losses.pairs import Implementation, choose_implementation
from flaxclip.losses.stats import hits
from flaxclip.losses.tiled import MAX_IMAGES
from flaxclip.losses.two_matrices import (
    Embeddings,
    PairStats,
    Scales,
    Sums,
    gathered_sums,
    tiled_sums,
)


class Distillation(NamedTuple):
    """Scalars of one batch.

    Agreement is the share of images (texts) of which student and teacher find the same text
    (image) most similar. If several tie for the student, they share the credit; if several tie for
    the teacher, the one among them that the student prefers counts.
    """

    loss: Float[Array, ""]
    image_to_text_agreement: Float[Array, ""]
    text_to_image_agreement: Float[Array, ""]


def distillation_loss(
    zimg: Float[Array, "b d"],
    ztxt: Float[Array, "b d"],
    logit_scale: Float[Array, ""],
    teacher_image: Float[Array, "b dt"],
    teacher_text: Float[Array, "b dt"],
    teacher_logit_scale: Float[Array, ""],
    batch_axes: tuple[str, ...] | None = None,
    implementation: Implementation = "auto",
) -> Distillation:
    """Cross-entropy of the student's distributions over the batch under those of the teacher.

        s = exp(logit_scale) * zimg @ ztxt.T                                # [b, b]
        t = exp(teacher_logit_scale) * teacher_image @ teacher_text.T       # [b, b]
        loss_image = -sum(softmax(t, axis=1) * log_softmax(s, axis=1), axis=1)
        loss_text = -sum(softmax(t, axis=0) * log_softmax(s, axis=0), axis=0)
        loss = mean(loss_image + loss_text) / 2

    Vasu et al. 2024 (MobileCLIP), section 4.2, up to the entropy of the teacher, which no gradient
    depends on; open_clip's `DistillClipLoss`; the affinity mimicking of Wu et al. 2023
    (TinyCLIP). Of several teachers, Vasu et al. average the losses, which is the loss of their
    averaged distributions.

    >>> import jax, jax.numpy as jnp
    >>> zimg, ztxt = jnp.eye(4), jnp.eye(4)
    >>> timg, ttxt = jnp.eye(4, 6), jnp.eye(4, 6)[jnp.array([0, 1, 3, 2])]
    >>> scale = jnp.log(10.0)
    >>> result = distillation_loss(zimg, ztxt, scale, timg, ttxt, scale)
    >>> print(f"{result.loss:.3f} {result.image_to_text_agreement}")
    5.001 0.5

    The arrays are global: on a mesh, name the axes that divide the batch as `batch_axes` and run
    under `jax.set_mesh`. No gradient goes to the teacher.

    Args:
        zimg: unit image embeddings of the student, float32.
        ztxt: unit text embeddings of the student, float32.
        logit_scale: log of the factor on the student's cosine similarities.
        teacher_image: unit image embeddings of the teacher, float32 or bfloat16.
        teacher_text: unit text embeddings of the teacher, likewise.
        teacher_logit_scale: log of the factor on the teacher's cosine similarities.
        batch_axes: mesh axes that divide the batch; None on a single device.
        implementation: see `losses.pairs.Implementation`. The result is the same. `gathered` stores
            two matrices; `tiled` goes over both twice.

    Raises:
        InputError: `tiled`, and a device's part of the batch cannot be cut into tiles.
    """
    return _loss(
        implementation, batch_axes, zimg, ztxt, logit_scale,
        teacher_image, teacher_text, teacher_logit_scale,
    )  # fmt: skip


def feature_regression(
    zimg: Float[Array, "b d"],
    ztxt: Float[Array, "b d"],
    teacher_image: Float[Array, "b d"],
    teacher_text: Float[Array, "b d"],
) -> Float[Array, ""]:
    """Squared distance between the embeddings of student and teacher, of which both have d numbers.

        loss = mean(|zimg - teacher_image|^2 + |ztxt - teacher_text|^2)

    The feature distillation of Yang et al. 2024 (CLIP-KD). It is 4 less twice the
    sum of two cosines.

    >>> import jax.numpy as jnp
    >>> print(feature_regression(jnp.eye(2), jnp.eye(2), jnp.eye(2), -jnp.eye(2)))
    4.0
    """
    pairs = (zimg, teacher_image), (ztxt, teacher_text)
    distances = [
        jnp.square(z - jax.lax.stop_gradient(teacher).astype(jnp.float32)).sum(1)
        for z, teacher in pairs
    ]
    return sum(distances, jnp.zeros(())).mean()


class _Gradients(NamedTuple):
    zimg: Float[Array, "b d"]
    ztxt: Float[Array, "b d"]
    logit_scale: Float[Array, ""]


# With its gradients at once, and outside the shard_map, for the reasons given at `pairs.pair_loss`.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _loss(
    implementation: Implementation, batch_axes: tuple[str, ...] | None, *inputs: Float[Array, "..."]
) -> Distillation:
    return _evaluate(implementation, batch_axes, False, *inputs)[0]


def _forward(
    implementation: Implementation, batch_axes: tuple[str, ...] | None, *inputs: Float[Array, "..."]
) -> tuple[Distillation, _Gradients | None]:
    return _evaluate(implementation, batch_axes, True, *inputs)


def _backward(
    implementation: Implementation,
    batch_axes: tuple[str, ...] | None,
    gradients: _Gradients,
    cotangents: Distillation,
) -> tuple[Float[Array, "..."] | None, ...]:
    no_teacher = None, None, None
    return *(cotangents.loss * gradient for gradient in gradients), *no_teacher


_loss.defvjp(_forward, _backward)


def _evaluate(
    implementation: Implementation,
    batch_axes: tuple[str, ...] | None,
    with_gradients: bool,
    *inputs: Float[Array, "..."],
) -> tuple[Distillation, _Gradients | None]:
    """The loss, and its gradients if requested, on the devices of `batch_axes`."""
    grid = DeviceGrid.squarest(batch_axes)
    batch = inputs[0].shape[0]
    compute = gathered_sums
    if choose_implementation(implementation, batch, grid.size, matrices=2) == "tiled":
        grid = DeviceGrid.squarest(batch_axes, max_columns=MAX_IMAGES // (batch // grid.size))
        compute = tiled_sums
    on_device = functools.partial(_on_device, compute, grid, with_gradients)
    if batch_axes is not None:
        divided, whole = PartitionSpec(batch_axes), PartitionSpec()
        gradients = _Gradients._make((divided, divided, whole)) if with_gradients else None
        on_device = jax.shard_map(
            on_device,
            in_specs=(divided, divided, whole) * 2,
            out_specs=(whole, gradients),
            check_vma=False,
        )
    return on_device(*inputs)


_Compute = Callable[
    [DeviceGrid, Embeddings, Embeddings, Scales, bool], tuple[PairStats, PairStats, Sums, Sums]
]
"""(grid, own images, own texts, scales, with gradients) -> statistics and sums of both."""


def _on_device(
    compute: _Compute,
    grid: DeviceGrid,
    with_gradients: bool,
    zimg: Float[Array, "local d"],
    ztxt: Float[Array, "local d"],
    logit_scale: Float[Array, ""],
    teacher_image: Float[Array, "local dt"],
    teacher_text: Float[Array, "local dt"],
    teacher_logit_scale: Float[Array, ""],
) -> tuple[Distillation, _Gradients | None]:
    batch = grid.size * zimg.shape[0]
    scales = Scales(jnp.exp(logit_scale), jnp.exp(teacher_logit_scale))
    images, texts = Embeddings(zimg, teacher_image), Embeddings(ztxt, teacher_text)
    rows, columns, image_sums, text_sums = compute(grid, images, texts, scales, with_gradients)

    def mean(x: Float[Array, ""]) -> Float[Array, ""]:
        return grid.sum(x) / batch

    by_image = jnp.log(rows.student.sum) - image_sums.cross
    by_text = jnp.log(columns.student.sum) - text_sums.cross
    loss = Distillation(
        loss=mean((by_image + by_text).sum() / 2),
        image_to_text_agreement=mean(hits(rows.chosen, rows.student)),
        text_to_image_agreement=mean(hits(columns.chosen, columns.student)),
    )
    if image_sums.weighted is None or text_sums.weighted is None:
        return loss, None
    zimg_gradient = image_sums.weighted * (scales.student / batch)
    return loss, _Gradients(
        zimg=zimg_gradient,
        ztxt=text_sums.weighted * (scales.student / batch),
        logit_scale=grid.sum((zimg_gradient * zimg).sum()),
    )
