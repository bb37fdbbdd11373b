"""webdataset tar shards of images and captions, as img2dataset writes them, in random access.

    source = WebDatasetSource("shards/{00000..01242}.tar")
    source[7]            # Pair(image=b"...", captions=("a red bicycle",))
    source.name(7)       # "00000.tar/000000007"

An example is an image (.jpg .jpeg .png .webp) and a .txt, a .json or both, under one key:
webdataset's sample. By default the .txt is the caption, and where there is none the JSON's
"caption". The members of an example need not be neighbours. A key ends at the first dot of its last
part, as in webdataset: `photo.v2.jpg` has the extension `v2.jpg`, and is no image. A key that comes
again in the same shard is another example, as in open_clip. `source.shards` counts these, and what
is left out. Tars are read by position, without unpacking; in object storage, an example whose
members are neighbours takes one ranged request. `source.reinforced(7)` reads what DataCompDR stores
of teachers beside an image, see `reinforced.datacompdr`.
"""

import hashlib
import logging
import operator
import os
from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np

from flaxclip.data.reinforced import datacompdr
from flaxclip.data.reinforced.stored_vectors import Reinforced
from flaxclip.data.sources.captions import (
    DEFAULT_CAPTIONS,
    CaptionConfig,
    json_fields,
    make_captions,
    utf8,
)
from flaxclip.data.sources.empty_shards import check_empty_shards
from flaxclip.data.sources.left_out import MEMBER_REASONS, describe_counts
from flaxclip.data.sources.runs import ReadsInRuns
from flaxclip.data.sources.shard_paths import expand_shards
from flaxclip.data.sources.source import Pair, UnreadableExampleError
from flaxclip.data.sources.tars.index.build_index import build_index
from flaxclip.data.sources.tars.index.counted_index import CountedIndex
from flaxclip.data.sources.tars.index.index_sharing import IndexSharing
from flaxclip.data.sources.tars.neighbours import read_members, spans_of
from flaxclip.data.sources.tars.tar_extents import MAX_MEMBER_BYTES, find_extents
from flaxclip.data.sources.tars.tar_scan import COUNTS
from flaxclip.data.storage.file_systems import Version, is_remote
from flaxclip.data.storage.ranged_reads import Extent

DEFAULT_CAPTION_KEYS = ("txt", "caption")
_LEFT_OUT = (*(name for name in COUNTS if name != "pairs"), *MEMBER_REASONS)
_SMALL_GAP = 2**16  # bytes between an example's members, rather read along than asked for apart

_logger = logging.getLogger(__name__)


