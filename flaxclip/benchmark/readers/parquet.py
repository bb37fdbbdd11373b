"""Labelled images in Parquet, as Hugging Face datasets store them."""

import collections
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from flaxclip.benchmark.datasets import Labelled, MissingDataError
from flaxclip.benchmark.sets.parts import check_parts, names_a_split, parquet_parts
from flaxclip.benchmark.tasks import DataSource, Task
from flaxclip.data.sources.left_out import is_leftover
from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.data.sources.tables.parquet_batches import (
    BATCH_BYTES,
    NO_BYTES,
    check_columns,
    group_batches,
    open_parquet,
    parquet_errors,
    read_columns,
)
from flaxclip.errors import InputError

_RECENT = 4  # batches in memory: threads ask for images only nearly in order


class ParquetImages:
    """An image column, read some rows at a time: images are asked for in order."""

    def __init__(self, paths: list[Path], column: str, batch_bytes: int = BATCH_BYTES):
        self._paths, self._column, self._batch_bytes = paths, column, batch_bytes
        self._rows: list[tuple[int, int, int]] = []  # file, row group, row
        for number, path in enumerate(paths):
            with parquet_errors(str(path)):
                file = open_parquet(path)
            check_columns(path, file.schema_arrow, [column])
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                self._rows += [(number, group, row) for row in range(rows)]
        self._reading: tuple[tuple[int, int], int, Iterator[pa.RecordBatch]] = (-1, -1), 0, iter(())
        # (file, row group), first row, images
        self._recent: collections.deque[tuple[tuple[int, int], int, pa.Array]] = collections.deque(
            maxlen=_RECENT
        )
        self._lock = threading.Lock()
        stats = [(str(path), path.stat()) for path in paths]
        described = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
        self.identity = repr((column, described))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> bytes:
        number, group, row = self._rows[index]
        with self._lock:
            images, first = self._load((number, group), row)
        return image_bytes(images[row - first].as_py())

    def _load(self, place: tuple[int, int], row: int) -> tuple[pa.Array, int]:
        """A part of a row group that holds the row, and its first row."""
        for at, first, images in self._recent:
            if at == place and first <= row < first + len(images):
                return images, first
        at, first, batches = self._reading
        if at != place or row < first:
            number, group = place
            file = open_parquet(self._paths[number])
            first, batches = 0, group_batches(file, group, [self._column], self._batch_bytes)
        with parquet_errors(str(self._paths[place[0]])):
            for batch in batches:
                images, after = batch.column(self._column), first + batch.num_rows
                self._recent.append((place, first, images))
                self._reading = place, after, batches
                if row < after:
                    return images, first
                first = after
        raise UnreadableExampleError("the file ends before this row")

    def name(self, index: int) -> str:
        """File and row."""
        number, group, row = self._rows[index]
        return f"{self._paths[number].name}/row group {group}, row {row}"


def image_bytes(value: Any) -> bytes:
    """Of a value of an image column: bare bytes, Hugging Face's dict, or a list of one of them."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    found = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(found, bytes):
        has_path = isinstance(value, dict) and value.get("path")
        raise UnreadableExampleError(NO_BYTES if has_path else "no bytes in the image column")
    return found


def read_parquet(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Labelled:
    """A file, or a folder of `SPLIT-*.parquet`, with a column of images and one of labels.

    Labels are numbers, named by the file's Hugging Face metadata if it has any, or words. Where a
    column has another name than the source says, the metadata tells it, if it knows only one image
    or class label.

    Raises:
        MissingDataError: there is no such file or folder.
        InputError: a column is missing, or there are no rows, or a file is damaged.
    """
    del image_size
    paths = find_parquet(source.name, split, data_dir, task.title)
    with parquet_errors(str(paths[0])):
        schema = open_parquet(paths[0]).schema_arrow
    features = _features(schema)
    label = _column(source.label, "ClassLabel", schema, features)
    images = ParquetImages(paths, _column(source.image, "Image", schema, features))
    values = read_columns(paths, [label])[label]
    names = _class_names(features.get(label))
    if all(isinstance(value, str) for value in values):
        names = tuple(sorted(set(values)))
        values = [names.index(value) for value in values]
    elif not all(isinstance(value, int) for value in values):
        raise InputError(
            f"column {label!r} of {paths[0]} is of type {schema.field(label).type}\n"
            "expected numbers of classes, or their names, in every row"
        )
    return Labelled(images, np.array(values), names)


def read_texts(paths: list[Path], columns: list[str]) -> dict[str, list[str]]:
    """Columns that have a text in every row.

    Raises:
        InputError: one is missing, or has something else in a row, such as nothing.
    """
    found = read_columns(paths, columns)
    for name, values in found.items():
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise InputError(
                    f"{paths[0]}: {name!r} of row {row} is {value!r}\nexpected a text in every row"
                )
    return found


def find_parquet(name: str, split: str, data_dir: Path, title: str) -> list[Path]:
    """The files of a split.

    Raises:
        MissingDataError: there are none.
        InputError: some are there, and not all.
    """
    for root in (Path(name), data_dir / name):
        if root.is_file():
            return [root]
        tables = sorted(root.rglob("*.parquet"))
        names = [path.relative_to(root).as_posix() for path in tables if path.is_file()]
        if parts := parquet_parts(names, split, str(root)):
            return [root / part for part in parts]
        # Of a set of one's own, which has no splits, all files.
        own = [part for part in names if "/" not in part and not is_leftover(part)]
        if own and not any(map(names_a_split, own)):
            check_parts(own, str(root))
            return [root / part for part in own]
    raise MissingDataError(
        f"no {split}*.parquet in {data_dir / name}: {title}\n"
        f"  hf download {name} --repo-type dataset --local-dir {data_dir / name}"
    )


def _features(schema: pa.Schema) -> dict[str, Any]:
    """What `datasets` says of the columns; empty if it has not written the file."""
    try:
        return dict(json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"])
    except (KeyError, ValueError, TypeError):
        return {}


def _column(name: str, kind: str, schema: pa.Schema, features: dict[str, Any]) -> str:
    """The column of that name, or else the only one of that kind; the name, if it is unknown."""
    of_kind = [
        column
        for column, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == kind
    ]
    return name if name in schema.names or len(of_kind) != 1 else of_kind[0]


def _class_names(feature: Any) -> tuple[str, ...] | None:
    try:
        return tuple(feature["names"])
    except (KeyError, TypeError):
        return None
