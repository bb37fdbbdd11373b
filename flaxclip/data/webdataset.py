"""webdataset tar shards of pictures and captions, as img2dataset writes them, in random access.

    source = WebDatasetSource("shards/{00000..01242}.tar")
    source[7]            # Pair(image=b"...", caption="a red bicycle")
    source.name(7)       # "00000.tar/000000007"

A record is a picture (.jpg .jpeg .png .webp) and a .txt or a .json with the key "caption", under
one key; a .txt wins over a .json. Its members need not be neighbours. A key that comes again in the
same shard is another record, as in open_clip; `source.shards` counts these. Tars are local, or
mounted: they are read by position, without unpacking.
"""

import functools
import glob
import itertools
import json
import logging
import operator
import os
from collections.abc import Iterator, Sequence
from typing import SupportsIndex

import braceexpand
import numpy as np

from flaxclip.data.source import Pair, UnreadableRecordError
from flaxclip.data.tar_index import TarIndex, build_index, open_index
from flaxclip.errors import InputError

_MAX_MEMBER_BYTES = 2**28  # as large as the largest picture that transforms decode, in raw RGB
_OPEN_SHARDS = 128  # kept open in each process; the usual limit is 1,024 files

_logger = logging.getLogger(__name__)


class WebDatasetSource:
    """A `Source` over tar shards; see the module's docstring for what a record is.

    Shards are sorted by path, records keep the order of their shard: neither depends on how the
    shards were listed. Copies sent to worker processes carry paths, not the index, and open files
    when they first read them.
    """

    def __init__(self, shards: str | Sequence[str]) -> None:
        """Index the shards, or open the index that an earlier call has built.

        Args:
            shards: a path, a brace pattern (`{00000..01242}.tar`), a glob, or a list of these.

        Raises:
            InputError: a pattern matches nothing or a shard is named twice, is missing, cannot be
                read, is not a tar, is truncated or has no pairs.
        """
        self.paths = _expand([shards] if isinstance(shards, str) else shards)
        self._folder = build_index(self.paths)
        self._open()
        self._report()

    def __len__(self) -> int:
        return len(self._index.records)

    def __getitem__(self, index: SupportsIndex) -> Pair:
        record = self._index.records[_checked(index, len(self))]
        image = self._read(record, "image")
        if record["txt_offset"]:
            return Pair(image, _checked_caption(_utf8(self._read(record, "txt"))))
        return Pair(image, _checked_caption(_json_caption(self._read(record, "json"))))

    def name(self, index: SupportsIndex) -> str:
        """Shard and key, e.g. `00003.tar/000030017`; with folders where shards are in several."""
        index = _checked(index, len(self))
        ends = self._index.records["key_end"]
        start = int(ends[index - 1]) if index else 0
        key = self._index.keys[start : int(ends[index])].tobytes().decode("utf-8", "replace")
        path = self.paths[self._index.records["shard"][index]]
        return f"{os.path.relpath(path, self._common_folder)}/{key}"

    @property
    def shards(self) -> np.ndarray:
        """[shards] of `tar_index.SHARD`: pairs, and what was left out or repeated, in each."""
        return self._index.shards

    def __getstate__(self) -> dict:
        return {"paths": self.paths, "_folder": self._folder}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open()

    def _open(self) -> None:
        self._index: TarIndex = open_index(self._folder)
        self._common_folder = os.path.commonpath([os.path.dirname(path) for path in self.paths])

    def _read(self, record: np.void, member: str) -> bytes:
        offset, size = int(record[f"{member}_offset"]), int(record[f"{member}_size"])
        if size > _MAX_MEMBER_BYTES:
            raise UnreadableRecordError(f"{member} of {size:,} bytes or more")
        shard = self._index.shards[record["shard"]]
        path = self.paths[record["shard"]]
        indexed = int(shard["size"]), int(shard["mtime_ns"])
        try:
            file = _open_shard(path, *indexed)
            stat = os.fstat(file.descriptor)
            data = os.pread(file.descriptor, size, offset)
        except OSError as error:
            raise UnreadableRecordError(f"{path}: {error.strerror}") from error
        if (stat.st_size, stat.st_mtime_ns) != indexed or len(data) != size:
            raise UnreadableRecordError(f"{path} has changed since it was indexed")
        return data

    def _report(self) -> None:
        shards = self._index.shards
        left_out = ("images_without_caption", "captions_without_image", "extra_images")
        totals = {name: int(shards[name].sum()) for name in (*left_out, "repeated_keys")}
        found = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in totals.items() if n)
        worst = int(np.argmax(sum(shards[name].astype(np.int64) for name in totals)))
        _logger.log(
            logging.WARNING if found else logging.INFO,
            "%s pairs in %s shards%s",
            f"{len(self):,}",
            f"{len(shards):,}",
            f"; {found} (most in {os.path.basename(self.paths[worst])})" if found else "",
        )


class _OpenShard:
    """A file descriptor, closed with its last user: another thread may read while it is evicted."""

    def __init__(self, path: str) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


@functools.lru_cache(_OPEN_SHARDS)
def _open_shard(path: str, size: int, mtime_ns: int) -> _OpenShard:
    """Size and time are in the cache's key, so that a new version of a shard is opened anew."""
    del size, mtime_ns
    return _OpenShard(path)


def _checked(index: SupportsIndex, length: int) -> int:
    index = operator.index(index)
    if not 0 <= index < length:
        raise IndexError(f"record {index} of {length:,}")
    return index


def _utf8(text: bytes) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableRecordError(f"caption is not UTF-8: {error}") from error


def _json_caption(text: bytes) -> str:
    try:
        fields = json.loads(_utf8(text))
    except (ValueError, RecursionError) as error:
        raise UnreadableRecordError(f"broken JSON: {error}") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("caption"), str):
        raise UnreadableRecordError('JSON has no text under the key "caption"')
    return fields["caption"]


def _checked_caption(caption: str) -> str:
    if not caption.strip():
        raise UnreadableRecordError("empty caption")
    try:  # JSON can name code points that no UTF-8 text holds; tokenizers stumble over them
        caption.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UnreadableRecordError("caption holds half of a surrogate pair") from error
    return caption


def _expand(patterns: Sequence[str]) -> list[str]:
    """Absolute paths of the shards, sorted."""
    paths = [path for pattern in patterns for path in _expand_one(pattern)]
    if not paths:
        raise InputError("no shards given\nexpected a path, a brace pattern, a glob, or a list")
    paths = sorted(os.path.abspath(path) for path in paths)
    for path, following in itertools.pairwise(paths):
        if path == following:
            raise InputError(f"shard given twice: {path}\nto weigh corpora, mix several sources")
    return paths


def _expand_one(pattern: str) -> Iterator[str]:
    if "://" in pattern:
        raise InputError(f"shards must be local or mounted files, not {pattern}")
    pattern = os.path.expanduser(pattern)
    if os.path.isdir(pattern):
        advice = f"expected tar files: '{os.path.join(pattern, '*.tar')}'?"
        raise InputError(f"{pattern} is a folder\n{advice}")
    if os.path.exists(pattern):  # its name may hold [ or {
        yield pattern
        return
    try:
        expanded = list(braceexpand.braceexpand(pattern))
    except ValueError as error:
        raise InputError(f"bad brace pattern {pattern}: {error}") from None
    for path in expanded:
        if glob.has_magic(path) and not os.path.exists(path):
            matches = glob.glob(path)
            if not matches:
                raise InputError(f"no shard matches {path}\nchecked from {os.getcwd()}")
            yield from matches
        else:
            yield path  # whether it exists is seen when it is indexed
