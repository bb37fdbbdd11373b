"""Evaluation data: images by position, what is known of each, batches that count each once."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int, UInt8

from flaxclip.data.images.eval_transform import SizedTransform, preprocess
from flaxclip.data.images.open_image import decode_image
from flaxclip.data.read_ahead import read_ahead
from flaxclip.data.sources.source import UnreadableExampleError, reads_remotely
from flaxclip.errors import InputError


class MissingDataError(InputError):
    """A set is not on this machine; says what it is, where it is had and what prepares it."""


@runtime_checkable
class Images(Protocol):
    """Images by position.

    If reading one means waiting for a network, they have `reads_remotely`, as a `Source` has.
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


class Associations(NamedTuple):
    """Items of a cue and several images, some of which go with it."""

    images: Images
    cues: tuple[str, ...]
    item_of: Int[np.ndarray, " images"]
    """Item that each image is a candidate of."""
    goes_with_cue: Bool[np.ndarray, " images"]


Dataset = Labelled | Captioned | Choices | Associations


class ImageBatch(NamedTuple):
    """As many rows as every other batch, so that one compilation serves all."""

    images: UInt8[np.ndarray, "b h w 3"]
    is_real: Bool[np.ndarray, " b"]
    """False where a row only fills the last batch up."""
    unreadable: tuple[str, ...]
    """Images that could not be decoded. They stay in, black: leaving an image out of the
    denominator would raise the score."""


def measured_pixels(
    image: bytes | UInt8[np.ndarray, "height width 3"], transform: SizedTransform
) -> UInt8[np.ndarray, "size size 3"]:
    """An image as scores are measured on it.

    Raises:
        UnreadableExampleError: see `preprocess`.
    """
    if isinstance(image, bytes) and transform.how.transparency == "dropped":
        # To RGB before the resize, as the loaders behind published scores do; for palettes and
        # transparency the order shows.
        return preprocess(decode_image(image).convert("RGB"), transform)
    return preprocess(image, transform)


def image_batches(
    images: Images,
    transform: SizedTransform,
    batch_size: int,
    start: int = 0,
    stop: int | None = None,
    workers: int = 1,
) -> Iterator[ImageBatch]:
    """Images from `start` to `stop` in order, each once; the last batch is filled up.

    Decoding and resizing release Python's lock, so threads suffice to keep all cores busy; the next
    batch is being made while the caller works on this one.
    """
    stop = len(images) if stop is None else stop

    def load(
        index: int, read: Callable[[], bytes | UInt8[np.ndarray, "h w 3"]]
    ) -> tuple[UInt8[np.ndarray, "h w 3"], str | None]:
        try:
            return measured_pixels(read(), transform), None
        except UnreadableExampleError as error:
            black = np.zeros((transform.size, transform.size, 3), np.uint8)
            return black, f"{images.name(index)}: {error}"

    reads = read_ahead(images.__getitem__, range(start, stop), reads_remotely(images))
    with ThreadPoolExecutor(workers) as pool:
        firsts = range(start, stop, batch_size)
        ahead: list[list[Future[tuple[UInt8[np.ndarray, "h w 3"], str | None]]]] = []
        for number, first in enumerate(firsts):
            ahead += [
                [
                    pool.submit(load, index, next(reads))
                    for index in range(at, min(at + batch_size, stop))
                ]
                for at in firsts[number + len(ahead) : number + 2]
            ]
            loaded = [future.result() for future in ahead.pop(0)]
            pixels = np.zeros((batch_size, transform.size, transform.size, 3), np.uint8)
            for row, (image, _) in enumerate(loaded):
                pixels[row] = image
            unreadable = tuple(reason for _, reason in loaded if reason)
            yield ImageBatch(pixels, np.arange(batch_size) < stop - first, unreadable)
