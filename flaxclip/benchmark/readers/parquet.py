"""Labelled pictures in Parquet, as Hugging Face datasets store them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from flaxclip.benchmark.datasets import Labelled, MissingDataError
from flaxclip.benchmark.tasks import DataSource, Task
from flaxclip.data.left_out import is_leftover
from flaxclip.data.source import UnreadableRecordError
from flaxclip.errors import InputError


class ParquetPictures:
    """An image column, read one row group at a time: pictures are asked for in order."""

    def __init__(self, paths: list[Path], column: str):
        self._paths, self._column = paths, column
        self._rows: list[tuple[int, int, int]] = []  # file, row group, row
        for number, path in enumerate(paths):
            metadata = pyarrow.parquet.read_metadata(path)
            for group in range(metadata.num_row_groups):
                rows = metadata.row_group(group).num_rows
                self._rows += [(number, group, row) for row in range(rows)]
        self._loaded: tuple[tuple[int, int], list] = ((-1, -1), [])
        stats = [(str(path), path.stat()) for path in paths]
        described = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
        self.identity = repr((column, described))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> bytes:
        number, group, row = self._rows[index]
        # Taken once: another thread may replace it between the test and the use.
        at, values = self._loaded
        if at != (number, group):
            try:
                file = pyarrow.parquet.ParquetFile(self._paths[number])
                table = file.read_row_group(group, columns=[self._column])
            except (OSError, pyarrow.ArrowException) as error:
                raise UnreadableRecordError(str(error).splitlines()[0]) from error
            values = table[self._column].to_pylist()
            self._loaded = ((number, group), values)
        return picture_bytes(values[row])

    def name(self, index: int) -> str:
        """File and row."""
        number, group, row = self._rows[index]
        return f"{self._paths[number].name}/row group {group}, row {row}"


def picture_bytes(value: Any) -> bytes:
    """Of a value of an image column: bare bytes, or Hugging Face's dict."""
    found = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(found, bytes):
        raise UnreadableRecordError("no bytes in the image column")
    return found


def read_parquet(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Labelled:
    """A file, or a folder of `SPLIT-*.parquet`, with a column of pictures and one of labels.

    Labels are numbers, named by the file's Hugging Face metadata if it has any, or words.

    Raises:
        MissingDataError: there is no such file or folder.
        InputError: a column is missing.
    """
    del image_size
    paths = find_parquet(source.name, split, data_dir, task.title)
    schema = pyarrow.parquet.read_schema(paths[0])
    for column in (source.image, source.label):
        if column not in schema.names:
            raise InputError(
                f"{paths[0]} has no column {column!r}\nit has: {', '.join(schema.names)}"
            )
    tables = [pyarrow.parquet.read_table(path, columns=[source.label]) for path in paths]
    values = [value for table in tables for value in table[source.label].to_pylist()]
    names = _class_names(schema, source.label)
    if all(isinstance(value, str) for value in values):
        names = tuple(sorted(set(values)))
        values = [names.index(value) for value in values]
    elif not all(isinstance(value, int) for value in values):
        raise InputError(
            f"column {source.label!r} of {paths[0]} is of type {schema.field(source.label).type}\n"
            "expected numbers of classes, or their names, in every row"
        )
    return Labelled(ParquetPictures(paths, source.image), np.array(values), names)


def find_parquet(name: str, split: str, data_dir: Path, title: str) -> list[Path]:
    """The files of a split."""
    for root in (Path(name), data_dir / name):
        if root.is_file():
            return [root]
        for found in (root.rglob(f"{split}*.parquet"), root.glob("*.parquet")):
            if paths := [path for path in sorted(found) if _is_part(path, root)]:
                return paths
    raise MissingDataError(
        f"no {split}*.parquet in {data_dir / name}: {title}\n"
        f"  hf download {name} --repo-type dataset --local-dir {data_dir / name}"
    )


def _is_part(path: Path, root: Path) -> bool:
    return path.is_file() and not is_leftover(path.relative_to(root).as_posix())


def _class_names(schema: Any, column: str) -> tuple[str, ...] | None:
    try:
        metadata = json.loads((schema.metadata or {})[b"huggingface"])
        return tuple(metadata["info"]["features"][column]["names"])
    except (KeyError, ValueError, TypeError):
        return None
