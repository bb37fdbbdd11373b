"""A corpus in order, ready to be embedded: pixels, captions, and what cannot be read."""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from flaxclip.benchmark.datasets import measured_pixels
from flaxclip.benchmark.readers.folder import FileImages, find_images
from flaxclip.data.images.eval_transform import Transform, stack_images
from flaxclip.data.images.native_size import PatchArrays
from flaxclip.data.read_ahead import read_ahead
from flaxclip.data.sources.corpus import CorpusConfig, open_corpus
from flaxclip.data.sources.left_out import LEFTOVERS
from flaxclip.data.sources.source import Pair, Source, UnreadableExampleError, reads_remotely
from flaxclip.data.storage.file_systems import is_remote, version_of
from flaxclip.errors import InputError


class PairBatch(NamedTuple):
    """Examples of a range, those that can be read."""

    pixels: UInt8[np.ndarray, "b h w 3"] | PatchArrays
    """Of as many rows in every batch: the first ones are those of `ids`."""
    ids: list[int]
    captions: list[str]
    """Of several captions of an example, the first."""
    unreadable: list[str]
    """Name and reason of each of the others."""
    stop: int
    """End of the range."""


class ImagesAlone:
    """Images without captions as a `Source`."""

    def __init__(self, folder: Path, paths: list[Path], leftovers: int):
        """`leftovers`: images that were passed over, which `left_out` tells."""
        self.left_out = {LEFTOVERS: leftovers} if leftovers else {}
        self._images = FileImages(folder, paths)
        self.identity = self._images.identity
        self.name = self._images.name

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Pair:
        return Pair(self._images[index], ())


def open_pairs(config: CorpusConfig, image_size: int) -> Source | ImagesAlone:
    """The corpus; a folder of images may be without captions.

    Raises:
        InputError: it cannot be read.
    """
    (path, *others) = config.path
    if not others and not is_remote(path) and os.path.isdir(path):
        try:
            return open_corpus(config, image_size)
        except InputError:
            images, leftovers = find_images(Path(path))
            if not images:
                raise
            return ImagesAlone(Path(path), images, leftovers)
    return open_corpus(config, image_size)


def corpus_digest(source: Source | ImagesAlone) -> str:
    """A hash of the files that a corpus is in, and of their states."""
    identity = getattr(source, "identity", None)
    if identity is None:
        paths = getattr(source, "paths", ())  # of what is neither files nor a folder there are none
        remotely = any(map(is_remote, paths))
        states = read_ahead(lambda number: _state(paths[number]), range(len(paths)), remotely)
        identity = repr([(path, state()) for path, state in zip(paths, states, strict=True)])
    return hashlib.sha256(f"{len(source)} {identity}".encode()).hexdigest()[:32]


def _state(path: str) -> tuple[int, int] | None:
    try:
        return tuple(version_of(path))  # type: ignore[return-value]
    except OSError:  # an image that is missing, by itself
        return None


def pair_batches(
    source: Source | ImagesAlone,
    transform: Transform,
    batch_size: int,
    start: int,
    stop: int,
    workers: int,
) -> Iterator[PairBatch]:
    """Examples from `start` to `stop` in order, `batch_size` to a batch, the last perhaps fewer.

    Every example is read once, for its image and its caption. Decoding releases Python's lock, so
    threads suffice to keep all cores busy; two batches are made while the caller works on one.
    """

    def load(read: Callable[[], Pair]) -> tuple[UInt8[np.ndarray, "h w 3"], str] | str:
        try:
            pair = read()
            pixels = measured_pixels(pair.image, transform)
            return pixels, pair.captions[0] if pair.captions else ""
        except UnreadableExampleError as error:
            return str(error)

    reads = read_ahead(source.__getitem__, range(start, stop), reads_remotely(source))
    with ThreadPoolExecutor(workers) as pool:
        firsts = range(start, stop, batch_size)
        ahead: list[list[Future[tuple[UInt8[np.ndarray, "h w 3"], str] | str]]] = []
        for number, first in enumerate(firsts):
            ahead += [
                [pool.submit(load, next(reads)) for _ in range(at, min(at + batch_size, stop))]
                for at in firsts[number + len(ahead) : number + 3]
            ]
            images: list[UInt8[np.ndarray, "h w 3"]] = []
            ids: list[int] = []
            captions: list[str] = []
            unreadable: list[str] = []
            for index, future in enumerate(ahead.pop(0), first):
                loaded = future.result()
                if isinstance(loaded, str):
                    unreadable.append(f"{source.name(index)}: {loaded}")
                    continue
                images.append(loaded[0])
                ids.append(index)
                captions.append(loaded[1])
            pixels = stack_images(images, transform, batch_size)
            yield PairBatch(pixels, ids, captions, unreadable, min(first + batch_size, stop))
