"""Evaluation data: labelled pictures or pairs by position, and batches that count each once."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, UInt8

from flaxclip.data.scenes import ScenesSource, Split
from flaxclip.data.source import Source, UnreadableRecordError
from flaxclip.data.transforms import ImageTransform, decode_image, preprocess


@runtime_checkable
class LabelledImages(Protocol):
    """Pictures, each of one class."""

    def __len__(self) -> int:
        """Number of pictures."""
        ...

    def __getitem__(self, index: int) -> bytes | UInt8[np.ndarray, "h w 3"]:
        """A picture, encoded or as pixels."""
        ...

    def label(self, index: int) -> int:
        """Position of its class in the task's class names."""
        ...

    def name(self, index: int) -> str:
        """What a person would look for to find this picture."""
        ...


class Scenes:
    """An evaluation split of the built-in data."""

    def __init__(self, split: Split, image_size: int):
        self._source = ScenesSource(split, image_size)
        self.label = self._source.label
        self.name = self._source.name

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> bytes | UInt8[np.ndarray, "h w 3"]:
        return self._source[index].image


class PairImages:
    """The pictures of image–caption pairs."""

    def __init__(self, source: Source):
        self._source = source
        self.name = source.name

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> bytes | UInt8[np.ndarray, "h w 3"]:
        return self._source[index].image


class ImageBatch(NamedTuple):
    """As many rows as every other batch, so that one compilation serves all."""

    images: UInt8[np.ndarray, "b h w 3"]
    is_real: Bool[np.ndarray, " b"]
    """False where a row only fills the last batch up."""
    unreadable: tuple[str, ...]
    """Pictures that could not be decoded. They stay in, black: leaving a picture out of the
    denominator would raise the score."""


def image_batches(
    images: LabelledImages | PairImages, transform: ImageTransform, batch_size: int
) -> Iterator[ImageBatch]:
    """All pictures in order, each once, the last batch filled up with rows that are not real."""
    for start in range(0, len(images), batch_size):
        stop = min(start + batch_size, len(images))
        pixels = np.zeros((batch_size, transform.size, transform.size, 3), np.uint8)
        unreadable = []
        for row, index in enumerate(range(start, stop)):
            try:
                image = images[index]
                if isinstance(image, bytes):
                    # To RGB before the resize, as the loaders behind published scores do; for
                    # palettes and transparency the order shows.
                    image = decode_image(image).convert("RGB")
                pixels[row] = preprocess(image, transform)
            except UnreadableRecordError as error:
                unreadable.append(f"{images.name(index)}: {error}")
        yield ImageBatch(pixels, np.arange(batch_size) < stop - start, tuple(unreadable))
