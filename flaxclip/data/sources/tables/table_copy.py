"""Rows of tables in one Arrow file, in the user's cache folder, from where all processes map it.

Neither CSV nor Parquet can be read row by row, so tables are once written anew as Arrow, in
`$XDG_CACHE_HOME` or `~/.cache`, in `flaxclip/tables`. Each copy is named by a hash of its tables'
paths, sizes and modification times. Every few rows stand in it as an Arrow stream of their own,
with its own schema: tables may differ in their columns, in types and order and categories, wherever
these are not asked for, and opening a copy of any size reads none of it.
"""

import contextlib
import csv
import hashlib
import io
import itertools
import json
import logging
import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple, cast

import numpy as np
import pyarrow as pa

from flaxclip.data.sources.shard_paths import shown
from flaxclip.data.sources.tables.parquet_batches import group_batches, open_parquet, parquet_errors
from flaxclip.data.storage.file_systems import version_of
from flaxclip.data.storage.files import cache_folder, open_to_read
from flaxclip.errors import InputError

EXTENSIONS = (".csv", ".tsv", ".parquet")
_CSV_ROWS = 2**10  # in memory at a time, while a table is copied
_FORMAT = 3  # to be raised with any change of what follows from the same tables

_logger = logging.getLogger(__name__)


class CopiedTable(NamedTuple):
    """What is known of one of the tables."""

    columns: list[str]
    rows: int
    left_out: int
    """Rows of CSV that do not have as many values as the header."""


class TableRows:
    """The rows of tables, by position. Pickled by the copy's path."""

    def __init__(self, copy: pathlib.Path) -> None:
        """Map a copy that `copy_tables` has made."""
        self._copy = copy
        described = json.loads((copy / "tables.json").read_text())
        self.tables = [CopiedTable(*fields) for fields in described]
        self._data = pa.memory_map(str(copy / "rows.arrow")).read_buffer()
        self._row_ends, self._byte_ends, self._table_of = np.load(copy / "batches.npy")

    def __reduce__(self) -> tuple[type["TableRows"], tuple[pathlib.Path]]:
        return TableRows, (self._copy,)

    def __len__(self) -> int:
        return int(self._row_ends[-1])

    def __getitem__(self, index: int) -> tuple[int, pa.RecordBatch]:
        """The number of the row's table, and the row."""
        number, first = self._batch(index)
        start = int(self._byte_ends[number - 1]) if number else 0
        stream = self._data.slice(start, int(self._byte_ends[number]) - start)
        batch = pa.ipc.open_stream(stream).read_next_batch()  # takes 30 µs, and copies nothing
        return int(self._table_of[number]), batch.slice(index - first, 1)

    def place(self, index: int) -> tuple[int, int]:
        """The number of the row's table, and that of the row in it."""
        table = int(self._table_of[self._batch(index)[0]])
        first_batch = int(np.searchsorted(self._table_of, table))
        before = int(self._row_ends[first_batch - 1]) if first_batch else 0
        return table, index - before

    def _batch(self, index: int) -> tuple[int, int]:
        """The number of the row's batch, and of the first row in that."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self):,}")
        number = int(np.searchsorted(self._row_ends, index, "right"))
        return number, int(self._row_ends[number - 1]) if number else 0


def copy_tables(paths: Sequence[str]) -> TableRows:
    """All rows of the tables: copied now, or as an earlier run left them.

    Raises:
        InputError: a table is missing, broken or without a row in any, or the cache cannot be
            written.
    """
    try:
        versions = [version_of(path) for path in paths]
        identity = hashlib.sha256(repr((_FORMAT, list(zip(paths, versions, strict=True)))).encode())
        copy = cache_folder("tables") / identity.hexdigest()[:32]
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            _logger.info("reading %s tables, once", f"{len(paths):,}")
            with tempfile.TemporaryDirectory(dir=copy.parent) as folder:
                partial = pathlib.Path(folder, "table")
                partial.mkdir()
                _write(partial, paths)
                # Another process may have been first: a folder that is not empty is not replaced.
                with contextlib.suppress(OSError):
                    partial.rename(copy)
        rows = TableRows(copy)
    except FileNotFoundError as error:
        raise InputError(f"no table {error.filename or error}\ncheck the path") from None
    except OSError as error:
        raise InputError(
            f"cannot read {shown(paths[0])}, or write its copy to {cache_folder('tables')}: "
            f"{error.strerror or error}\nto write elsewhere set XDG_CACHE_HOME"
        ) from None
    for path, table in zip(paths, rows.tables, strict=True):
        if table.left_out:
            _logger.warning(
                "%s: %s rows left out, which do not have the header's %d columns",
                shown(path),
                f"{table.left_out:,}",
                len(table.columns),
            )
    return rows


def _write(folder: pathlib.Path, paths: Sequence[str]) -> None:
    """Write `rows.arrow`, its batches' positions ([3, batches] rows, bytes, number of table), and
    `tables.json`.
    """
    rows, ends, tables = 0, [], []
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as file:
        for number, path in enumerate(paths):
            table = CopiedTable([], 0, 0)
            for batch, left_out in _batches(path):
                table = CopiedTable(
                    batch.schema.names, table.rows + batch.num_rows, table.left_out + left_out
                )
                if batch.num_rows:
                    with pa.ipc.new_stream(file, batch.schema) as stream:
                        stream.write_batch(batch)
                    ends.append((rows + table.rows, file.tell(), number))
            rows += table.rows
            tables.append(table)
    if not rows:
        raise InputError(f"no rows in {shown(paths[0])}\nleave the table out")
    np.save(folder / "batches.npy", np.array(ends, np.int64).T)
    (folder / "tables.json").write_text(json.dumps(tables))


def _batches(path: str) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Some rows at a time, and how many among them are left out."""
    read = _parquet_batches if path.endswith(".parquet") else _csv_batches
    with open_to_read(path) as file:
        try:
            yield from read(path, file)
        except (csv.Error, UnicodeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{shown(path)} is no table: {reason}\nexpected {', '.join(EXTENSIONS)}"
            ) from None


