"""The table of an index of tar shards: what is known of each shard, and where its entries are.

A table is a file: a header, `SHARD` for each shard, then JSON: the pieces, and the shards' names.
It takes some 150 bytes a shard, so that it is read whole, or mapped into memory. The entries and
keys of all pairs, thousands of times as large, lie in pieces, which are read by ranges: a piece is
a file with the entries of some shards, shard after shard, followed by their keys.
"""

import functools
import json
import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flaxclip.data.sources.left_out import MEMBER_REASONS
from flaxclip.data.sources.tars.tar_scan import COUNTS

SHARD = np.dtype(
    [
        ("size", "<u8"),  # bytes, when indexed
        ("mtime_ns", "<i8"),
        *((name, "<u4") for name in (*COUNTS, *MEMBER_REASONS)),
        ("piece", "<u4"),  # number of the piece that holds its entries and keys
        ("entries_at", "<u8"),  # byte of the piece
        ("keys_at", "<u8"),
        ("keys_size", "<u8"),
    ]
)
FORMAT = 3  # to be raised with any change of what follows from the same shards
_MAGIC = b"flaxclip tars %03d" % FORMAT
_HEADER = struct.Struct(f"<{len(_MAGIC)}sIQQQ")  # magic, CRC of what follows, shards, and two sizes


class Piece(NamedTuple):
    """A file of entries and keys."""

    path: str
    """Absolute, or a URL; or the name alone, of a file among the pieces beside the table."""
    size: int


class Table(NamedTuple):
    """What an index has of its shards."""

    shards: np.ndarray
    """[shards] of `SHARD`."""
    pieces: tuple[Piece, ...]
    names: tuple[str, ...]
    """Paths of the shards, relative to `root` where they lie below it."""
    root: str
    """The folder of the corpus when it was indexed; it may have moved."""

    def to_bytes(self) -> bytes:
        """The contents of a table's file."""
        shards = self.shards.tobytes()
        pieces = json.dumps(self.pieces).encode()
        names = json.dumps({"root": self.root, "names": self.names}).encode()
        crc = functools.reduce(lambda crc, part: zlib.crc32(part, crc), (shards, pieces, names), 0)
        header = _HEADER.pack(_MAGIC, crc, len(self.shards), len(pieces), len(names))
        return b"".join((header, shards, pieces, names))

    @classmethod
    def from_bytes(cls, data: bytes | np.ndarray) -> "Table":
        """Read a table; of an array in memory, the shards are a view.

        Raises:
            ValueError: it is damaged, or of another format.
        """
        shards, pieces, names = _parts(data)
        named = json.loads(names.tobytes())
        return cls(shards, _pieces(pieces), tuple(named["names"]), named["root"])


def shards_and_pieces(data: np.ndarray) -> tuple[np.ndarray, tuple[Piece, ...]]:
    """Those parts of a table that its pairs are found by, without its shards' names.

    Raises:
        ValueError: it is damaged, or of another format.
    """
    shards, pieces, _ = _parts(data)
    return shards, _pieces(pieces)


def _parts(data: bytes | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    data = np.frombuffer(data, np.uint8)
    if len(data) < _HEADER.size:
        raise ValueError(f"a table of {len(data)} bytes")
    magic, crc, shards, pieces, names = _HEADER.unpack(data[: _HEADER.size].tobytes())
    if magic != _MAGIC:
        raise ValueError("no table of an index, or one of another version of flaxclip")
    rest = data[_HEADER.size :]
    ends = np.cumsum([shards * SHARD.itemsize, pieces, names]).tolist()
    if len(rest) != ends[-1] or zlib.crc32(rest.data) != crc:
        raise ValueError("a damaged table: its checksum is another")
    return rest[: ends[0]].view(SHARD), rest[ends[0] : ends[1]], rest[ends[1] :]


def _pieces(data: np.ndarray) -> tuple[Piece, ...]:
    return tuple(Piece(path, size) for path, size in json.loads(data.tobytes()))


def join_tables(tables: Sequence[Table], rows: np.ndarray, names: Sequence[str]) -> Table:
    """A table of the shards that `rows` names: [shards, 2] of a table and a row of it.

    Pieces must have whole paths; so have `names`, the shards'.
    """
    numbers: dict[Piece, int] = {}
    shards = np.zeros(len(rows), SHARD)
    for number, table in enumerate(tables):
        places = np.flatnonzero(rows[:, 0] == number)
        taken = table.shards[rows[places, 1]]
        used = np.unique(taken["piece"]).tolist()
        renumbered = {old: numbers.setdefault(table.pieces[old], len(numbers)) for old in used}
        taken["piece"] = [renumbered[old] for old in taken["piece"].tolist()]
        shards[places] = taken
    return Table(shards, tuple(numbers), tuple(names), "")
