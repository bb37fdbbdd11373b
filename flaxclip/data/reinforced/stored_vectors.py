"""What is stored of a teacher with an example, and its form in a record.

Reinforced data (Faghri et al. 2023; Vasu et al. 2024, section 4.1): of each example, some crops
with their parameters and some captions, and the teachers' embeddings of all of these. A visit to
the example draws one crop and one caption, with their embeddings.

In a record, `reinforced` is a msgpack map, made by `pack_reinforced`:

    crops      [[[left, top, right, bottom], [[change, strength], ...]], ...]
    captions   [str, ...]
    weights    [float, ...], or nil if all are equal
    teachers   [[identity, width, log of the scale, type, bytes of crops, bytes of captions], ...]

Numbers are bfloat16, two bytes each, little-endian; or int8 with a float32 before each embedding
that multiplies it: the largest number becomes 127.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, UInt8

from flaxclip.data.images.changes import CHANGES, Change
from flaxclip.data.sources.source import Pair, UnreadableExampleError

VectorType = Literal["bfloat16", "int8"]
"""What a preparation stores."""
NumberType = Literal["bfloat16", "int8", "float32"]
"""What may be stored: float32 where others have made the corpus."""


_FLOAT32, _UINT16 = np.dtype("<f4"), np.dtype("<u2")


class StoredTeacher(NamedTuple):
    """A teacher whose embeddings are stored."""

    identity: str
    """Hash of its parameters, in hexadecimal; or a name, if others have made the corpus."""
    width: int
    """Numbers of an embedding."""
    logit_scale: float
    """Log of the factor on its cosine similarities."""

    def __str__(self) -> str:
        return f"{self.identity[:16]} ({self.width:,} numbers)"


class StoredCrop(NamedTuple):
    """Parameters of a crop."""

    box: tuple[float, float, float, float]
    """Left, top, right and bottom, in pixels of the image: upright, if `Reinforced.is_upright`."""
    changes: tuple[Change, ...]


class Reinforced(NamedTuple):
    """An example with what is stored of teachers."""

    pair: Pair
    """Its captions are those that embeddings are stored of."""
    crops: tuple[StoredCrop, ...]
    teachers: tuple[StoredTeacher, ...]
    vectors: "tuple[tuple[PackedVectors, PackedVectors], ...]"
    """For each teacher, embeddings of the crops and of the captions."""
    is_upright: bool = True
    """Whether crops are parts of the upright image. If False, of its pixels as they are stored,
    whatever EXIF says."""
    reduced_from: tuple[int, int] | None = None
    """Width and height of an image that it is a smaller copy of, if that is known. Crops that go
    beyond the copy are parts of that one."""

    def vector(
        self, teacher: int, crop: int, caption: int
    ) -> tuple[Float32[np.ndarray, " dt"], Float32[np.ndarray, " dt"]]:
        """Unit embeddings of one crop and of one caption.

        Raises:
            UnreadableExampleError: one is not finite, or zero.
        """
        of_crops, of_captions = self.vectors[teacher]
        return _unit(of_crops[crop]), _unit(of_captions[caption])


class PackedVectors:
    """Embeddings as they are stored, [n width]; one is unpacked when it is asked for."""

    def __init__(self, data: bytes, width: int, kind: NumberType):
        self._data, self._width, self.kind = data, width, kind
        self._size = bytes_per_vector(width, kind)

    def __len__(self) -> int:
        return len(self._data) // self._size

    @property
    def nbytes(self) -> int:
        """Bytes that they take where they are stored."""
        return len(self._data)

    def __getitem__(self, index: int) -> Float32[np.ndarray, " width"]:
        data, start = self._data, index * self._size
        if self.kind == "float32":
            return np.frombuffer(data, _FLOAT32, self._width, start)
        if self.kind == "bfloat16":
            bits = np.frombuffer(data, _UINT16, self._width, start).astype(np.uint32)
            return np.left_shift(bits, 16, out=bits).view(np.float32)
        scale = np.frombuffer(data, _FLOAT32, 1, start)
        return scale * np.frombuffer(data, np.int8, self._width, start + 4)


def bytes_per_vector(width: int, kind: NumberType) -> int:
    """Size of a stored embedding."""
    return {"bfloat16": 2 * width, "int8": width + 4, "float32": 4 * width}[kind]


def pack_vectors(z: Float[np.ndarray, "n width"], kind: VectorType) -> bytes:
    """Embeddings in the form that is stored."""
    z = np.ascontiguousarray(z, np.float32)
    if kind == "bfloat16":
        bits = z.view(np.uint32)
        # To the nearest, ties to even.
        rounded = bits + 0x7FFF + ((bits >> 16) & 1)
        return (rounded >> 16).astype("<u2").tobytes()
    scales = np.abs(z).max(1) / 127
    rounded = np.rint(z / np.maximum(scales, np.finfo(np.float32).tiny)[:, None]).astype(np.int8)
    return b"".join(
        scale.astype("<f4").tobytes() + row.tobytes()
        for scale, row in zip(scales, rounded, strict=True)
    )


def pack_reinforced(
    crops: Sequence[StoredCrop],
    captions: Sequence[str],
    weights: Sequence[float] | None,
    teachers: Sequence[StoredTeacher],
    vectors: Sequence[tuple[Float[np.ndarray, "k _"], Float[np.ndarray, "m _"]]],
    kind: VectorType,
) -> dict[str, Any]:
    """`reinforced` of a record; `vectors` are those of each teacher."""
    return {
        "crops": [
            [list(crop.box), [[name, float(strength)] for name, strength in crop.changes]]
            for crop in crops
        ],
        "captions": list(captions),
        "weights": None if weights is None else list(weights),
        "teachers": [
            [*teacher, kind, pack_vectors(of_crops, kind), pack_vectors(of_captions, kind)]
            for teacher, (of_crops, of_captions) in zip(teachers, vectors, strict=True)
        ],
    }


def unpack_reinforced(
    image: bytes | UInt8[np.ndarray, "height width 3"], stored: Mapping[str, Any] | None
) -> Reinforced:
    """The example whose record holds `image`, and `stored` under `reinforced`.

    Raises:
        UnreadableExampleError: it holds no embeddings, or `pack_reinforced` has not made this.
    """
    if stored is None:
        raise UnreadableExampleError("no vectors of a teacher are stored with it")
    try:
        crops = tuple(
            StoredCrop(tuple(box), tuple((name, strength) for name, strength in changes))
            for box, changes in stored["crops"]
        )
        captions, weights = tuple(stored["captions"]), stored["weights"]
        _check_draws(crops, captions, weights)
        pair = Pair(image, captions, None if weights is None else tuple(weights))
        teachers, vectors = [], []
        for identity, width, scale, kind, of_crops, of_captions in stored["teachers"]:
            if kind not in ("bfloat16", "int8"):
                raise ValueError(f"numbers of type {kind!r}")
            for name, data, count in (
                ("crops", of_crops, len(crops)),
                ("captions", of_captions, len(captions)),
            ):
                if len(data) != count * bytes_per_vector(width, kind):
                    raise ValueError(f"{len(data):,} bytes of embeddings for {count} {name}")
            teachers.append(StoredTeacher(identity, width, scale))
            vectors.append(
                (PackedVectors(of_crops, width, kind), PackedVectors(of_captions, width, kind))
            )
        if not teachers:
            raise ValueError("no teacher")
        unknown = {name for crop in crops for name, _ in crop.changes} - CHANGES.keys()
        if unknown:
            raise ValueError(f"a change {min(unknown)!r}, which nobody can replay")
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableExampleError(f"stored vectors that are damaged: {error}") from None
    return Reinforced(pair, crops, tuple(teachers), tuple(vectors))


def _check_draws(
    crops: Sequence[StoredCrop], captions: Sequence[Any], weights: Sequence[float] | None
) -> None:
    """Raise `ValueError` or `TypeError` unless a crop and a caption can be drawn."""
    if not (crops and captions):
        raise ValueError("no crop or no caption")
    for crop in crops:
        if len(crop.box) != 4 or not math.isfinite(sum(crop.box)):
            raise ValueError(f"a crop {crop.box}")
    if not all(isinstance(caption, str) for caption in captions):
        raise ValueError("a caption that is no text")
    if weights is not None and (
        len(weights) != len(captions) or not min(weights) >= 0 or not 0 < sum(weights) < math.inf
    ):
        raise ValueError(f"weights {weights} of {len(captions)} captions")


def _unit(z: Any) -> Float32[np.ndarray, " dt"]:
    """Of length 1: what is stored is rounded."""
    z = np.asarray(z, np.float32)
    length = math.sqrt(z.dot(z))  # a third of the time of `np.linalg.norm`
    if not 0 < length < float("inf"):
        raise UnreadableExampleError(f"an embedding of length {length:g} is stored with it")
    return z / np.float32(length)