def _parquet_batches(path: str, file: io.IOBase) -> Iterator[tuple[pa.RecordBatch, int]]:
    if not file.seek(0, os.SEEK_END):
        return  # reported where the rows are counted
    with parquet_errors(path):
        table = open_parquet(cast(BinaryIO, file))
        for group in range(table.num_row_groups):
            for batch in group_batches(table, group):
                yield _without_categories(batch), 0


def _without_categories(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Replace category codes by their values: otherwise every batch would hold all categories."""
    columns = [
        column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else column
        for column in batch.columns
    ]
    return pa.record_batch(columns, batch.schema.names)


def _csv_batches(path: str, file: io.IOBase) -> Iterator[tuple[pa.RecordBatch, int]]:
    # Not pyarrow's reader, which loses rows that are neither whole nor UTF-8 without a word. Bytes
    # that are not UTF-8 are kept, and refused row by row: one of them must not spoil the table.
    with io.TextIOWrapper(cast(BinaryIO, file), "utf-8-sig", "surrogateescape", newline="") as text:
        reader = csv.reader(text, delimiter="\t" if path.endswith(".tsv") else ",")
        names = next(reader, [])
        if len(set(names)) < len(names):
            raise InputError(
                f"{shown(path)} has two columns of one name: {', '.join(names)}\nrename"
            )
        schema = pa.schema([(name, pa.binary()) for name in names])
        while lines := list(itertools.islice(reader, _CSV_ROWS)):
            rows = [line for line in lines if len(line) == len(names)]
            columns = [
                pa.array(
                    [value.encode("utf-8", "surrogateescape") for value in column], pa.binary()
                )
                for column in list(zip(*rows, strict=True)) or [()] * len(names)
            ]
            # An empty line is no row.
            left_out = sum(bool(line) and len(line) != len(names) for line in lines)
            yield pa.record_batch(columns, schema), left_out
