"""A folder of an index of tar shards, on disk or in object storage: pieces, and their tables.

    FOLDER/table                  of all shards, written last; see `index_table`
    FOLDER/pieces/NAME            entries and keys of some shards
    FOLDER/pieces/NAME.table      table of these shards, written after the piece

A piece is named by a hash of its contents and never changes. So whoever is killed while indexing
leaves pieces that count, several can index into one folder at once, and what runs is not disturbed.
"""

import dataclasses
import hashlib
import logging
import posixpath
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from flaxclip.data.sources.tars.index.index_storage import (
    can_list,
    exists,
    join_path,
    list_files,
    read_whole,
    relative_to,
    resolve,
    write_whole,
)
from flaxclip.data.sources.tars.index.index_table import SHARD, Piece, Table
from flaxclip.data.sources.tars.tar_scan import ENTRY, ShardScan
from flaxclip.data.storage.file_systems import Version
from flaxclip.errors import InputError

TABLE = "table"
PIECES = "pieces"
_SUFFIX = ".table"

_logger = logging.getLogger(__name__)


class ScannedShard(NamedTuple):
    """A shard, its state when it was scanned, and what is in it."""

    path: str
    version: Version
    scan: ShardScan


@dataclasses.dataclass(frozen=True)
class IndexFolder:
    """The folder; it need not exist yet. Methods raise `OSError`, or an error of its storage."""

    path: str
    """Absolute, or a URL."""

    def place(self, *names: str) -> str:
        """The path of a file in the folder."""
        return join_path(self.path, *names)

    def holds_index(self) -> bool:
        """True if there is anything of an index in the folder."""
        return exists(self.place(TABLE)) or bool(list_files(self.place(PIECES)))

    def read_published(self) -> Table | None:
        """The table of all shards, as `read_tables` gives it."""
        table = self._read_table(TABLE)
        return None if table is None else self._whole(table, list_files(self.place(PIECES)))

    def read_tables(self, seen: set[str] | None = None) -> list[Table]:
        """The tables in the folder, and those of pieces that they do not name.

        Pieces have whole paths. What is damaged is left out, with a warning; so are shards whose
        pieces are elsewhere, without one.

        Args:
            seen: names of tables that need not be read; those that are read are added.
        """
        seen = set() if seen is None else seen
        found = list_files(self.place(PIECES))
        names = [name for name in list_files(self.path) if name.endswith(_SUFFIX)]
        published = self._read_new([(TABLE,), *((name,) for name in sorted(names))], seen)
        named = {piece.path for table in published for piece in table.pieces}
        names = [name for name in found if name.endswith(_SUFFIX)]
        names = [name for name in names if name.partition("-")[0] not in named]
        tables = published + self._read_new([(PIECES, name) for name in sorted(names)], seen)
        return [self._whole(table, found) for table in tables]

    def _read_new(self, names: Sequence[tuple[str, ...]], seen: set[str]) -> list[Table]:
        names = [name for name in names if name[-1] not in seen]
        with ThreadPoolExecutor(32) as pool:  # in object storage each is a request
            tables = list(pool.map(lambda name: self._read_table(*name), names))
        read = [(name, table) for name, table in zip(names, tables, strict=True) if table]
        seen.update(name[-1] for name, _ in read)
        return [table for _, table in read]

    def _read_table(self, *names: str) -> Table | None:
        path = self.place(*names)
        try:
            return Table.from_bytes(read_whole(path))
        except FileNotFoundError:
            return None
        except ValueError as error:
            _logger.warning("index %s is left out: %s", path, error)
            return None

    def _whole(self, table: Table, found: Mapping[str, Mapping[str, Any]]) -> Table:
        """With pieces' whole paths, and without the shards whose piece is gone or cut off."""
        pieces = tuple(
            Piece(resolve(self.place(PIECES), name), size) for name, size in table.pieces
        )
        broken = [
            number
            for number, (name, size) in enumerate(table.pieces)
            if can_list(self.path) and found.get(name, {}).get("size") != size
        ]
        rows = np.flatnonzero(~np.isin(table.shards["piece"], broken))
        inside = [pieces[number].path for number in broken if "/" not in table.pieces[number].path]
        if inside:
            _logger.warning(
                "index %s: %s of %s pieces are not there, or not whole: first %s",
                *(self.path, f"{len(inside):,}", f"{len(pieces):,}", inside[0]),
            )
        names = tuple(table.names[row] for row in rows.tolist())
        return table._replace(shards=table.shards[rows], pieces=pieces, names=names)

    def write_piece(self, shards: Sequence[ScannedShard], root: str) -> Table:
        """Write what is in some shards; returns their table, with whole paths."""
        rows = np.zeros(len(shards), SHARD)
        entries = [shard.scan.entries for shard in shards]
        keys = [shard.scan.keys for shard in shards]
        data = b"".join([*(array.tobytes() for array in entries), *keys])
        sizes = np.array([len(array) * ENTRY.itemsize for array in entries])
        rows["entries_at"] = np.cumsum(sizes) - sizes
        rows["keys_size"] = lengths = np.array([len(text) for text in keys])
        rows["keys_at"] = sizes.sum() + np.cumsum(lengths) - lengths
        for row, shard in zip(rows, shards, strict=True):
            row["size"], row["mtime_ns"] = shard.version
            for name, count in shard.scan.counts.items():
                row[name] = count
        name = _name_of(data)
        names = tuple(relative_to(root, shard.path) for shard in shards)
        table = Table(rows, (Piece(name, len(data)),), names, root)
        write_whole(self.place(PIECES, name), data)
        # Of other shards with the same contents, the piece may be the same.
        packed = table.to_bytes()
        mark = hashlib.sha256(packed).hexdigest()[:8]
        write_whole(self.place(PIECES, f"{name}-{mark}{_SUFFIX}"), packed)
        paths = tuple(shard.path for shard in shards)
        return Table(rows, (Piece(self.place(PIECES, name), len(data)),), paths, "")

    def copy_piece(self, piece: Piece) -> Piece:
        """Copy a piece of another index here.

        Raises:
            InputError: it is damaged.
        """
        name = posixpath.basename(piece.path)
        data = read_whole(piece.path)
        if _name_of(data) != name:
            raise InputError(
                f"the index of the shards is damaged: {piece.path}\n"
                "delete the file, and index its shards again with flaxclip.data.index"
            )
        write_whole(self.place(PIECES, name), data)
        return Piece(self.place(PIECES, name), piece.size)

    def publish(self, table: Table, root: str, name: str = TABLE) -> str:
        """Write a table of whole paths, all of whose pieces may be here or elsewhere.

        Returns its path.
        """
        beside = self.place(PIECES, "")
        pieces = tuple(
            Piece(path.removeprefix(beside), size) if path.startswith(beside) else Piece(path, size)
            for path, size in table.pieces
        )
        names = tuple(relative_to(root, path) for path in table.names)
        path = self.place(name)
        write_whole(path, Table(table.shards, pieces, names, root).to_bytes())
        return path


def _name_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
