"""Opening a corpus: from what `data.path` names to a `Source`.

A new kind of corpus is a file with a class that follows the `Source` protocol, and a line here.
"""

import dataclasses

from flaxclip.data.array_record import ArrayRecordSource
from flaxclip.data.captions import CaptionConfig
from flaxclip.data.mixture import MixtureSource
from flaxclip.data.scenes import ScenesSource
from flaxclip.data.source import Source
from flaxclip.data.webdataset import WebDatasetSource
from flaxclip.errors import InputError


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """Pictures and their captions: where they are, and what in them is a caption."""

    path: tuple[str, ...] = ("scenes",)
    """`scenes` for the built-in data, or shards: webdataset tars (.tar) as img2dataset writes them,
    or ArrayRecord (.array_record) as flaxclip.data.prepare does. Files, globs, or brace patterns
    such as 'shards/{00000..01242}.tar'."""
    captions: CaptionConfig = CaptionConfig()

    def __post_init__(self) -> None:
        if not self.path:
            raise InputError("data.path is empty\nname shards, or 'scenes' for the built-in data")


@dataclasses.dataclass(frozen=True)
class MixtureCorpus(CorpusConfig):
    """One of the corpora of a mixture."""

    weight: float = 1.0
    """Examples from it, relative to the others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.weight < float("inf"):
            raise InputError(f"weight of {self.path[0]} is {self.weight}\nit must be above 0")


def open_corpus(config: CorpusConfig, image_size: int) -> Source:
    """The corpus that `config.path` names; `image_size` is for the built-in data, which is drawn.

    Raises:
        InputError: shards that are missing, empty, cut off, or hold no pairs.
    """
    if config.path == ("scenes",):
        return ScenesSource("train", image_size)
    if all("array_record" in path.rpartition("/")[2] for path in config.path):
        return ArrayRecordSource(config.path, config.captions)
    return WebDatasetSource(config.path, config.captions)


def open_mixture(corpora: tuple[MixtureCorpus, ...], image_size: int) -> MixtureSource:
    """All of the corpora as one; raises `InputError` as `open_corpus` does."""
    sources = [open_corpus(corpus, image_size) for corpus in corpora]
    return MixtureSource(sources, [corpus.weight for corpus in corpora])
