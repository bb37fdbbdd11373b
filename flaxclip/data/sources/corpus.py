"""Open the corpus that `data.path` names as a `Source`.

A new kind of corpus is a file with a class that follows the `Source` protocol, and a line here.
"""

import dataclasses
from typing import Literal

from flaxclip.data.sources.array_records.array_record import ArrayRecordSource
from flaxclip.data.sources.captions import CaptionConfig
from flaxclip.data.sources.folder import FolderSource
from flaxclip.data.sources.mixture import MixtureSource
from flaxclip.data.sources.scenes import PATHS, ScenesSource
from flaxclip.data.sources.source import Source
from flaxclip.data.sources.tables.table import TableSource
from flaxclip.data.sources.tables.table_copy import EXTENSIONS as TABLE_EXTENSIONS
from flaxclip.data.sources.tars.index.index_sharing import IndexSharing
from flaxclip.data.sources.tars.webdataset import WebDatasetSource
from flaxclip.data.sources.tfds import TfdsSource
from flaxclip.data.storage.files import is_folder
from flaxclip.errors import InputError

_TFDS = "tfds:"


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """Images and their captions: location, and fields that are captions."""

    path: tuple[str, ...] = ("scenes",)
    """One of: `scenes`, the built-in data, or `scenes-wide`, the same on canvases of 1:4 to 4:1;
    webdataset tars as img2dataset writes them (.tar); ArrayRecord shards as flaxclip.data.prepare
    does (.array_record); tables of images' paths and captions (.csv .tsv .parquet); a folder of
    images with texts beside them or in folders of classes; `tfds:NAME` for a data set of
    tensorflow-datasets. Files may be patterns, such as 'shards/{00000..01242}.tar' or
    'gs://bucket/*.tar'."""
    image_key: str | None = None
    """Column of a table, or feature of TFDS, that holds the images. If None, the usual one."""
    split: str = "train"
    """Split of a TFDS data set."""
    captions: CaptionConfig = CaptionConfig()
    allow_empty_shards: bool = False
    """Go on if shards have no examples, as a downloader leaves them when all downloads of a shard
    fail: tars without members, ArrayRecord files without examples, files of 0 bytes. They are
    counted, in the log and by flaxclip.data.inspect. By default they are named, and nothing
    starts."""
    index: str | None = None
    """Folder or URL of an index of tars that flaxclip.data.index has made. If None, the one beside
    them is used; where there is none, they are read through once, and indexed in the user's
    cache."""
    counts: str | None = None
    """Stated numbers of pairs of tars in object storage, which fix the order of the examples:
    training starts once the shards of its first batch are indexed, and indexes the others while it
    runs. auto: `sizes.json` beside the shards, or else img2dataset's `NNNNN_stats.json` of each. Or
    a file for all: like `sizes.json`, {"00000.tar": 10000}, or an index of wids. If a shard has
    another number of pairs, training ends and must start anew: so it is for you to say that they
    are right. If None, all shards are indexed before training starts. Where there is an index, it
    is used instead; shards on disk are always indexed."""
    teacher_widths: tuple[int, ...] = (768, 768)
    """Of tars in the layout of DataCompDR, for data.teacher_vectors: numbers of each teacher's
    embedding, in the order in which theirs are joined. The default is DataCompDR's own."""

    def __post_init__(self) -> None:
        if not self.path:
            raise InputError("data.path is empty\nname shards, or 'scenes' for the built-in data")
        if min(self.teacher_widths, default=0) < 1:
            raise InputError(
                f"data.teacher_widths is {self.teacher_widths}\nexpected numbers above 0"
            )


@dataclasses.dataclass(frozen=True)
class MixtureCorpus(CorpusConfig):
    """One of the corpora of a mixture."""

    weight: float = 1.0
    """Weight of its examples, relative to the others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.weight < float("inf"):
            raise InputError(f"weight of {self.path[0]} is {self.weight}\nit must be above 0")


def open_corpus(
    config: CorpusConfig, image_size: int, sharing: IndexSharing | None = None
) -> Source:
    """The corpus that `config.path` names.

    Args:
        config: the corpus.
        image_size: for the built-in data, which is drawn.
        sharing: hosts that open it together, see `WebDatasetSource`.

    Raises:
        InputError: shards that are missing, empty, cut off, or hold no pairs.
    """
    first, *more = config.path
    kinds = {_kind(path) for path in config.path}
    if len(kinds) > 1 or (more and kinds & {"scenes", "tfds", "folder"}):
        raise InputError(
            f"data.path names several corpora: {' '.join(config.path)}\n"
            "give shards or tables of one kind, or a data.mixture of corpora"
        )
    kind = kinds.pop()
    for field in ("index", "counts"):
        if getattr(config, field) is not None and kind != "tar":
            raise InputError(
                f"data.{field} is of tars, and {first} is none\nleave data.{field} out"
            )
    match kind:
        case "scenes":
            return ScenesSource(PATHS[first], image_size)
        case "tfds":
            name = first.removeprefix(_TFDS)
            return TfdsSource(name, config.split, config.image_key, config.captions)
        case "array_record":
            return ArrayRecordSource(config.path, config.captions, config.allow_empty_shards)
        case "table":
            return TableSource(
                config.path, config.image_key, config.captions, config.allow_empty_shards
            )
        case "folder":
            return FolderSource(first, config.captions)
        case _:
            return WebDatasetSource(
                *(config.path, config.captions, config.allow_empty_shards, config.index, sharing),
                *(config.counts, config.teacher_widths),
            )


def _kind(path: str) -> Literal["scenes", "tfds", "array_record", "table", "tar", "folder"]:
    name = path.rstrip("/").rpartition("/")[2]
    if path in PATHS:
        return "scenes"
    if path.startswith(_TFDS):
        return "tfds"
    if ".array_record" in name:  # TFDS adds the number of the shard after it
        return "array_record"
    if name.endswith(TABLE_EXTENSIONS):
        return "table"
    if name.endswith(".tar") or not is_folder(path):
        return "tar"
    return "folder"


def open_mixture(
    corpora: tuple[MixtureCorpus, ...], image_size: int, sharing: IndexSharing | None = None
) -> MixtureSource:
    """All of the corpora as one; raises `InputError` as `open_corpus` does."""
    sources = [open_corpus(corpus, image_size, sharing) for corpus in corpora]
    return MixtureSource(sources, [corpus.weight for corpus in corpora])
