"""Sets that ask which of few captions, or images, belong together."""

from pathlib import Path

import numpy as np

from flaxclip.benchmark.datasets import Associations, Choices, MissingDataError
from flaxclip.benchmark.readers.folder import FileImages
from flaxclip.benchmark.readers.parquet import (
    ParquetImages,
    find_parquet,
    image_bytes,
    read_texts,
)
from flaxclip.benchmark.readers.published_files import Items
from flaxclip.benchmark.tasks import DataSource, Task
from flaxclip.data.sources.tables.parquet_batches import read_columns
from flaxclip.errors import InputError


def read_sugarcrepe(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Choices:
    """`sugar_crepe/NAME.json` over COCO's `val2017/`: a caption, and one with a word changed.

    Raises:
        MissingDataError: they are not there.
        InputError: the file is damaged, names an image that is not there, or lacks a caption.
    """
    del split, image_size
    root = data_dir / "sugar_crepe"
    file = root / f"{source.name}.json"
    if not file.is_file() or not (root / "val2017").is_dir():
        raise MissingDataError(
            f"no {file} or no {root / 'val2017'}: {task.title}\n"
            f"  {source.url} data/{source.name}.json, and "
            "http://images.cocodataset.org/zips/val2017.zip unpacked beside it"
        )
    items = Items(file)
    paths = []
    for item in items.with_fields("filename", "caption", "negative_caption"):
        paths.append(root / "val2017" / item["filename"])
        if not paths[-1].is_file():
            raise InputError(f"{file}: no image {paths[-1]}\nunpack val2017.zip again")
    captions = [c for item in items for c in (item["caption"], item["negative_caption"])]
    rows = np.arange(len(items))
    return Choices(
        FileImages(root, paths), tuple(captions), rows[:, None], rows[:, None] * 2 + [[0, 1]]
    )


class _TwoColumns:
    """The images of two columns, one after the other."""

    def __init__(self, first: ParquetImages, second: ParquetImages):
        self._parts = (first, second)
        self.identity = first.identity + second.identity

    def __len__(self) -> int:
        return 2 * len(self._parts[0])

    def __getitem__(self, index: int) -> bytes:
        part, row = divmod(index, len(self._parts[0]))
        return self._parts[part][row]

    def name(self, index: int) -> str:
        part, row = divmod(index, len(self._parts[0]))
        return f"{self._parts[part].name(row)}, image_{part}"


def read_winoground(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Choices:
    """`winoground/*.parquet` with image_0, image_1, caption_0, caption_1.

    Raises:
        MissingDataError: it is not there.
        InputError: a column is missing, or a caption.
    """
    del image_size
    paths = find_parquet(source.name, split, data_dir, f"{task.title}, {source.url}")
    columns = read_texts(paths, ["caption_0", "caption_1"])
    captions = [*columns["caption_0"], *columns["caption_1"]]
    items = len(captions) // 2
    rows = np.arange(items)[:, None] + [[0, items]]
    images = _TwoColumns(*(ParquetImages(paths, f"image_{i}") for i in (0, 1)))
    return Choices(images, tuple(captions), rows, rows)


class _ListedImages:
    """A column with a list of images in every row, small enough to be held in memory."""

    def __init__(self, paths: list[Path], column: str):
        self._rows = read_columns(paths, [column])[column]
        self.places = [
            (row, at) for row, values in enumerate(self._rows) for at in range(len(values))
        ]
        self.identity = ParquetImages(paths, column).identity

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> bytes:
        row, at = self.places[index]
        return image_bytes(self._rows[row][at])

    def name(self, index: int) -> str:
        row, at = self.places[index]
        return f"item {row}, image {at}"


def read_winogavil(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Associations:
    """`winogavil/*.parquet` with cue, candidates, associations, candidate_images.

    Raises:
        MissingDataError: it is not there.
        InputError: an item has not an image for each candidate, or no association among them.
    """
    del image_size
    paths = find_parquet(source.name, split, data_dir, f"{task.title}, {source.url}")
    images = _ListedImages(paths, "candidate_images")
    columns = read_columns(paths, ["cue", "candidates", "associations"])
    items = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    item_of = np.array([row for row, _ in images.places])
    counts = np.bincount(item_of, minlength=len(items))
    goes = []
    for number, item in enumerate(items):
        right = np.isin(item["candidates"], item["associations"])
        if len(right) != counts[number] or not right.any():
            raise InputError(
                f"{paths[0].parent}: item {number} has {len(right)} candidates, {counts[number]} "
                f"images and {right.sum()} associations\ndownload it again"
            )
        goes.append(right)
    cues = tuple(_with_article(item["cue"]) for item in items)
    return Associations(images, cues, item_of, np.concatenate(goes))


def _with_article(cue: str) -> str:
    """The prompt of Bitton et al. 2022 (WinoGAViL), and of DataComp."""
    cue = cue.lower()
    return f"An {cue}" if cue.startswith(("a", "e", "i", "o", "u")) else f"A {cue}"
