"""The built-in data, and image–caption pairs in the shards that training reads."""

import functools
from pathlib import Path
from typing import get_args

import numpy as np
from jaxtyping import UInt8

from flaxclip.benchmark.datasets import Captioned, Labelled
from flaxclip.benchmark.tasks import DataSource, Task
from flaxclip.data.read_ahead import read_ahead
from flaxclip.data.sources.corpus import CorpusConfig, open_corpus
from flaxclip.data.sources.scenes import ScenesSource, Split
from flaxclip.data.sources.source import Source, UnreadableExampleError, reads_remotely
from flaxclip.data.storage.file_systems import Version, is_remote, version_of
from flaxclip.errors import InputError

TRAIN_SCENES = 12_000
"""Of ten million, for probes."""
_SPLITS: dict[str, Split] = {split: split for split in get_args(Split)}


class PairImages:
    """The images of image–caption pairs."""

    def __init__(self, source: Source, identity: str, length: int | None = None):
        self._source = source
        self.identity = identity
        self.name = source.name
        self.reads_remotely = reads_remotely(source)
        self._length = len(source) if length is None else length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> bytes | UInt8[np.ndarray, "h w 3"]:
        return self._source[index].image


def read_scenes(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Labelled:
    """A split of the built-in data."""
    del task, data_dir
    # The source's own name is its test split; `split` differs from it for probes alone.
    drawn = _SPLITS["train" if split == source.train else source.name]
    scenes = ScenesSource(drawn, image_size)
    count = TRAIN_SCENES if drawn == "train" else len(scenes)
    identity = f"scenes 1 {drawn} {count} {image_size}"
    labels = np.array([scenes.label(index) for index in range(count)])
    return Labelled(PairImages(scenes, identity, count), labels)


def read_pairs(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Captioned:
    """Image–caption pairs; the source's name is what `--data.path` takes, a line each.

    Of several captions that an image has, the first is taken.

    A caption that several images have is one candidate, right for each of them.

    Raises:
        InputError: the shards cannot be read, or a caption.
    """
    del task, split, data_dir
    pairs = open_corpus(CorpusConfig(tuple(source.name.split("\n"))), image_size)
    paths = getattr(pairs, "paths", ())  # of what is neither files nor a folder there are none
    remotely = any(map(is_remote, paths))
    states = read_ahead(lambda number: _state(paths[number]), range(len(paths)), remotely)
    versions = [(path, state()) for path, state in zip(paths, states, strict=True)]
    identity = repr((source.name, len(pairs), versions))
    reads = read_ahead(functools.partial(_caption, pairs), range(len(pairs)), reads_remotely(pairs))
    captions = [read() for read in reads]
    place = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    belongs = [(image, place[caption]) for image, caption in enumerate(captions)]
    left_out = getattr(pairs, "left_out", {})
    return Captioned(PairImages(pairs, identity), tuple(place), np.array(belongs), left_out)


def _state(path: str) -> Version | None:
    try:
        return version_of(path)
    except OSError:  # an image that is missing, by itself
        return None


def _caption(source: Source, index: int) -> str:
    try:
        # An image that is missing is no reason to be without its caption: it counts as black.
        if hasattr(source, "captions"):
            return source.captions(index)[0][0]
        return source[index].captions[0]
    except UnreadableExampleError as error:
        raise InputError(
            f"{source.name(index)}: {error}\n"
            "a pair without its caption cannot be retrieved: fix it or take it out of the shard"
        ) from None
