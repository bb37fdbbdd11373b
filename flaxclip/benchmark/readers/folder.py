"""Images in folders: a folder a class, or no classes at all."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flaxclip.benchmark.datasets import Labelled, MissingDataError
from flaxclip.benchmark.tasks import DataSource, Task
from flaxclip.data.sources.left_out import LEFTOVERS, is_leftover
from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.data.storage.files import files_below
from flaxclip.errors import InputError

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")


class FileImages:
    """Image files."""

    def __init__(self, root: Path, paths: Sequence[Path]):
        self._root, self._paths = root, paths
        self.identity = repr([(str(path), *_state(path)) for path in paths])

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> bytes:
        try:
            return self._paths[index].read_bytes()
        except OSError as error:
            raise UnreadableExampleError(error.strerror) from error

    def name(self, index: int) -> str:
        """Path below the folder."""
        return str(self._paths[index].relative_to(self._root))


def _state(path: Path) -> tuple[int, int] | tuple[()]:
    try:
        stat = path.stat()
    except OSError:  # a link to nowhere: unreadable, but no reason to give the others up
        return ()
    return stat.st_size, stat.st_mtime_ns


def find_images(folder: Path) -> tuple[list[Path], int]:
    """Image files below `folder`, sorted; and how many were passed over as leftovers."""
    names = [name for name in files_below(str(folder)) if name.lower().endswith(_IMAGES)]
    found = [folder / name for name in names if not is_leftover(name)]
    return sorted(found), len(names) - len(found)


def class_folders(root: Path) -> list[Path]:
    """The folders in `root` that may be classes, sorted: those that no other program has left."""
    # With a file's name, since some are leftovers by what they hold.
    return sorted(p for p in root.iterdir() if p.is_dir() and not is_leftover(f"{p.name}/x"))


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
    folders = class_folders(root)
    if not folders:
        raise InputError(
            f"{root} holds no folders\nexpected one for each class, named after it, with images"
        )
    everything, leftovers = find_images(root)
    found: dict[Path, list[Path]] = {folder: [] for folder in folders}
    beside = 0
    for path in everything:
        *inside, _ = path.relative_to(root).parts
        beside += not inside
        if inside:
            found[root / inside[0]].append(path)
    for folder, paths in found.items():
        if not paths:
            raise InputError(f"class {folder.name!r} has no images: {folder}\nremove the folder")
    labels = np.repeat(np.arange(len(folders)), [len(paths) for paths in found.values()])
    names = tuple(folder.name.replace("_", " ") for folder in folders)
    counts = {LEFTOVERS: leftovers, "images_beside_the_classes": beside}
    left_out = {reason: count for reason, count in counts.items() if count}
    images = FileImages(root, [path for paths in found.values() for path in paths])
    return Labelled(images, labels, names, left_out=left_out)
