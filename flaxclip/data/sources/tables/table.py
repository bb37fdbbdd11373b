"""Tables of images and captions: CSV, TSV or Parquet, one row an example.

The images stand in a column of paths or URLs, relative ones below the folder of their table; in
Parquet also as bytes, alone or as Hugging Face datasets store them ({bytes, path}).
"""

import contextlib
import functools
import json
import posixpath
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from flaxclip.data.sources.captions import DEFAULT_CAPTIONS, CaptionConfig, make_captions, utf8
from flaxclip.data.sources.empty_shards import check_empty_shards
from flaxclip.data.sources.folder import MAX_IMAGE_BYTES
from flaxclip.data.sources.shard_paths import expand_shards, shown
from flaxclip.data.sources.source import Pair, UnreadableExampleError
from flaxclip.data.sources.tables.parquet_batches import NO_BYTES
from flaxclip.data.sources.tables.table_copy import copy_tables
from flaxclip.data.storage.file_systems import is_remote, version_of
from flaxclip.data.storage.files import read_file
from flaxclip.errors import InputError

_IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_path", "file_name", "filename", "path")
_CAPTION_COLUMNS = ("caption", "text", "title")


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
        self._rows = copy_tables(self.paths)
        self._check_empty(allow_empty_shards)
        self._image_key = image_key or self._find("image", _IMAGE_COLUMNS, "--data.image-key")
        keys = captions.keys or [self._find("caption", _CAPTION_COLUMNS, "--data.captions.keys")]
        self._caption_keys = tuple(keys)
        for number, table in enumerate(self._rows.tables):
            for column in (self._image_key, *self._caption_keys):
                if table.rows and column not in table.columns:
                    raise InputError(f"no column {column!r} in {self._described(number)}")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Pair:
        table, row = self._rows[index]
        return Pair(self._image(table, row), *self._captions_of(row))

    def captions(self, index: int) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
        """The captions alone, with weights: they may exist although the image is missing."""
        return self._captions_of(self._rows[index][1])

    def _captions_of(self, row: pa.RecordBatch) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
        fields = _values(row, self._caption_keys)
        return make_captions(fields, self._captions, self._caption_keys)

    def fields(self, index: int) -> dict[str, Any]:
        """The columns of the row, without images that are stored in it."""
        table, row = self._rows[index]
        from_csv = not self.paths[table].endswith(".parquet")
        # CSV's columns are all bytes, and the column of images holds paths.
        columns = [field.name for field in row.schema if from_csv or not _is_image(field.type)]
        # What JSON does not have, such as dates, is written as text.
        return json.loads(json.dumps(_values(row, columns), default=str))

    def name(self, index: int) -> str:
        """Table and number of the row, from 0, e.g. `captions.csv/17`."""
        table, row = self._rows.place(index)
        return f"{posixpath.basename(self.paths[table])}/{row}"

    @functools.cached_property
    def reads_remotely(self) -> bool:
        """True if the image of the first row is at a URL, as others then are in most tables."""
        with contextlib.suppress(UnreadableExampleError):
            value = self._image_or_path(*self._rows[0])[0]
            return isinstance(value, str) and is_remote(value)
        return False

    def _check_empty(self, allow_empty_shards: bool) -> None:
        pairs = zip(self.paths, self._rows.tables, strict=True)
        empty = [(path, version_of(path).size) for path, table in pairs if not table.rows]
        self.empty_shards = len(empty)
        # A header says that there are no rows; a file of 0 bytes says nothing.
        unsaid = any(path.endswith(".parquet") and not size for path, size in empty)
        check_empty_shards(empty, len(self.paths), allow_empty_shards or not unsaid)

    def _image(self, table: int, row: pa.RecordBatch) -> bytes:
        value, hint = self._image_or_path(table, row)
        if isinstance(value, bytes):
            return value
        try:
            return read_file(value, MAX_IMAGE_BYTES)
        except UnreadableExampleError as error:
            raise UnreadableExampleError(f"{error}{hint}") from error

    def _image_or_path(self, table: int, row: pa.RecordBatch) -> tuple[bytes | str, str]:
        """The image or its path, and what to add to an error of reading that."""
        value, hint = row.column(self._image_key)[0].as_py(), ""
        if isinstance(value, dict):
            hint = f"; {NO_BYTES}"
            value = value.get("bytes") or value.get("path")
        elif isinstance(value, bytes) and not self.paths[table].endswith(".parquet"):
            value = utf8(value)
        if isinstance(value, bytes):
            return value, hint
        if not isinstance(value, str) or not value:
            raise UnreadableExampleError(f"no image in column {self._image_key!r}")
        if not is_remote(value):
            value = posixpath.join(posixpath.dirname(self.paths[table]), value)
        return value, hint

    def _find(self, what: str, usual: Sequence[str], flag: str) -> str:
        table, _ = self._rows.place(0)  # the first that has rows
        found = [name for name in self._rows.tables[table].columns if name in usual]
        if len(found) == 1:
            return found[0]
        number = "several columns" if found else "no column"
        raise InputError(
            f"{number} named as those of {what}s are: {self._described(table)}\n"
            f"looked for {', '.join(usual)}; name it with {flag}"
        )

    def _described(self, table: int) -> str:
        columns = ", ".join(self._rows.tables[table].columns)
        return f"{shown(self.paths[table])}, which has: {columns}"


def _values(row: pa.RecordBatch, columns: Sequence[str]) -> dict[str, Any]:
    values = row.select(columns).to_pylist()[0]
    return {
        name: utf8(value) if isinstance(value, bytes) else value for name, value in values.items()
    }


def _is_image(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
