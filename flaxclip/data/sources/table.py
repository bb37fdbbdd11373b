"""Tables of images and captions: CSV, TSV or Parquet, one row an example.

The images stand in a column of paths or URLs, relative ones below the folder of their table; in
Parquet also as bytes, alone or as Hugging Face datasets store them ({bytes, path}).

Neither CSV nor Parquet can be read row by row, so a table is once written anew as Arrow, in the
user's cache folder (`$XDG_CACHE_HOME` or `~/.cache`, in `flaxclip/tables`), and mapped into memory
from there by all processes. Each copy is named by a hash of its tables' paths, sizes and
modification times. Every few rows stand in it as an Arrow stream of their own, with its own schema:
tables may differ in their columns, in types and order and categories, wherever these are not asked
for, and opening a copy of any size reads none of it.
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
import posixpath
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa

from flaxclip.data.sources.captions import DEFAULT_CAPTIONS, CaptionConfig, make_captions, utf8
from flaxclip.data.sources.empty_shards import check_empty_shards
from flaxclip.data.sources.folder import MAX_IMAGE_BYTES
from flaxclip.data.sources.parquet_batches import (
    NO_BYTES,
    group_batches,
    open_parquet,
    parquet_errors,
)
from flaxclip.data.sources.shard_paths import expand_shards, shown
from flaxclip.data.sources.source import Pair, UnreadableExampleError
from flaxclip.data.sources.storage import (
    cache_folder,
    is_remote,
    open_to_read,
    read_file,
    version_of,
)
from flaxclip.errors import InputError

EXTENSIONS = (".csv", ".tsv", ".parquet")
_IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_path", "file_name", "filename", "path")
_CAPTION_COLUMNS = ("caption", "text", "title")
_CSV_ROWS = 2**10  # in memory at a time, while a table is copied
_FORMAT = 2  # to be raised with any change of what follows from the same tables

_logger = logging.getLogger(__name__)


class TableSource:
    """A `Source` over the rows of tables that have the columns asked for; others may differ."""

    def __init__(
        self,
        tables: str | Sequence[str],
        image_key: str | None = None,
        captions: CaptionConfig = DEFAULT_CAPTIONS,
        allow_empty_shards: bool = False,
    ) -> None:
        """Copy the tables into the cache, or open the copy that is there.

        Args:
            tables: paths, brace patterns or globs.
            image_key: column of the images. If None, the one that has a usual name.
            captions: columns of the captions.
            allow_empty_shards: go on where Parquet files have 0 bytes. Whole tables that have no
                rows are only counted, always.

        Raises:
            InputError: a table is missing, empty or broken, or has no such column; or the first has
                no usual one, or several.
        """
        self.paths = expand_shards([tables] if isinstance(tables, str) else tables, "csv")
        self._captions = captions
        self._copy = _copy_once(self.paths)
        self._open()
        self._columns = json.loads((self._copy / "columns.json").read_text())
        self._check_empty(allow_empty_shards)
        self._image_key = image_key or self._find("image", _IMAGE_COLUMNS, "--data.image-key")
        keys = captions.keys or [self._find("caption", _CAPTION_COLUMNS, "--data.captions.keys")]
        self._caption_keys = tuple(keys)
        for table in range(len(self.paths)):
            for column in (self._image_key, *self._caption_keys):
                # A table without rows has no columns here.
                if self._columns[table] and column not in self._columns[table]:
                    raise InputError(f"no column {column!r} in {self._described(table)}")

    def __len__(self) -> int:
        return int(self._row_ends[-1])

    def __getitem__(self, index: int) -> Pair:
        table, row = self._read(index)
        return Pair(self._image(table, row), *self._captions_of(row))

    def captions(self, index: int) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
        """The captions alone, with weights: they may exist although the image is missing."""
        return self._captions_of(self._read(index)[1])

    def _captions_of(self, row: pa.RecordBatch) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
        fields = _values(row, self._caption_keys)
        return make_captions(fields, self._captions, self._caption_keys)

    def fields(self, index: int) -> dict[str, Any]:
        """The columns of the row, without images that are stored in it."""
        table, row = self._read(index)
        from_csv = not self.paths[table].endswith(".parquet")
        # CSV's columns are all bytes, and the column of images holds paths.
        columns = [field.name for field in row.schema if from_csv or not _is_image(field.type)]
        # What JSON does not have, such as dates, is written as text.
        return json.loads(json.dumps(_values(row, columns), default=str))

    def name(self, index: int) -> str:
        """Table and number of the row, from 0, e.g. `captions.csv/17`."""
        table = self._read(index)[0]
        first = int(np.searchsorted(self._tables, table))  # of its batches
        before = int(self._row_ends[first - 1]) if first else 0
        return f"{posixpath.basename(self.paths[table])}/{index - before}"

    def __getstate__(self) -> dict[str, Any]:
        kept = ("paths", "_captions", "_copy", "_image_key", "_caption_keys")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def _open(self) -> None:
        self._data = pa.memory_map(str(self._copy / "rows.arrow")).read_buffer()
        self._row_ends, self._byte_ends, self._tables = np.load(self._copy / "batches.npy")

    def _read(self, index: int) -> tuple[int, pa.RecordBatch]:
        """Read the number of the row's table, and the row."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self):,}")
        number = int(np.searchsorted(self._row_ends, index, "right"))
        row, start = index, 0
        if number:
            row, start = index - int(self._row_ends[number - 1]), int(self._byte_ends[number - 1])
        stream = self._data.slice(start, int(self._byte_ends[number]) - start)
        batch = pa.ipc.open_stream(stream).read_next_batch()  # takes 30 µs, and copies nothing
        return int(self._tables[number]), batch.slice(row, 1)

    def _check_empty(self, allow_empty_shards: bool) -> None:
        pairs = zip(self.paths, self._columns, strict=True)
        empty = [(path, version_of(path).size) for path, columns in pairs if not columns]
        self.empty_shards = len(empty)
        # A header says that there are no rows; a file of 0 bytes says nothing.
        unsaid = any(path.endswith(".parquet") and not size for path, size in empty)
        check_empty_shards(empty, len(self.paths), allow_empty_shards or not unsaid)

    def _image(self, table: int, row: pa.RecordBatch) -> bytes:
        value, hint = row.column(self._image_key)[0].as_py(), ""
        if isinstance(value, dict):
            hint = f"; {NO_BYTES}"
            value = value.get("bytes") or value.get("path")
        elif isinstance(value, bytes) and not self.paths[table].endswith(".parquet"):
            value = utf8(value)
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str) or not value:
            raise UnreadableExampleError(f"no image in column {self._image_key!r}")
        if not is_remote(value):
            value = posixpath.join(posixpath.dirname(self.paths[table]), value)
        try:
            return read_file(value, MAX_IMAGE_BYTES)
        except UnreadableExampleError as error:
            raise UnreadableExampleError(f"{error}{hint}") from error

    def _find(self, what: str, usual: Sequence[str], flag: str) -> str:
        table = int(self._tables[0])  # the first that has rows
        found = [name for name in self._columns[table] if name in usual]
        if len(found) == 1:
            return found[0]
        number = "several columns" if found else "no column"
        raise InputError(
            f"{number} named as those of {what}s are: {self._described(table)}\n"
            f"looked for {', '.join(usual)}; name it with {flag}"
        )

    def _described(self, table: int) -> str:
        return f"{shown(self.paths[table])}, which has: {', '.join(self._columns[table])}"


