"""The index of tar shards: which shard each pair is in, and at which of its bytes.

Its table, some 150 bytes a shard, is mapped into memory; entries and keys, some 60 bytes a pair,
are read when they are asked for, from disk or by ranges from object storage. So opening an index
takes as long, and as much memory, whether there are a thousand pairs in a shard or a million.
"""

import functools
import os
import posixpath
from collections.abc import Sequence

import numpy as np

from flaxclip.data.sources.left_out import MEMBER_REASONS
from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.data.sources.tars.index.index_storage import can_list, join_path, list_files, resolve
from flaxclip.data.sources.tars.index.index_table import Piece, shards_and_pieces
from flaxclip.data.sources.tars.tar_scan import COUNTS, ENTRY, ShardScan
from flaxclip.data.storage.file_systems import is_remote
from flaxclip.data.storage.files import cache_folder
from flaxclip.data.storage.range_cache import RangeCache
from flaxclip.data.storage.ranged_reads import Extent, OpenFile
from flaxclip.errors import InputError

PIECES = "pieces"
# Bytes of a piece in object storage that are fetched together: more if all are kept.
_BLOCK, _KEPT_BLOCK = 2**16, 2**20
_CACHE_BYTES = 2**30  # on the host's disk
_BLOCKS = 16  # kept in each process
_OPEN_PIECES = 64  # kept open in each process


