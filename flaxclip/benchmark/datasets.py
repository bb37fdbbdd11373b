"""Evaluation data: images by position, what is known of each, batches that count each once."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int, UInt8

from flaxclip.data.images.eval_transform import Transform, preprocess, stack_images
from flaxclip.data.images.native_size import PatchArrays
from flaxclip.data.images.open_image import decode_image
from flaxclip.data.read_ahead import read_ahead
from flaxclip.data.sources.source import UnreadableExampleError, reads_remotely
from flaxclip.errors import InputError


class MissingDataError(InputError):
    """A set is not on this machine; says what it is, where it is had and what prepares it."""


@runtime_checkable
class Images(Protocol):
    """Images by position.

    If reading one means waiting for a network, they have `reads_remotely`, as a `Source` has. If
    something is drawn on what the model sees of them, they have `finish`: pixels to pixels.
    """

    identity: str
    """Differs between any two sets of images: names the embeddings that are kept on disk."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def __getitem__(self, index: int) -> bytes | UInt8[np.ndarray, "h w 3"]:
        """An image, encoded or as pixels.

        Raises:
            UnreadableExampleError: it cannot be read.
        """
        ...

    def name(self, index: int) -> str:
        """What a person would look for to find this image."""
        ...


class Labelled(NamedTuple):
    """Images and their classes."""

    images: Images
    labels: Int[np.ndarray, " n"] | Bool[np.ndarray, "n classes"]
    """One class each; or for every class whether it is in the image."""
    class_names: tuple[str, ...] | None = None
    """As the set itself names them, in the order of its labels."""
    templates: tuple[str, ...] | None = None
    groups: Int[np.ndarray, " n"] | None = None
    left_out: Mapping[str, int] = {}
    """What looked like examples but is none: counts by reason."""
    group_names: tuple[str, ...] | None = None
    """By the numbers in `groups`. If None, they have no names."""


class Captioned(NamedTuple):
    """Images and captions, one or several for each."""

    images: Images
    captions: tuple[str, ...]
    pairs: Int[np.ndarray, "pairs 2"]
    """Image and caption of each pair that belongs together."""
    left_out: Mapping[str, int] = {}
    """What looked like examples but is none: counts by reason."""


class Choices(NamedTuple):
    """Items to be sorted out: image i of an item belongs to caption i of it, to no other."""

    images: Images
    captions: tuple[str, ...]
    image_rows: Int[np.ndarray, "items images_each"]
    caption_rows: Int[np.ndarray, "items captions_each"]
    kinds: tuple[str, ...] = ()
    """What each item asks for, where the set says so."""


class Statements(NamedTuple):
    """Items of one image and several captions, some right of it and some wrong."""

    images: Images
    captions: tuple[str, ...]
    image_rows: Int[np.ndarray, " items"]
    caption_rows: Int[np.ndarray, "items captions_each"]
    is_right: Bool[np.ndarray, "items captions_each"]
    """As many right ones in every item."""
    kinds: tuple[str, ...] = ()
    """What each item asks for, where the set says so."""
    averaged_kinds: frozenset[str] | None = None
    """Those that the published mean over kinds is of. If None, all."""


class OpenSet(NamedTuple):
    """Images of known classes, and others of none of them, by where these are from."""

    inside: Labelled
    outside: Mapping[str, Images]
    left_out: Mapping[str, int] = {}
    """What looked like examples but is none: counts by reason."""

    @property
    def images(self) -> Images:
        """Those of known classes."""
        return self.inside.images


class Associations(NamedTuple):
    """Items of a cue and several images, some of which go with it."""

    images: Images
    cues: tuple[str, ...]
    item_of: Int[np.ndarray, " images"]
    """Item that each image is a candidate of."""
    goes_with_cue: Bool[np.ndarray, " images"]


class Translated(NamedTuple):
    """Images, and captions of them in several languages."""

    images: Images
    captions: Mapping[str, Captioned]
    """Language -> captions of `images`."""


class LanguageNames(NamedTuple):
    """Some classes of a set, in one language."""

    classes: Int[np.ndarray, " named"]
    """Labels that have a name."""
    class_names: tuple[str, ...]
    templates: tuple[str, ...]


