"""Sets that ask which of two captions belongs to a picture."""

import json
from pathlib import Path

import numpy as np

from flaxclip.benchmark.datasets import Choices, MissingDataError
from flaxclip.benchmark.readers.folder import FilePictures
from flaxclip.benchmark.readers.parquet import ParquetPictures, find_parquet
from flaxclip.benchmark.tasks import DataSource, Task
from flaxclip.errors import InputError


def read_sugarcrepe(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Choices:
    """`sugar_crepe/NAME.json` over COCO's `val2017/`: a caption, and one with a word changed.

    Raises:
        MissingDataError: they are not there.
        InputError: the file names a picture that is not there, or lacks a caption.
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
    items = list(json.loads(file.read_text()).values())
    paths = []
    for number, item in enumerate(items):
        if missing := {"filename", "caption", "negative_caption"} - set(item):
            raise InputError(f"{file}: item {number} has no {sorted(missing)[0]}")
        paths.append(root / "val2017" / item["filename"])
        if not paths[-1].is_file():
            raise InputError(f"{file}: no picture {paths[-1]}\nunpack val2017.zip again")
    captions = [c for item in items for c in (item["caption"], item["negative_caption"])]
    rows = np.arange(len(items))
    return Choices(
        FilePictures(root, paths), tuple(captions), rows[:, None], rows[:, None] * 2 + [[0, 1]]
    )


class _TwoColumns:
    """The pictures of two columns, one after the other."""

    def __init__(self, first: ParquetPictures, second: ParquetPictures):
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
    """
    del image_size
    import pyarrow.parquet

    paths = find_parquet(source.name, split, data_dir, f"{task.title}, {source.url}")
    tables = [
        pyarrow.parquet.read_table(path, columns=["caption_0", "caption_1"]) for path in paths
    ]
    captions = [
        c for name in ("caption_0", "caption_1") for t in tables for c in t[name].to_pylist()
    ]
    items = len(captions) // 2
    rows = np.arange(items)[:, None] + [[0, items]]
    pictures = _TwoColumns(*(ParquetPictures(paths, f"image_{i}") for i in (0, 1)))
    return Choices(pictures, tuple(captions), rows, rows)
