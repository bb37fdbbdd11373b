"""Batches: the loader's output, and the training step's input.

Apart from `source.py`, since importing JAX's array types loads JAX, which worker processes do
without.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int32, UInt8

from flaxclip.data.images.native_size import PatchArrays
from flaxclip.data.teacher_arrays import VECTORS, VIEWS, extra_name
from flaxclip.data.tokenizers.text_cleaning import cleaning_of
from flaxclip.models.clip import example_inputs
from flaxclip.models.patches import ImagePatches
from flaxclip.models.spec import ModelSpec


class TeacherView(NamedTuple):
    """A batch as one teacher sees it. If a field is None, it is that of the student."""

    images: UInt8[Array, "batch height width 3"] | None
    tokens: Int32[Array, "batch length"] | None


class Batch(NamedTuple):
    """Row i of all is a pair. NumPy arrays on the host, `jax.Array`s on the mesh."""

    images: UInt8[Array, "batch height width 3"] | ImagePatches
    tokens: Int32[Array, "batch length"]
    teacher_views: tuple[TeacherView, ...] | None = None
    """One for each teacher that runs beside the student. If None, there are none."""
    teacher_vectors: (
        tuple[tuple[Float[Array, "batch dt"], Float[Array, "batch dt"]], ...] | None
    ) = None
    """Image and text embeddings by each teacher, stored with the corpus: of unit length, float32 or
    bfloat16. If None, none are."""


def make_batch(images: Any, tokens: Any, extra: Mapping[str, Any], teachers: int) -> Batch:
    """A batch of arrays, of which those of `extra` have the names that `extra_name` gives.

    `teachers` run beside the student; of a batch with stored vectors it is 0.
    """
    if isinstance(images, PatchArrays):
        images = ImagePatches._make(images)
    views = tuple(
        TeacherView(*(extra.get(extra_name(teacher, array)) for array in VIEWS))
        for teacher in range(teachers)
    )
    vectors: list[tuple[Any, Any]] = []
    while extra_name(len(vectors), VECTORS[0]) in extra:
        zimg, ztxt = (extra[extra_name(len(vectors), array)] for array in VECTORS)
        vectors.append((zimg, ztxt))
    return Batch(images, tokens, views or None, tuple(vectors) or None)


def abstract_view(student: ModelSpec, teacher: ModelSpec, batch_size: int) -> TeacherView:
    """Shapes and types of a batch as `teacher` sees it, and None for what `student` sees too.

    Of the images, mean and standard deviation are applied on the device; and whatever a model's
    evaluation does with transparency and margins, training takes the same part of the image for
    both, over white.
    """

    def pixels(spec: ModelSpec) -> tuple[Any, ...]:
        return spec.model.vision.image_size, spec.preprocess.interpolation

    def ids(spec: ModelSpec) -> tuple[Any, ...]:
        tokenizer = spec.tokenizer
        cleaning = tokenizer.cleaning or cleaning_of(tokenizer.name, None)
        return dataclasses.replace(tokenizer, cleaning=cleaning), spec.model.text.context_length

    images, tokens = example_inputs(teacher.model, batch_size)
    return TeacherView._make(
        (
            None if pixels(student) == pixels(teacher) else images,
            None if ids(student) == ids(teacher) else tokens,
        )
    )
