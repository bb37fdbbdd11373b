"""Teachers whose vectors are stored with the corpus, and so need not run."""

from typing import Any

import jax
import jax.numpy as jnp

from flaxclip.config import TrainConfig
from flaxclip.data.reinforced.stored_vectors import StoredTeacher
from flaxclip.data.reinforced.visits import stored_teachers
from flaxclip.data.sources.source import Source
from flaxclip.errors import InputError


def teachers_of_corpus(config: TrainConfig, source: Source) -> tuple[StoredTeacher, ...]:
    """The teachers that a run learns from by the vectors in `source`, its corpus; () if by none.

    Raises:
        InputError: as `stored_teachers`; teachers run beside the student too; or `config` is not
            about so many teachers, or regresses on embeddings of another width.
    """
    if not config.data.teacher_vectors:
        return ()
    teachers, scales = stored_teachers(source), config.teacher_scale
    if config.teacher:
        raise InputError(
            f"the corpus holds vectors of {len(teachers)} teachers, and --teacher names "
            f"{len(config.teacher)}\nlearn from the stored ones, which cost nothing, or from "
            "others without --data.teacher-vectors"
        )
    if len(scales) > 1 and len(scales) != len(teachers):
        raise InputError(
            f"teacher_scale has {len(scales)} values for the stored vectors of {len(teachers)} "
            "teachers\ngive one for all, or one for each, or none for those that are stored"
        )
    ours = config.model.embed_dim
    for teacher in teachers:
        if config.teacher_regression and teacher.width != ours:
            raise InputError(
                f"teacher {teacher} embeds in {teacher.width} dimensions, and the student in "
                f"{ours}\nthe distance of --teacher-regression needs the same number: choose "
                "another --model.embed-dim, or leave it out"
            )
    return teachers


def abstract_vectors(teachers: tuple[StoredTeacher, ...], batch_size: int) -> Any:
    """Shapes and types of `Batch.teacher_vectors`, None without `teachers`."""
    shapes = (
        jax.ShapeDtypeStruct((batch_size, teacher.width), jnp.float32) for teacher in teachers
    )
    return tuple((shape, shape) for shape in shapes) or None
