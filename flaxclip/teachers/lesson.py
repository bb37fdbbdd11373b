"""What a student is taught in an update: the teachers' vectors of the batch, and their loss."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from flaxclip.accumulate import in_parts
from flaxclip.config import TrainConfig
from flaxclip.data.batch import Batch
from flaxclip.data.reinforced.stored_vectors import StoredTeacher
from flaxclip.errors import InputError
from flaxclip.losses.distillation import distillation_loss, feature_regression
from flaxclip.models.clip import CLIP
from flaxclip.models.compute import ComputeConfig
from flaxclip.models.spec import ModelSpec
from flaxclip.sharding import pair_axes
from flaxclip.teachers.weights import Variables, teacher_specs

COMPUTE = ComputeConfig(dtype="bfloat16")
"""Of teachers, whatever the student's is."""

SCOPE = "teacher"
"""Name, by `jax.named_scope`, of all that teachers compute in a training step."""

Metrics = dict[str, Float[Array, ""]]
TeacherVectors = tuple[tuple[Float[Array, "b _"], Float[Array, "b _"]], ...]


def ask_teachers(
    config: TrainConfig,
    batch: Batch,
    teachers: Sequence[Variables],
    stored: Sequence[StoredTeacher] = (),
) -> tuple[TeacherVectors, tuple[Float[Array, ""], ...]] | None:
    """Vectors of the batch by each teacher, stored or made now, and the logs of their logit scales.

    None if there are no teachers. `stored` are those whose vectors the batch has.

    Raises:
        InputError: as `log_scales`; or both are there.
    """
    if batch.teacher_vectors is not None and batch.teacher_views is not None:
        raise InputError(
            f"the corpus holds vectors of {len(batch.teacher_vectors)} teachers, and --teacher "
            f"names {len(batch.teacher_views)}\nlearn from the stored ones, which cost nothing, or "
            "from others on a corpus without any"
        )
    if batch.teacher_vectors is not None:
        # Not `jnp.float32`, which computes at once, on devices that a plan only describes.
        learned = [jnp.full((), teacher.logit_scale, jnp.float32) for teacher in stored]
        return batch.teacher_vectors, log_scales(config, learned)
    if batch.teacher_views is None:
        return None
    vectors = []
    for spec, variables, view in zip(
        teacher_specs(config), teachers, batch.teacher_views, strict=True
    ):
        inputs = (
            batch.images if view.images is None else view.images,
            batch.tokens if view.tokens is None else view.tokens,
        )
        ask = functools.partial(_embed_pair, spec, variables)
        with jax.named_scope(SCOPE):
            vectors.append(in_parts(ask, inputs, config.accumulate))
    return tuple(vectors), log_scales(
        config, [variables["params"]["logit_scale"] for variables in teachers]
    )


def _embed_pair(
    spec: ModelSpec, variables: Variables, inputs: tuple[Array, Array]
) -> tuple[Array, Array]:
    images, tokens = inputs
    return embed_images(spec, variables, images), embed_texts(spec, variables, tokens)


def embed_images(
    spec: ModelSpec, variables: Variables, images: UInt8[Array, "b h w 3"]
) -> Float[Array, "b dt"]:
    """Unit embeddings by a teacher, in bfloat16 up to their normalisation."""
    model = CLIP(spec.model, COMPUTE, spec.preprocess)
    zimg: Any = model.apply(variables, images, method="encode_image")
    return zimg


def embed_texts(
    spec: ModelSpec, variables: Variables, tokens: Int[Array, "b l"]
) -> Float[Array, "b dt"]:
    """Unit embeddings by a teacher, likewise."""
    ztxt: Any = CLIP(spec.model, COMPUTE).apply(variables, tokens, method="encode_text")
    return ztxt


def log_scales(
    config: TrainConfig, learned: Sequence[Float[Array, ""]]
) -> tuple[Float[Array, ""], ...]:
    """Log of the factor on the cosine similarities of each teacher: that of `config`, if it gives
    any, or else that which the teacher has `learned`.

    Raises:
        InputError: `config` gives them for another number of teachers.
    """
    scales, count = config.teacher_scale, len(learned)
    if not scales:
        return tuple(learned)
    if len(scales) not in (1, count):
        raise InputError(
            f"teacher_scale has {len(scales)} values for {count} teachers\n"
            "give one for all, or one for each, or none for those that they have learned"
        )
    scales = scales * (count if len(scales) == 1 else 1)
    return tuple(jnp.full((), math.log(scale), jnp.float32) for scale in scales)


def make_teacher_loss(
    config: TrainConfig, mesh: Mesh
) -> Callable[..., tuple[Float[Array, ""], Metrics]]:
    """The loss of teachers with the weights that `config` gives it, and metrics.

    Of (student's embeddings, its parameters, its weighted contrastive loss, teachers' vectors, logs
    of their logit scales). The losses of several teachers are averaged.
    """
    axes, implementation = pair_axes(config.batch_size, mesh), config.loss_form

    def teacher_loss(
        embeddings: tuple[Float[Array, "b d"], Float[Array, "b d"]],
        params: dict[str, Any],
        contrastive: Float[Array, ""],
        vectors: TeacherVectors,
        scales: Sequence[Float[Array, ""]],
    ) -> tuple[Float[Array, ""], Metrics]:
        results = [
            distillation_loss(
                *embeddings, params["logit_scale"], *pair, scale, axes, implementation
            )
            for pair, scale in zip(vectors, scales, strict=True)
        ]

        def mean(values: Sequence[Float[Array, ""]]) -> Float[Array, ""]:
            return sum(values, jnp.zeros(())) / len(vectors)

        similarity_loss = mean([result.loss for result in results])
        loss = config.teacher_weight * similarity_loss
        metrics = {
            "teacher_loss": similarity_loss,
            "teacher_image_to_text_agreement": mean([r.image_to_text_agreement for r in results]),
            "teacher_text_to_image_agreement": mean([r.text_to_image_agreement for r in results]),
        }
        if config.teacher_regression:
            regression = mean([feature_regression(*embeddings, *pair) for pair in vectors])
            loss += config.teacher_regression * regression
            metrics["teacher_regression"] = regression
        metrics["teacher_loss_share"] = loss / (contrastive + loss)
        return loss, metrics

    return teacher_loss
