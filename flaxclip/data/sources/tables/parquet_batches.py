"""Parquet files, read a bounded number of bytes at a time.

pyarrow's `iter_batches()` alone fills each batch with 65,536 rows, across row groups. With images
in them these are gigabytes, and in a struct, as Hugging Face datasets store images, a batch cannot
hold more than two.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet

from flaxclip.data.sources.shard_paths import shown
from flaxclip.errors import InputError

BATCH_BYTES = 2**24
_BATCH_ROWS = 2**10  # a value that a dictionary holds once may come in every row, at up to 1 MiB
NO_BYTES = (
    "the image column holds no bytes but the path of a file. to_parquet of Hugging Face datasets "
    "writes images so that were never decoded; datasets.table.embed_table_storage, mapped over the "
    "data set first, puts their bytes in"
)
_BUFFER_BYTES = 2**23  # read at a time of a column, rather than all that a row group has of it


def open_parquet(file: BinaryIO | os.PathLike) -> pyarrow.parquet.ParquetFile:
    """Open the file so that no more of it is read at a time than batches need."""
    # With pre_buffer a whole row group is read at once, whatever the buffer's size.
    return pyarrow.parquet.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)


def group_batches(
    file: pyarrow.parquet.ParquetFile,
    group: int,
    columns: Sequence[str] | None = None,
    batch_bytes: int = BATCH_BYTES,
) -> Iterator[pa.RecordBatch]:
    """The rows of a row group, about `batch_bytes` at a time.

    Args:
        file: from `open_parquet`.
        group: its number.
        columns: those to read. If None, all.
        batch_bytes: of all columns together, by the mean of the row group.
    """
    metadata = file.metadata.row_group(group)
    mean = metadata.total_byte_size / max(metadata.num_rows, 1)
    rows = int(min(_BATCH_ROWS, max(batch_bytes / max(mean, 1), 1)))
    yield from file.iter_batches(rows, row_groups=[group], columns=columns)


@contextlib.contextmanager
def parquet_errors(path: str) -> Iterator[None]:
    """Turn pyarrow's errors on damaged or foreign files into `InputError`."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the operating system's; pyarrow's own have no number
        raise InputError(
            f"{shown(path)} is no table: {str(error).splitlines()[0]}\n"
            "expected a Parquet file, whole; make it or fetch it again, or leave it out"
        ) from None


def read_columns(paths: Sequence[os.PathLike], columns: Sequence[str]) -> dict[str, list[Any]]:
    """The values of some columns, of all rows of all files.

    Raises:
        InputError: a file has no such column, or is damaged; or there are no rows.
    """
    values: dict[str, list[Any]] = {column: [] for column in columns}
    for path in paths:
        with parquet_errors(os.fspath(path)), open_parquet(path) as file:
            check_columns(path, file.schema_arrow, columns)
            for group in range(file.num_row_groups):
                for batch in group_batches(file, group, columns):
                    for column in columns:
                        values[column] += batch[column].to_pylist()
    if not values[columns[0]]:
        raise InputError(f"no rows in {paths[0]}, nor in files beside it\nfetch or make it again")
    return values


def check_columns(path: os.PathLike, schema: pa.Schema, columns: Sequence[str]) -> None:
    """Raise `InputError` unless the file has all of the columns."""
    for column in columns:
        if column not in schema.names:
            raise InputError(f"{path} has no column {column!r}\nit has: {', '.join(schema.names)}")
