"""Reading reinforced examples in training: who the teachers are, and what a visit draws."""

from collections.abc import Sequence

import numpy as np

from flaxclip.data.images.decode import UprightImage
from flaxclip.data.images.train_transform import Crop
from flaxclip.data.reinforced.stored_vectors import Reinforced, StoredTeacher
from flaxclip.data.sources.source import Source, UnreadableExampleError
from flaxclip.data.teacher_arrays import VECTORS, extra_name
from flaxclip.errors import InputError

_TRIED = 16
_HOW = (
    "python -m flaxclip.data.prepare --teacher CHECKPOINT stores vectors with the examples; or "
    "leave --data.teacher-vectors out"
)


def stored_teachers(source: Source) -> tuple[StoredTeacher, ...]:
    """The teachers whose vectors are stored with the examples of a corpus, or of all of a mixture.

    Of a corpus, the first example that can be read tells; `read_reinforced` checks each.

    Raises:
        InputError: a corpus has none, or one of a mixture has those of others.
    """
    corpora = getattr(source, "sources", (source,))
    found = [_of_corpus(corpus) for corpus in corpora]
    for number, teachers in enumerate(found):
        if teachers != found[0]:
            raise InputError(
                "vectors of different teachers in one mixture\n"
                f"mixture.0: {_names(found[0])}\nmixture.{number}: {_names(teachers)}\n"
                "prepare all with the same teachers"
            )
    return found[0]


def _of_corpus(source: Source) -> tuple[StoredTeacher, ...]:
    read = getattr(source, "reinforced", None)
    if read is None:
        raise InputError(
            f"{source.name(0)}: this kind of corpus has no vectors of teachers\n{_HOW}"
        )
    reasons = []
    for number in range(min(_TRIED, len(source))):
        try:
            teachers: tuple[StoredTeacher, ...] = read(number).teachers
            return teachers
        except UnreadableExampleError as error:
            reasons.append(f"{source.name(number)}: {error}")
    raise InputError(f"{reasons[0]}\nnor do the next {len(reasons) - 1} examples\n{_HOW}")


def read_reinforced(source: Source, number: int, expected: tuple[StoredTeacher, ...]) -> Reinforced:
    """An example with the vectors of `expected`.

    Raises:
        UnreadableExampleError: it has no vectors, or they are damaged.
        InputError: its vectors are those of other teachers, or of another width.
    """
    found: Reinforced = source.reinforced(number)  # type: ignore[attr-defined]
    if found.teachers != expected:
        raise InputError(
            f"{source.name(number)}: vectors of {_names(found.teachers)}, those of other examples "
            f"are of {_names(expected)}\n"
            "shards of several preparations are mixed: keep those of the same teachers together"
        )
    return found


def stored_crop(example: Reinforced, number: int) -> Crop:
    """A crop of an example's image.

    All crops that are stored tell whether the image is that which they were drawn from: one of
    them alone may fit into a smaller copy.

    Raises:
        UnreadableExampleError: see `decode_image`; or the image is another one than that of which
            vectors are stored, or another size of it: crops go beyond it.
    """
    image = UprightImage(example.pair.image, example.is_upright)
    boxes = [crop.box for crop in example.crops]
    left, top, right, bottom = boxes[number]
    if _hold(boxes, image.width, image.height):
        return Crop(image, boxes[number])
    if example.reduced_from and _hold(boxes, *example.reduced_from):
        width, height = example.reduced_from
        # Of the same shape, up to rounding of both sides: a copy that was not cut.
        if abs(image.width * height - image.height * width) <= width + height:
            across, down = image.width / width, image.height / height
            return Crop(image, (left * across, top * down, right * across, bottom * down))
    reach = f"{max(box[2] for box in boxes):g} × {max(box[3] for box in boxes):g} px"
    copy = "" if not example.reduced_from else ", a copy of one of {} × {} px, cut or enlarged"
    raise UnreadableExampleError(
        f"stored crops, which reach to {reach}, are no parts of an image of {image.width} × "
        f"{image.height} px{copy.format(*example.reduced_from or ())}: they were made from another "
        "image, or from another size of it"
    )


def _hold(boxes: Sequence[tuple[float, float, float, float]], width: int, height: int) -> bool:
    """Whether an image of `width` and `height` has all `boxes` as parts."""
    return all(
        0 <= left < right <= width and 0 <= top < bottom <= height
        for left, top, right, bottom in boxes
    )


def stored_arrays(example: Reinforced, crop: int, caption: int) -> dict[str, np.ndarray]:
    """`Row.extra` of a visit: each teacher's vectors of the crop and of the caption.

    Raises:
        UnreadableExampleError: one is not finite, or zero.
    """
    return {
        extra_name(teacher, array): vector
        for teacher in range(len(example.teachers))
        for array, vector in zip(VECTORS, example.vector(teacher, crop, caption), strict=True)
    }


def row_arrays(
    teachers: tuple[StoredTeacher, ...],
) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    """`BatchShape.extra` of the vectors of `teachers`."""
    return tuple(
        (extra_name(number, array), (teacher.width,), "float32")
        for number, teacher in enumerate(teachers)
        for array in VECTORS
    )


def _names(teachers: tuple[StoredTeacher, ...]) -> str:
    return ", ".join(map(str, teachers))
