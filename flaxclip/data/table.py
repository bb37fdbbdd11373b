"""Tables of pictures and captions: CSV, TSV or Parquet, one row a record.

The pictures stand in a column of paths or URLs, relative ones below the folder of their table; in
Parquet also as bytes, alone or as Hugging Face datasets store them ({bytes, path}).

Neither CSV nor Parquet can be read row by row, so a table is once written anew as Arrow, in the
user's cache folder (`$XDG_CACHE_HOME` or `~/.cache`, in `flaxclip/tables`), and mapped into memory
from there by all processes. Each copy is named by a hash of its tables' paths, sizes and
modification times.
"""

import bisect
import contextlib
import csv
import hashlib
import io
import itertools
import json
import logging
import pathlib
import posixpath
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from flaxclip.data.captions import DEFAULT_CAPTIONS, CaptionConfig, make_captions, utf8
from flaxclip.data.folder import MAX_IMAGE_BYTES
from flaxclip.data.shard_paths import expand_shards, shown
from flaxclip.data.source import Pair, UnreadableRecordError
from flaxclip.data.storage import (
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
_CSV_ROWS = 2**14  # in memory at a time, while a table is copied
_FORMAT = 1  # to be raised with any change of what follows from the same tables

_logger = logging.getLogger(__name__)


class TableSource:
    """A `Source` over the rows of tables that have the same columns."""

    def __init__(
        self,
        tables: str | Sequence[str],
        image_key: str | None = None,
        captions: CaptionConfig = DEFAULT_CAPTIONS,
    ) -> None:
        """Copy the tables into the cache, or open the copy that is there.

        Args:
            tables: paths, brace patterns or globs.
            image_key: column of the pictures. None: the one that has a usual name.
            captions: columns of the captions.

        Raises:
            InputError: a table is missing or broken, tables differ in their columns, or there is no
                such column, or no usual one, or several.
        """
        self.paths = expand_shards([tables] if isinstance(tables, str) else tables, "csv")
        self._captions = captions
        self._copy = _copy_once(self.paths)
        self._open()
        self._image_key = image_key or self._find("image", _IMAGE_COLUMNS, "--data.image-key")
        keys = captions.keys or [self._find("caption", _CAPTION_COLUMNS, "--data.captions.keys")]
        self._caption_keys = tuple(keys)
        for column in (self._image_key, *self._caption_keys):
            if column not in self._table.column_names:
                raise InputError(f"no column {column!r} in {self._described()}")

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, index: int) -> Pair:
        captions = self.captions(index)
        return Pair(self._image(index), *captions)

    def captions(self, index: int) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
        """The captions alone, with weights: they may be there while the image is not."""
        fields = self._values(index, self._caption_keys)
        return make_captions(fields, self._captions, self._caption_keys)

    def fields(self, index: int) -> dict[str, Any]:
        """The columns of the row, without pictures that are stored in it."""
        kinds = dict(zip(self._table.column_names, self._table.schema.types, strict=True))
        columns = [name for name, kind in kinds.items() if not self._is_picture(name, kind)]
        # What JSON does not have, such as dates, is written as text.
        return json.loads(json.dumps(self._values(index, columns), default=str))

    def name(self, index: int) -> str:
        """Table and number of the row, from 0, e.g. `captions.csv/17`."""
        number, row = self._locate(index)
        return f"{posixpath.basename(self.paths[number])}/{row}"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_table"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def _open(self) -> None:
        self._table = pa.ipc.open_file(pa.memory_map(str(self._copy / "rows.arrow"))).read_all()
        self._ends = json.loads((self._copy / "ends.json").read_text())

    def _is_picture(self, name: str, kind: pa.DataType) -> bool:
        # CSV's columns are all bytes, and the column of pictures holds paths.
        from_csv = not self.paths[0].endswith(".parquet")
        return not from_csv and (pa.types.is_struct(kind) or _is_bytes(kind))

    def _values(self, index: int, columns: Sequence[str]) -> dict[str, Any]:
        self._locate(index)
        row = self._table.select(columns).slice(index, 1).to_pylist()[0]
        return {
            name: utf8(value) if isinstance(value, bytes) else value for name, value in row.items()
        }

    def _image(self, index: int) -> bytes:
        value = self._table.column(self._image_key)[index].as_py()
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        elif isinstance(value, bytes) and not self.paths[0].endswith(".parquet"):
            value = utf8(value)
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str) or not value:
            raise UnreadableRecordError(f"no picture in column {self._image_key!r}")
        if not is_remote(value):
            folder = posixpath.dirname(self.paths[self._locate(index)[0]])
            value = posixpath.join(folder, value)
        return read_file(value, MAX_IMAGE_BYTES)

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self):,}")
        number = bisect.bisect_right(self._ends, index)
        return number, index - (self._ends[number - 1] if number else 0)

    def _find(self, what: str, usual: Sequence[str], flag: str) -> str:
        found = [name for name in self._table.column_names if name in usual]
        if len(found) == 1:
            return found[0]
        number = "several columns" if found else "no column"
        raise InputError(
            f"{number} named as those of {what}s are: {self._described()}\n"
            f"looked for {', '.join(usual)}; name it with {flag}"
        )

    def _described(self) -> str:
        return f"{shown(self.paths[0])}, which has: {', '.join(self._table.column_names)}"


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


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
    counts = dict.fromkeys(paths, 0)
    batches = ((path, batch) for path in paths for batch in _batches(path))
    first = next(batches, None)
    if first is None:
        raise InputError(f"no rows in {shown(paths[0])}\nleave the table out")
    schema = first[1].schema.remove_metadata()
    with pa.ipc.new_file(str(folder / "rows.arrow"), schema) as writer:
        for path, batch in itertools.chain([first], batches):
            if not batch.schema.equals(schema):
                raise InputError(
                    f"tables differ in their columns: {shown(path)} has "
                    f"{', '.join(batch.schema.names)}\n{shown(paths[0])} has "
                    f"{', '.join(schema.names)}; make a data.mixture of them"
                )
            writer.write_batch(batch.replace_schema_metadata())
            counts[path] += batch.num_rows
    (folder / "ends.json").write_text(json.dumps(list(itertools.accumulate(counts.values()))))


def _batches(path: str) -> Iterator[pa.RecordBatch]:
    read = _parquet_batches if path.endswith(".parquet") else _csv_batches
    with open_to_read(path) as file:
        try:
            yield from read(path, file)
        except (pa.ArrowInvalid, csv.Error, UnicodeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{shown(path)} is no table: {reason}\nexpected {', '.join(EXTENSIONS)}"
            ) from None


def _parquet_batches(path: str, file: io.IOBase) -> Iterator[pa.RecordBatch]:
    del path
    yield from pyarrow.parquet.ParquetFile(file).iter_batches()


def _csv_batches(path: str, file: io.IOBase) -> Iterator[pa.RecordBatch]:
    # Not pyarrow's reader, which loses rows that are neither whole nor UTF-8 without a word. Bytes
    # that are not UTF-8 are kept, and refused row by row: one of them must not spoil the table.
    text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
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