class PairIndex:
    """Where the members of each pair are.

    Pairs are numbered shard by shard, in the order of their first members.
    """

    def __init__(self, shards: np.ndarray, pieces: Sequence[Piece]) -> None:
        """Open the pieces of a table.

        Args:
            shards: [shards] of `index_table.SHARD`.
            pieces: by their number, with whole paths; without a path, if it is not known yet.

        Raises:
            ValueError: a piece on this disk is not as long as it was.
            OSError: a piece cannot be read.
        """
        self.shards = shards
        self._pieces = list(pieces)
        remote = sum(piece.size for piece in self._pieces if is_remote(piece.path))
        self._block = _KEPT_BLOCK if remote <= _CACHE_BYTES else _BLOCK
        self._states = [piece_state(piece) for piece in self._pieces]
        here = [number for number, state in enumerate(self._states) if state]
        # An open file stays, whatever becomes of the folder.
        self._opened = {number: self._open(number) for number in here[:_OPEN_PIECES]}
        # Of their own: the table's columns do not lie together.
        self._ends = np.cumsum(self.shards["pairs"], dtype=np.int64)
        self._starts = self._ends - self.shards["pairs"]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def shard_of(self, number: int) -> int:
        """The number of the shard that holds a pair."""
        return int(self._ends.searchsorted(number, "right"))

    def number_in_shard(self, number: int) -> int:
        """A pair's number within its shard."""
        return number - int(self._starts[self.shard_of(number)])

    def entries(self, first: int, last: int) -> np.ndarray:
        """[last - first] of `ENTRY`, of pairs `first` up to `last`; they may lie in several shards.

        Their `key_end` counts within the keys of their shard.

        Raises:
            IndexError: there are not so many pairs.
            InputError: the index cannot be read, or is damaged.
        """
        if not 0 <= first <= last <= len(self):
            raise IndexError(f"pairs {first} to {last} of {len(self):,}")
        parts, shard = [np.zeros(0, ENTRY)], self.shard_of(first)
        while first < last:
            stop = min(last, int(self._ends[shard]))
            if first < stop:
                parts.append(self._entries_of(shard, first, stop))
            first, shard = stop, shard + 1
        return np.concatenate(parts[1:]) if len(parts) > 2 else parts[-1]

    def entry(self, number: int) -> np.void:
        """The `ENTRY` of one pair; raises as `entries` does."""
        return self.entries(number, number + 1)[0]

    def key(self, number: int) -> str:
        """The key of one pair, with folders where the tar has them; raises as `entries` does."""
        shard = self.shard_of(number)
        is_first = number == self._starts[shard]
        ends = self.entries(number - (not is_first), number + 1)["key_end"].tolist()
        start, end = (0, ends[-1]) if is_first else ends
        row = self.shards[shard]
        data = self._read(int(row["piece"]), int(row["keys_at"]) + start, end - start)
        return data.decode("utf-8", "replace")

    def scan_of(self, shard: int) -> ShardScan:
        """What is in one shard, as `scan_shard` has found it; raises as `entries` does."""
        row, last = self.shards[shard], int(self._ends[shard])
        entries = self.entries(int(self._starts[shard]), last)
        entries["shard"] = 0
        keys = self._read(int(row["piece"]), int(row["keys_at"]), int(row["keys_size"]))
        return ShardScan(
            entries, keys, {name: int(row[name]) for name in (*COUNTS, *MEMBER_REASONS)}
        )

    def _row(self, shard: int) -> np.void:
        """The row of a shard whose piece is known."""
        return self.shards[shard]

    def _entries_of(self, shard: int, first: int, last: int) -> np.ndarray:
        row = self._row(shard)
        start = int(row["entries_at"]) + (first - int(self._starts[shard])) * ENTRY.itemsize
        data = self._read(int(row["piece"]), start, (last - first) * ENTRY.itemsize)
        entries = np.frombuffer(bytearray(data), ENTRY)
        ends = entries["image_offset"] + entries["image_size"]
        # A flipped bit would read other bytes.
        if (ends > row["size"]).any() or (entries["key_end"] > row["keys_size"]).any():
            raise _damaged(self._pieces[int(row["piece"])].path)
        entries["shard"] = shard
        return entries

    def _open(self, number: int) -> OpenFile:
        return _open_piece(self._pieces[number].path, self._states[number])

    def _read(self, number: int, start: int, size: int) -> bytes:
        piece = self._pieces[number]
        try:
            if not is_remote(piece.path):
                file = self._opened.get(number) or self._open(number)
                data = os.pread(file.descriptor, size, start)
            else:
                length = self._block
                blocks = range(start // length, -(-(start + size) // length))
                joined = b"".join(_fetch_block(piece, block, length) for block in blocks)
                data = joined[start - blocks.start * length :][:size]
        except UnreadableExampleError as error:
            raise InputError(f"cannot read the index of the shards: {error}") from None
        except OSError as error:
            reason = error.strerror or error
            raise InputError(
                f"cannot read the index of the shards: {piece.path}: {reason}"
            ) from None
        if len(data) != size:
            raise _damaged(piece.path)
        return data


class TarIndex(PairIndex):
    """The index of shards that have all been scanned.

    A copy sent to another process carries the index's place, not its contents.
    """

    def __init__(self, path: str) -> None:
        """Open a table on this machine's disk.

        Raises:
            ValueError: it is damaged, or one of its pieces on this disk is not as long as it was.
            OSError: it, or a piece, cannot be read.
        """
        self.path = path
        if not os.path.getsize(path):
            raise ValueError(f"{path} is empty")
        shards, pieces = shards_and_pieces(np.memmap(path, np.uint8, mode="r"))
        folder = join_path(os.path.dirname(path), PIECES)
        super().__init__(shards, [Piece(resolve(folder, name), size) for name, size in pieces])

    def check_remote_pieces(self) -> None:
        """Look whether the pieces in object storage are there.

        Raises:
            ValueError: one is not, or is not as long as it was.
            OSError: they cannot be listed.
        """
        remote = [piece for piece in self._pieces if is_remote(piece.path)]
        remote = [piece for piece in remote if can_list(piece.path)]
        folders = {posixpath.dirname(piece.path) for piece in remote}
        found = {folder: list_files(folder) for folder in folders}
        for path, size in remote:
            folder, name = posixpath.split(path)
            if found[folder].get(name, {}).get("size") != size:
                raise ValueError(f"{path} is not there any more, or not whole")

    def __reduce__(self) -> tuple[type["TarIndex"], tuple[str]]:
        return TarIndex, (self.path,)


def piece_state(piece: Piece) -> tuple[int, ...]:
    """What tells that a piece on this disk is the same; empty for others.

    Raises:
        ValueError: it is not as long as it was.
        OSError: it cannot be read.
    """
    if is_remote(piece.path) or not piece.path:
        return ()
    stat = os.stat(piece.path)
    if stat.st_size != piece.size:
        raise ValueError(f"{piece.path} has {stat.st_size:,} bytes, not {piece.size:,}")
    return stat.st_ino, stat.st_mtime_ns


@functools.lru_cache(_OPEN_PIECES)
def _open_piece(path: str, state: tuple[int, ...]) -> OpenFile:
    """The state is in the cache's key, so that a piece which was written again is opened anew."""
    del state
    return OpenFile(path)


@functools.lru_cache(_BLOCKS)
def _fetch_block(piece: Piece, number: int, length: int) -> bytes:
    end = min((number + 1) * length, piece.size)
    extent = Extent(piece.path, number * length, end, None)
    return _block_cache().read(extent, extent.start, extent.end)


@functools.cache
def _block_cache() -> RangeCache:
    """For all processes of the host: each reads entries of all runs."""
    return RangeCache(str(cache_folder("tar_index_blocks")), _CACHE_BYTES)


def _damaged(path: str) -> InputError:
    return InputError(
        f"the index of the shards is damaged: {path}\n"
        "delete the file; the shards that it is of are then indexed again"
    )