class Multilingual(NamedTuple):
    """Images and their classes, which are named in several languages; not all in each."""

    images: Images
    labels: Int[np.ndarray, " n"]
    languages: Mapping[str, LanguageNames]


class Faces(NamedTuple):
    """Images of people, what is known of each, and several questions with words of their own."""

    images: Images
    words: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
    """Question -> class names and templates."""
    facts: Mapping[str, Int[np.ndarray, " n"]]


Worded = Captioned | Choices | Statements | Associations | Translated | Multilingual | Faces
"""Data that bring all their words."""

Dataset = Labelled | OpenSet | Worded


class ImageBatch(NamedTuple):
    """As many rows as every other batch, or every other small one: one compilation serves all."""

    images: UInt8[np.ndarray, "b h w 3"] | PatchArrays
    is_real: Bool[np.ndarray, " b"]
    """False where a row only fills the last batch up."""
    unreadable: tuple[str, ...]
    """Images that could not be decoded. They stay in, black: leaving an image out of the
    denominator would raise the score."""


def measured_pixels(
    image: bytes | UInt8[np.ndarray, "height width 3"], transform: Transform
) -> UInt8[np.ndarray, "h w 3"]:
    """An image as scores are measured on it.

    Raises:
        UnreadableExampleError: see `preprocess`.
    """
    if isinstance(image, bytes) and transform.how.transparency == "dropped":
        # To RGB before the resize, as the loaders behind published scores do; for palettes and
        # transparency the order shows.
        return preprocess(decode_image(image).convert("RGB"), transform)
    return preprocess(image, transform)


def finish_of(
    images: Images,
) -> Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "h w 3"]]:
    """What is drawn on the images, at the size that the model sees; for most, nothing."""
    return getattr(images, "finish", lambda pixels: pixels)


def batch_ranges(
    start: int, stop: int, batch_size: int, last_batch_size: int | None = None
) -> list[tuple[int, int]]:
    """First position and number of rows of the batches that hold all from `start` to `stop`.

    Small ones of `last_batch_size` take what is left over where that needs fewer rows than a whole
    one filled up.
    """
    ranges, at = [], start
    small = last_batch_size or batch_size
    while at < stop:
        rows = small if stop - at <= batch_size - small else batch_size
        ranges.append((at, rows))
        at += rows
    return ranges


def image_batches(
    images: Images,
    transform: Transform,
    batch_size: int,
    start: int = 0,
    stop: int | None = None,
    workers: int = 1,
    last_batch_size: int | None = None,
) -> Iterator[ImageBatch]:
    """Images from `start` to `stop` in order, each once, as `batch_ranges` divides them.

    The last batch is filled up.

    Decoding and resizing release Python's lock, so threads suffice to keep all cores busy; the next
    batch is being made while the caller works on this one.
    """
    stop = len(images) if stop is None else stop
    finish = finish_of(images)

    def load(
        index: int, read: Callable[[], bytes | UInt8[np.ndarray, "h w 3"]]
    ) -> tuple[UInt8[np.ndarray, "h w 3"], str | None]:
        try:
            return finish(measured_pixels(read(), transform)), None
        except UnreadableExampleError as error:
            black = np.zeros((transform.size, transform.size, 3), np.uint8)
            return black, f"{images.name(index)}: {error}"

    reads = read_ahead(images.__getitem__, range(start, stop), reads_remotely(images))
    with ThreadPoolExecutor(workers) as pool:
        ranges = batch_ranges(start, stop, batch_size, last_batch_size)
        ahead: list[list[Future[tuple[UInt8[np.ndarray, "h w 3"], str | None]]]] = []
        for number, (first, rows) in enumerate(ranges):
            ahead += [
                [pool.submit(load, index, next(reads)) for index in range(at, min(at + size, stop))]
                for at, size in ranges[number + len(ahead) : number + 2]
            ]
            loaded = [future.result() for future in ahead.pop(0)]
            pixels = stack_images([image for image, _ in loaded], transform, rows)
            unreadable = tuple(reason for _, reason in loaded if reason)
            yield ImageBatch(pixels, np.arange(rows) < stop - first, unreadable)
