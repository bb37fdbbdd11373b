"""Examples -> the same with crops, captions and teachers' embeddings of them, in a fixed order.

Each teacher is asked in batches of one shape, which are filled with the crops, and with the
captions, of the examples in their order. So what is in a batch depends on the examples alone, and
so do the embeddings: rounding may depend on a row's place in its batch.
"""

import concurrent.futures
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int32, UInt8

from flaxclip.data.images.decode import UprightImage
from flaxclip.data.images.eval_transform import SizedTransform
from flaxclip.data.images.train_transform import (
    AugmentConfig,
    Crop,
    choose_crop,
    draw_changes,
    render_changed,
    view_of,
)
from flaxclip.data.reinforced.stored_vectors import (
    StoredCrop,
    StoredTeacher,
    VectorType,
    bytes_per_vector,
    pack_reinforced,
)
from flaxclip.data.sources.source import Pair, UnreadableExampleError
from flaxclip.errors import InputError


class Encoder(Protocol):
    """A teacher, as a preparation asks it; picklable and small: workers load the weights."""

    @property
    def teacher(self) -> StoredTeacher:
        """Its identity."""
        ...

    @property
    def transform(self) -> SizedTransform:
        """Size of its images, and how they are resized."""
        ...

    def encode_images(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n dt"]:
        """Unit embeddings of a batch."""
        ...

    def tokenize(
        self, texts: Sequence[str]
    ) -> tuple[Int32[np.ndarray, "n length"], Bool[np.ndarray, " n"]]:
        """Ids by its tokenizer, and for each text True if it lost its end to the context length."""
        ...

    def encode_tokens(self, tokens: Int32[np.ndarray, "n length"]) -> Float[np.ndarray, "n dt"]:
        """Unit embeddings of a batch."""
        ...


@dataclasses.dataclass(frozen=True)
class Reinforcing:
    """What is stored of teachers with each example."""

    encoders: tuple[Any, ...]
    """`Encoder`s: the teachers."""
    crops: int
    """Crops of each image."""
    captions: int | None
    """Captions of each example at most, its first ones. If None, all."""
    vectors: VectorType
    augment: AugmentConfig
    """Of the crops."""
    seed: int
    """Of the crops."""
    batch_size: int
    """Crops, or captions, that a teacher is asked for at once."""

    def __post_init__(self) -> None:
        for name in ("crops", "captions", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                flag = {"batch_size": "teacher-batch-size"}.get(name, name)
                raise InputError(f"--{flag} is {value}\nexpected 1 or more")

    def bytes_per_example(self, captions: int) -> int:
        """Bytes of the embeddings of an example with so many captions."""
        captions = captions if self.captions is None else min(captions, self.captions)
        return self.bytes_of_embeddings(self.crops + captions)

    def bytes_of_embeddings(self, count: int) -> int:
        """Bytes of the embeddings of so many crops and captions, by all teachers."""
        widths = [encoder.teacher.width for encoder in self.encoders]
        return count * sum(bytes_per_vector(width, self.vectors) for width in widths)


def draw_crops(
    image: UprightImage, key: tuple[int, int], how: Reinforcing
) -> tuple[StoredCrop, ...]:
    """The crops of an image; `key` is a hash of the example's contents, in two halves of 64 bits.

    Where `how.augment` has no random crop, the first teacher's transform says what is taken.
    """
    crops = []
    any_size = SizedTransform(1, how.encoders[0].transform.how)
    for number in range(how.crops):
        counter = np.array([0, *key, 0], np.uint64)
        philox = np.random.Philox(key=np.array([how.seed, number], np.uint64), counter=counter)
        rng = np.random.Generator(philox)
        left, top, right, bottom = map(float, choose_crop(image, any_size, how.augment, rng).box)
        crops.append(StoredCrop((left, top, right, bottom), draw_changes(how.augment, rng)))
    return tuple(crops)


class Example(NamedTuple):
    """An example that is to be reinforced."""

    pair: Pair
    key: tuple[int, int]
    carried: Any
    """Whatever goes with it."""


class Lessons(NamedTuple):
    """What teachers make of an example."""

    reinforced: dict[str, Any]
    """Of its record."""
    truncated_captions: int
    """Its captions that lost their end to a teacher's context length, summed over teachers."""


class _Drawn(NamedTuple):
    example: Example
    crops: tuple[StoredCrop, ...]
    captions: tuple[str, ...]
    pixels: list[np.ndarray]
    """[k size size 3] for each teacher."""


def reinforce(
    examples: Iterable[Example], how: Reinforcing, encoded: Callable[[int], None]
) -> Iterator[tuple[Any, Lessons | UnreadableExampleError]]:
    """What each example carries, with what teachers make of it, or the fault of its image.

    Threads render the crops of the next examples while the teachers compute.

    Args:
        examples: in the order of the shard.
        how: what is stored.
        encoded: called with the number of crops whose embeddings have been made since.
    """
    # As many as fill whole batches with crops.
    step = how.batch_size // np.gcd(how.batch_size, how.crops)
    with concurrent.futures.ThreadPoolExecutor(thread_name_prefix="renders crops") as pool:

        def begin(group: Sequence[Example]) -> list[Any]:
            return [pool.submit(_draw, example, how) for example in group]

        groups = (begin(group) for group in _groups(examples, int(step)))
        ahead = list(itertools.islice(groups, 1))
        while ahead:
            group = ahead.pop(0)
            ahead += itertools.islice(groups, 1)  # rendered while the teachers are asked
            yield from _encode([task.result() for task in group], how)
            encoded(len(group) * how.crops)


def _groups(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
    rest = iter(examples)
    while group := list(itertools.islice(rest, size)):
        yield group


def _draw(example: Example, how: Reinforcing) -> _Drawn | tuple[Example, UnreadableExampleError]:
    try:
        image = UprightImage(example.pair.image)
        crops = draw_crops(image, example.key, how)
        pixels = [
            np.stack(
                [
                    render_changed(
                        Crop(image, crop.box), [view_of(crop.box, encoder.transform)], crop.changes
                    )[0]
                    for crop in crops
                ]
            )
            for encoder in how.encoders
        ]
    except UnreadableExampleError as error:
        return example, error
    return _Drawn(example, crops, example.pair.captions[: how.captions], pixels)


def _encode(
    group: Sequence[_Drawn | tuple[Example, UnreadableExampleError]], how: Reinforcing
) -> Iterator[tuple[Any, Lessons | UnreadableExampleError]]:
    whole = [one for one in group if isinstance(one, _Drawn)]
    texts = [caption for one in whole for caption in one.captions]
    ends = list(itertools.accumulate(len(one.captions) for one in whole))
    vectors, truncated = [], np.zeros(len(texts), int)
    for number, encoder in enumerate(how.encoders):
        if not whole:
            break
        pixels = np.concatenate([one.pixels[number] for one in whole])
        of_crops = _in_batches(encoder.encode_images, pixels, how.batch_size)
        tokens, cut = encoder.tokenize(texts)
        truncated += cut
        of_captions = _in_batches(encoder.encode_tokens, tokens, how.batch_size)
        vectors.append((np.split(of_crops, len(whole)), np.split(of_captions, ends[:-1])))
    place = 0
    for one in group:
        if not isinstance(one, _Drawn):
            yield one[0].carried, one[1]
            continue
        weights = one.example.pair.weights
        of_example = [(of_crops[place], of_captions[place]) for of_crops, of_captions in vectors]
        if not all(np.isfinite(z).all() for pair in of_example for z in pair):
            error = UnreadableExampleError("what a teacher makes of it is not finite")
            yield one.example.carried, error
            place += 1
            continue
        yield (
            one.example.carried,
            Lessons(
                pack_reinforced(
                    one.crops,
                    one.captions,
                    None if weights is None else weights[: how.captions],
                    [encoder.teacher for encoder in how.encoders],
                    of_example,
                    how.vectors,
                ),
                int(truncated[ends[place] - len(one.captions) : ends[place]].sum()),
            ),
        )
        place += 1


def _in_batches(
    encode: Callable[[Any], np.ndarray], rows: np.ndarray, size: int
) -> Float[np.ndarray, "n dt"]:
    """The last batch is filled up with copies of its last row."""
    parts = []
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        count = len(part)
        part = np.concatenate([part, np.repeat(part[-1:], size - count, axis=0)])
        parts.append(np.asarray(encode(part), np.float32)[:count])
    return np.concatenate(parts)