def _values(row: pa.RecordBatch, columns: Sequence[str]) -> dict[str, Any]:
    values = row.select(columns).to_pylist()[0]
    return {
        name: utf8(value) if isinstance(value, bytes) else value for name, value in values.items()
    }


def _is_image(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _copy_once(paths: Sequence[str]) -> pathlib.Path:
    """The folder with all rows of the tables as Arrow, and how many rows each has."""
    try:
        versions = [version_of(path) for path in paths]
        identity = hashlib.sha256(repr((_FORMAT, list(zip(paths, versions, strict=True)))).encode())
        copy = cache_folder("tables") / identity.hexdigest()[:32]
        if not (copy / "ends.json").exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            _logger.info("reading %s tables, once", f"{len(paths):,}")
            with tempfile.TemporaryDirectory(dir=copy.parent) as folder:
                partial = pathlib.Path(folder, "table")
                partial.mkdir()
                _write(partial, paths)
                # Another process may have been first: a folder that is not empty is not replaced.
                with contextlib.suppress(OSError):
                    partial.rename(copy)
        return copy
    except FileNotFoundError as error:
        raise InputError(f"no table {error.filename or error}\ncheck the path") from None
    except OSError as error:
        raise InputError(
            f"cannot read {shown(paths[0])}, or write its copy to {cache_folder('tables')}: "
            f"{error.strerror or error}\nto write elsewhere set XDG_CACHE_HOME"
        ) from None


def _write(folder: pathlib.Path, paths: Sequence[str]) -> None:
    """Write `rows.arrow`, and its batches' positions: [3, batches] rows, bytes, number of table."""
    rows, ends, columns = 0, [], []
    with pa.OSFile(str(folder / "rows.arrow"), "wb") as file:
        for table, path in enumerate(paths):
            names = []
            for batch in _batches(path):
                with pa.ipc.new_stream(file, batch.schema) as stream:
                    stream.write_batch(batch)
                rows, names = rows + batch.num_rows, batch.schema.names
                ends.append((rows, file.tell(), table))
            columns.append(names)
    if not rows:
        raise InputError(f"no rows in {shown(paths[0])}\nleave the table out")
    np.save(folder / "batches.npy", np.array(ends, np.int64).T)
    (folder / "columns.json").write_text(json.dumps(columns))


def _batches(path: str) -> Iterator[pa.RecordBatch]:
    read = _parquet_batches if path.endswith(".parquet") else _csv_batches
    with open_to_read(path) as file:
        try:
            yield from read(path, file)
        except (csv.Error, UnicodeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{shown(path)} is no table: {reason}\nexpected {', '.join(EXTENSIONS)}"
            ) from None


def _parquet_batches(path: str, file: io.IOBase) -> Iterator[pa.RecordBatch]:
    if not file.seek(0, os.SEEK_END):
        return  # reported where the rows are counted
    with parquet_errors(path):
        table = open_parquet(cast(BinaryIO, file))
        for group in range(table.num_row_groups):
            for batch in group_batches(table, group):
                yield _without_categories(batch)


def _without_categories(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Replace category codes by their values: otherwise every batch would hold all categories."""
    columns = [
        column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else column
        for column in batch.columns
    ]
    return pa.record_batch(columns, batch.schema.names)


def _csv_batches(path: str, file: io.IOBase) -> Iterator[pa.RecordBatch]:
    # Not pyarrow's reader, which loses rows that are neither whole nor UTF-8 without a word. Bytes
    # that are not UTF-8 are kept, and refused row by row: one of them must not spoil the table.
    text = io.TextIOWrapper(cast(BinaryIO, file), "utf-8-sig", "surrogateescape", newline="")
    reader = csv.reader(text, delimiter="\t" if path.endswith(".tsv") else ",")
    names = next(reader, [])
    if len(set(names)) < len(names):
        raise InputError(f"{shown(path)} has two columns of one name: {', '.join(names)}\nrename")
    schema = pa.schema([(name, pa.binary()) for name in names])
    left_out = 0
    while lines := list(itertools.islice(reader, _CSV_ROWS)):
        rows = [line for line in lines if len(line) == len(names)]
        # An empty line is no row.
        left_out += sum(bool(line) and len(line) != len(names) for line in lines)
        columns = [
            pa.array([value.encode("utf-8", "surrogateescape") for value in column], pa.binary())
            for column in zip(*rows, strict=True)
        ]
        if rows:
            yield pa.record_batch(columns, schema)
    if left_out:
        _logger.warning(
            "%s: %s rows left out, which do not have the header's %d columns",
            shown(path),
            f"{left_out:,}",
            len(names),
        )
