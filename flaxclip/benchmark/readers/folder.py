"""Pictures in folders: a folder a class, or no classes at all."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flaxclip.benchmark.datasets import Labelled, MissingDataError
from flaxclip.benchmark.tasks import DataSource, Task
from flaxclip.data.source import UnreadableRecordError
from flaxclip.errors import InputError

_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")


class FilePictures:
    """Picture files."""

    def __init__(self, root: Path, paths: Sequence[Path]):
        self._root, self._paths = root, paths
        stats = [(str(path), path.stat()) for path in paths]
        self.identity = repr([(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats])

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> bytes:
        try:
            return self._paths[index].read_bytes()
        except OSError as error:
            raise UnreadableRecordError(error.strerror) from error

    def name(self, index: int) -> str:
        """Path below the folder."""
        return str(self._paths[index].relative_to(self._root))


def find_pictures(folder: Path) -> list[Path]:
    """Picture files below `folder`, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _PICTURES)


def read_folder(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Labelled:
    """`FOLDER/SPLIT/CLASS/*.jpg`, or `FOLDER/CLASS/*.jpg`; classes are sorted by their names.

    Raises:
        MissingDataError: there is no such folder.
        InputError: it holds no folders of classes, or an empty one.
    """
    del image_size
    own = Path(source.name)
    root = own if own.is_dir() else data_dir / source.name
    if not root.is_dir():
        raise MissingDataError(
            f"no folder {root}: {task.title}\n"
            f"  get it from {source.url or 'its authors'} and lay it out as "
            f"{root}/{split}/CLASS/*.jpg, folders of classes in the order of its labels"
        )
    root = root / split if (root / split).is_dir() else root
    return read_classes(root)


def read_classes(root: Path) -> Labelled:
    """`root/CLASS/*.jpg`."""
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    if not folders:
        raise InputError(
            f"{root} holds no folders\nexpected one for each class, named after it, with pictures"
        )
    found = [find_pictures(folder) for folder in folders]
    for folder, paths in zip(folders, found, strict=True):
        if not paths:
            raise InputError(f"class {folder.name!r} has no pictures: {folder}\nremove the folder")
    labels = np.repeat(np.arange(len(folders)), [len(paths) for paths in found])
    names = tuple(folder.name.replace("_", " ") for folder in folders)
    pictures = FilePictures(root, [path for paths in found for path in paths])
    return Labelled(pictures, labels, names)
