"""A task's data from where it lies: on this machine, or on the Hub."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from flaxclip.benchmark.datasets import Dataset, Labelled, MissingDataError
from flaxclip.benchmark.readers.compositionality import (
    read_sugarcrepe,
    read_winogavil,
    read_winoground,
)
from flaxclip.benchmark.readers.folder import read_folder
from flaxclip.benchmark.readers.long_captions import read_dci, read_docci, read_urban1k
from flaxclip.benchmark.readers.multilingual import (
    read_babel_imagenet,
    read_crossmodal3600,
    read_flickr_annotations,
    read_lined_captions,
)
from flaxclip.benchmark.readers.own import read_pairs, read_scenes
from flaxclip.benchmark.readers.parquet import read_parquet
from flaxclip.benchmark.readers.shifts import (
    read_celeba,
    read_faces,
    read_imagenet_c,
    read_imagenet_ood,
    read_imagenet_w,
    read_waterbirds,
    read_wds_ood,
)
from flaxclip.benchmark.readers.statements import (
    read_aro,
    read_aro_order,
    read_mmvp,
    read_negbench_choices,
    read_negbench_retrieval,
    read_sugarcrepe_pp,
    read_valse,
)
from flaxclip.benchmark.readers.tfds import read_tfds
from flaxclip.benchmark.readers.wds import read_wds
from flaxclip.benchmark.sets.place import DataPlace
from flaxclip.benchmark.tasks import DataSource, Reader, Task
from flaxclip.data.storage.file_systems import is_remote
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
    "sugarcrepe++": read_sugarcrepe_pp,
    "aro": read_aro,
    "aro-order": read_aro_order,
    "mmvp": read_mmvp,
    "valse": read_valse,
    "negbench-choices": read_negbench_choices,
    "negbench-retrieval": read_negbench_retrieval,
    "waterbirds": read_waterbirds,
    "celeba": read_celeba,
    "wds-faces": read_faces,
    "imagenet-c": read_imagenet_c,
    "imagenet-w": read_imagenet_w,
    "imagenet-ood": read_imagenet_ood,
    "wds-ood": read_wds_ood,
    "docci": read_docci,
    "dci": read_dci,
    "urban1k": read_urban1k,
    "crossmodal3600": read_crossmodal3600,
    "lined-captions": read_lined_captions,
    "flickr-annotations": read_flickr_annotations,
    "babel-imagenet": read_babel_imagenet,
}
"""Each takes (task, source, split, folder of data sets, side of the images in pixels)."""


def open_test(task: Task, data: DataPlace | Path, image_size: int) -> tuple[DataSource, Dataset]:
    """The test set of `task`, from the first of its sources that is there.

    A source on the Hub is returned with the address of the commit that was read as its `url`.

    Args:
        task: asks for the set.
        data: where sets are, or a folder of them.
        image_size: side of the images in pixels.

    Raises:
        MissingDataError: none is; tells for each what prepares it.
        InputError: one is, but cannot be used.
    """
    missing = []
    for source in task.sources:
        try:
            return _open(task, source, source.split, data, image_size)
        except MissingDataError as error:
            missing.append(str(error))
    place = _as_place(data)
    places = (place.data, *(source.name for source in task.sources))
    more = ", and cannot be copied to it" if any(map(is_remote, places)) else ""
    missing_here = f"{task.title} is not on this machine{more}"
    raise MissingDataError(f"{missing_here}\n" + "\nor\n".join(missing))


def open_split(
    task: Task, source: DataSource, split: str, data: DataPlace | Path, image_size: int
) -> Labelled:
    """Another split of the source, with labels: one to train a probe on, or to choose by.

    Raises:
        InputError: it is not there, cannot be used, or has no labels.
    """
    _, found = _open(task, source, split, data, image_size)
    if not isinstance(found, Labelled):
        raise InputError(
            f"{task.name}: split {split!r} has no labels\nprobes need a class an image"
        )
    return found


def _open(
    task: Task, source: DataSource, split: str, data: DataPlace | Path, image_size: int
) -> tuple[DataSource, Dataset]:
    found = _as_place(data).find(source, split)
    read = READERS[source.reader](task, found.source, split, found.data_dir, image_size)
    if found.content is not None:
        # Not where the copy lies, nor when it was made: results of two machines are of one set.
        read.images.identity = repr((source.reader, source.image, split, found.content))
    return dataclasses.replace(source, url=found.copied_from or source.url), read


def _as_place(data: DataPlace | Path) -> DataPlace:
    return data if isinstance(data, DataPlace) else DataPlace(str(data))