class WebDatasetSource(ReadsInRuns):
    """A `Source` over tar shards; see the module's docstring for what an example is.

    Shards are sorted by path, examples keep the order of their shard: neither depends on how the
    shards were listed. Copies sent to worker processes carry paths, not the index, and open files
    when they first read them.
    """

    def __init__(
        self,
        shards: str | Sequence[str],
        captions: CaptionConfig = DEFAULT_CAPTIONS,
        allow_empty_shards: bool = False,
        index: str | None = None,
        sharing: IndexSharing | None = None,
        counts: str | None = None,
        teacher_widths: tuple[int, ...] = (),
    ) -> None:
        """Index the shards, or open the index that an earlier call has built.

        Args:
            shards: a path, a brace pattern (`{00000..01242}.tar`), a glob, or a list of these.
            captions: which texts are captions.
            allow_empty_shards: go on where shards have no members, or no bytes.
            index: folder of an index that `flaxclip.data.index` has made. If None, the one beside
                the shards is used, if there is one.
            sharing: hosts that index the shards together. If None, this one does.
            counts: `CorpusConfig.counts`. If given, shards at URLs which no index has are not
                indexed now, but when they are needed: all that reads examples can then raise
                `InputError`, of a shard that cannot be used or has another number of pairs.
            teacher_widths: `CorpusConfig.teacher_widths`, for `reinforced`.

        Raises:
            InputError: a pattern matches nothing or a shard is named twice, is missing, cannot be
                read, is not a tar, is truncated or has no pairs; or all are empty.
        """
        self.paths = expand_shards([shards] if isinstance(shards, str) else shards)
        self._captions, self._teacher_widths = captions, teacher_widths
        self._index = build_index(self.paths, index, sharing, counts)
        # By characters, up to a slash: commonpath would spoil URLs.
        folders = [f"{os.path.dirname(path)}/" for path in self.paths]
        self._common_folder = os.path.commonprefix(folders).rpartition("/")[0]  # noqa: RUF071
        empty = self._index.shards["pairs"] == 0
        self.empty_shards = int(empty.sum())
        sizes = self._index.shards["size"].tolist()
        check_empty_shards(
            [(self.paths[number], sizes[number]) for number in np.flatnonzero(empty)],
            len(self.paths),
            allow_empty_shards,
        )
        self._report()

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: SupportsIndex) -> Pair:
        index = _checked(index, len(self))
        entry = self._index.entry(index)
        keys = self._captions.keys
        # Only what a caption may be in.
        wanted: tuple[str, ...] = ("txt", "json") if entry["txt_offset"] == 0 else ("txt",)
        if keys:
            wanted = ("txt",) * ("txt" in keys) + ("json",) * (set(keys) != {"txt"})
        image, *texts = self._read(index, entry, ("image", *wanted))
        assert image is not None, "no example is without one"
        captions = make_captions(_fields(wanted, texts), self._captions, DEFAULT_CAPTION_KEYS)
        return Pair(image, *captions)

    def fields(self, index: SupportsIndex) -> dict[str, Any]:
        """The example's JSON, and its text under `txt`."""
        index = _checked(index, len(self))
        found = self._read(index, self._index.entry(index), ("txt", "json"))
        return _fields(("txt", "json"), found)

    def reinforced(self, index: SupportsIndex) -> Reinforced:
        """An example of DataCompDR, with what lies beside it of teachers.

        All its files follow one another in the tar, as webdataset reads them.

        Raises:
            UnreadableExampleError: as `datacompdr.read_example`.
        """
        index = _checked(index, len(self))
        entry = self._index.entry(index)
        image, *texts = self._read(index, entry, ("image", "txt", "json"))
        assert image is not None, "no example is without one"
        fields = _fields(("txt", "json"), texts)
        caption = next((fields[key] for key in DEFAULT_CAPTION_KEYS if key in fields), None)
        return datacompdr.read_example(
            image,
            caption if isinstance(caption, str) else None,
            self._beside(index, entry),
            self._teacher_widths,
            fields,
        )

    def name(self, index: SupportsIndex) -> str:
        """Shard and key, e.g. `00003.tar/000030017`; with folders where shards are in several."""
        index = _checked(index, len(self))
        return f"{self._short_path(self._index.shard_of(index))}/{self._index.key(index)}"

    @property
    def nbytes(self) -> int:
        """Bytes of all shards together."""
        return int(self.shards["size"].sum())

    @property
    def counted(self) -> CountedIndex | None:
        """The index, if it is of shards that are counted and need not have been scanned."""
        return self._index if isinstance(self._index, CountedIndex) else None

    @property
    def shards_sha256(self) -> str:
        """A hash of the names, sizes and numbers of pairs of the shards."""
        names = (path[len(self._common_folder) :] for path in self.paths)
        counts = self.shards[["size", "pairs"]].tolist()
        return hashlib.sha256(repr([*zip(names, counts, strict=True)]).encode()).hexdigest()

    def extents(self, first: int, last: int) -> tuple[Extent, ...]:
        """The byte ranges in object storage that hold examples [first, last)."""
        return find_extents(self._index.entries(first, last), self.shards, self.paths)

    def place(self, index: SupportsIndex) -> str:
        """As `name`, but with the example's number in place of the key if that must be waited for.

        It must if the shard is only counted, and not indexed yet.
        """
        index = _checked(index, len(self))
        shard = self._index.shard_of(index)
        if self.counted is None or self.counted.is_at_hand(shard):
            return self.name(index)
        return f"{self._short_path(shard)}/example {self._index.number_in_shard(index)} of it"

    def _short_path(self, shard: int) -> str:
        return self.paths[shard][len(self._common_folder) :].lstrip("/")

    @property
    def shards(self) -> np.ndarray:
        """[shards] of `index_table.SHARD`: pairs, and what was left out or repeated, in each."""
        return self._index.shards

    @property
    def left_out(self) -> dict[str, int]:
        """Counts, by reason, of members that are repeated or no pairs; zeros are omitted."""
        totals = {name: int(self.shards[name].sum(dtype=np.int64)) for name in _LEFT_OUT}
        return {name: count for name, count in totals.items() if count}

    def _read(self, index: int, entry: np.void, members: Sequence[str]) -> list[bytes | None]:
        """The members' data; None for those that the example does not have."""
        places = {}
        for member in members:
            offset, size = int(entry[f"{member}_offset"]), int(entry[f"{member}_size"])
            if size > MAX_MEMBER_BYTES:
                raise UnreadableExampleError(f"{member} of {size:,} bytes or more")
            if offset:
                places[member] = offset, size
        shard = self._index.shards[entry["shard"]]
        path, indexed = self.paths[entry["shard"]], Version(*shard[["size", "mtime_ns"]].tolist())
        start = min((offset for offset, _ in places.values()), default=0)
        length = max((sum(place) for place in places.values()), default=0) - start
        if is_remote(path) and length <= sum(size for _, size in places.values()) + _SMALL_GAP:
            # One request rather than one for each: they take long to begin.
            data = self.fetch(index, Extent(path, start, start + length, indexed))
            found = {m: data[o - start : o - start + size] for m, (o, size) in places.items()}
        else:
            found = {
                m: self.fetch(index, Extent(path, offset, offset + size, indexed))
                for m, (offset, size) in places.items()
            }
        return [found.get(member) for member in members]

    def _beside(self, index: int, entry: np.void) -> dict[str, bytes]:
        """Members of the example, by extension, that the index does not know."""
        shard = self._index.shards[entry["shard"]]
        place, last = self._index.number_in_shard(index), int(shard["pairs"]) - 1
        around = self._index.entries(index - (place > 0), index + 1 + (place < last))
        before, after = (around[0] if place else None), (around[-1] if place < last else None)
        path, indexed = self.paths[entry["shard"]], Version(*shard[["size", "mtime_ns"]].tolist())
        found: dict[str, bytes] = {}
        damage = []
        for span in spans_of(entry, before, after, indexed.size):
            if span.start < span.end and datacompdr.missing(found):
                data = self.fetch(index, Extent(path, span.start, span.end, indexed))
                members = read_members(data, span, self._index.key(index), datacompdr.EXTENSIONS)
                found |= members.contents
                damage += [members.damage] if members.damage else []
        if damage and (absent := datacompdr.missing(found)):
            raise UnreadableExampleError(
                f"no {', no '.join(absent)} beside it: the tar is damaged {damage[0]}\n"
                "fetch the shard again, or leave it out"
            )
        return found

    def _report(self) -> None:
        shards = self._index.shards
        if self.counted is not None:
            _logger.info(
                "%s pairs are stated for %s shards; %s of these are still to be indexed",
                *(f"{n:,}" for n in (len(self), len(shards), len(self.counted.unknown))),
            )
            return
        found = describe_counts(self.left_out)
        worst = int(np.argmax(sum(shards[name].astype(np.int64) for name in _LEFT_OUT)))
        _logger.log(
            logging.WARNING if found else logging.INFO,
            "%s pairs in %s shards%s",
            f"{len(self):,}",
            f"{len(shards):,}",
            f"; {found} (most in {os.path.basename(self.paths[worst])})" if found else "",
        )


def _fields(members: Sequence[str], texts: Sequence[bytes | None]) -> dict[str, Any]:
    found = dict(zip(members, texts, strict=True))
    json, text = found.get("json"), found.get("txt")
    fields = {} if json is None else json_fields(json)
    if text is not None:
        fields["txt"] = utf8(text)
    return fields


def _checked(index: SupportsIndex, length: int) -> int:
    index = operator.index(index)
    if not 0 <= index < length:
        raise IndexError(f"example {index} of {length:,}")
    return index
