"""A task's data from where it lies on this machine."""

from collections.abc import Callable
from pathlib import Path

from flaxclip.benchmark.datasets import Dataset, Labelled, MissingDataError
from flaxclip.benchmark.readers.compositionality import (
    read_sugarcrepe,
    read_winogavil,
    read_winoground,
)
from flaxclip.benchmark.readers.folder import read_folder
from flaxclip.benchmark.readers.own import read_pairs, read_scenes
from flaxclip.benchmark.readers.parquet import read_parquet
from flaxclip.benchmark.readers.tfds import read_tfds
from flaxclip.benchmark.readers.wds import read_wds
from flaxclip.benchmark.tasks import DataSource, Reader, Task
from flaxclip.errors import InputError

READERS: dict[Reader, Callable[[Task, DataSource, str, Path, int], Dataset]] = {
    "wds": read_wds,
    "tfds": read_tfds,
    "folder": read_folder,
    "parquet": read_parquet,
    "pairs": read_pairs,
    "scenes": read_scenes,
    "sugarcrepe": read_sugarcrepe,
    "winoground": read_winoground,
    "winogavil": read_winogavil,
}
"""Each takes (task, source, split, folder of data sets, side of the images in pixels)."""


def open_test(task: Task, data_dir: Path, image_size: int) -> tuple[DataSource, Dataset]:
    """The test set of `task`, from the first of its sources that is on this machine.

    Raises:
        MissingDataError: none is; tells for each what prepares it.
        InputError: one is, but cannot be used.
    """
    missing = []
    for source in task.sources:
        try:
            return source, READERS[source.reader](task, source, source.split, data_dir, image_size)
        except MissingDataError as error:
            missing.append(str(error))
    raise MissingDataError(f"{task.title} is not on this machine\n" + "\nor\n".join(missing))


def open_split(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Labelled:
    """Another split of the source, with labels: one to train a probe on, or to choose by.

    Raises:
        InputError: it is not there, cannot be used, or has no labels.
    """
    data = READERS[source.reader](task, source, split, data_dir, image_size)
    if not isinstance(data, Labelled):
        raise InputError(
            f"{task.name}: split {split!r} has no labels\nprobes need a class an image"
        )
    return data
