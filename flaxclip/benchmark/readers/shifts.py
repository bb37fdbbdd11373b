"""Sets that ask what becomes of a classifier elsewhere: groups, corruptions, unknown classes."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from jaxtyping import UInt8

from flaxclip.benchmark.datasets import (
    Captioned,
    Faces,
    Images,
    Labelled,
    MissingDataError,
    OpenSet,
)
from flaxclip.benchmark.readers.folder import FileImages, class_folders, find_images
from flaxclip.benchmark.readers.published_files import check_columns, integers, read_rows
from flaxclip.benchmark.readers.wds import read_wds
from flaxclip.benchmark.robustness import alexnet_errors
from flaxclip.benchmark.tasks import DataSource, Task
from flaxclip.data.sources.left_out import LEFTOVERS
from flaxclip.data.sources.source import reads_remotely
from flaxclip.errors import InputError

_SPLITS = {"train": "0", "validation": "1", "test": "2"}
"""Of Waterbirds and CelebA."""
_IMAGENET_CLASSES = 1000
_OUTSIDE_IMAGENET = {
    "iNaturalist": "iNaturalist",
    "SUN": "SUN",
    "Places": "Places",
    "Texture": "dtd/images",
}
"""Sets without ImageNet's classes, and their folders: Huang and Li 2021, as Ming et al. 2022 have
them."""


def read_waterbirds(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Labelled:
    """`NAME/metadata.csv` with img_filename, y, split and place: Sagawa et al. 2020.

    Raises:
        MissingDataError: it is not there.
        InputError: a column is missing, or there is no such split.
    """
    del image_size
    root = data_dir / source.name
    file = root / "metadata.csv"
    rows = read_rows(file, task, source)
    check_columns(file, rows, ("img_filename", "y", "split", "place"))
    chosen = np.array([row["split"] == _SPLITS[split] for row in rows])
    labels, places = (np.array(integers(file, rows, name))[chosen] for name in ("y", "place"))
    paths = [root / row["img_filename"] for row in rows if row["split"] == _SPLITS[split]]
    return _in_groups(task, root, paths, labels, places)


def read_celeba(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Labelled:
    """Blond hair in `NAME/img_align_celeba/`, by sex: Sagawa et al. 2020.

    `list_attr_celeba.csv` and `list_eval_partition.csv` as Kaggle has them.

    Raises:
        MissingDataError: they are not there.
        InputError: a column is missing, or the files are not of the same images.
    """
    del image_size
    root = data_dir / source.name
    attributes, partition = (
        read_rows(root / f"list_{name}.csv", task, source)
        for name in ("attr_celeba", "eval_partition")
    )
    columns = ("image_id", "Blond_Hair", "Male")
    check_columns(root / "list_attr_celeba.csv", attributes, columns)
    check_columns(root / "list_eval_partition.csv", partition, ("image_id", "partition"))
    if [row["image_id"] for row in attributes] != [row["image_id"] for row in partition]:
        raise InputError(f"{root}: the two lists are not of the same images\ndownload them again")
    chosen = np.array([part["partition"] == _SPLITS[split] for part in partition])
    paths = [
        root / "img_align_celeba" / attributes[row]["image_id"] for row in np.flatnonzero(chosen)
    ]
    file = root / "list_attr_celeba.csv"
    labels, sexes = (
        (np.array(integers(file, attributes, name))[chosen] > 0).astype(int) for name in columns[1:]
    )
    return _in_groups(task, root, paths, labels, sexes)


def _in_groups(
    task: Task, root: Path, paths: list[Path], labels: np.ndarray, places: np.ndarray
) -> Labelled:
    if not paths:
        raise InputError(f"{root} has no images of this split\ndownload it again")
    groups = 2 * labels + places
    return Labelled(FileImages(root, paths), labels, groups=groups, group_names=task.group_names)


_FACTS = ("age", "gender", "race", "race_binary")
"""Columns of DataComp's sets of faces."""
_QUESTIONS = ("race", "gender", "age", "toxic")


def read_faces(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Faces:
    """DataComp's webdataset `NAME`: facts in .npy, words as `QUESTION:NAME`, `QUESTION:TEMPLATE`.

    Raises:
        MissingDataError: it is not there.
        InputError: it is damaged, or lacks the words of a question.
    """
    wds = DataSource("wds", source.name)
    facts, words = {}, {}
    for column, fact in enumerate(_FACTS):
        # As labels the columns mean nothing; each is read as the group of its images.
        asked = dataclasses.replace(task, kind="multilabel", group=column)
        data = _labelled(read_wds(asked, wds, split, data_dir, image_size))
        assert data.groups is not None, "it has been asked for one"
        facts[fact] = data.groups
    for question in _QUESTIONS:
        names, templates = (
            tuple(line.removeprefix(f"{question}:") for line in lines or () if
                  line.startswith(f"{question}:"))
            for lines in (data.class_names, data.templates)
        )  # fmt: skip
        if not (names and templates):
            raise InputError(
                f"{source.name} has no names, or no templates, that begin with '{question}:'\n"
                "download classnames.txt and zeroshot_classification_templates.txt again"
            )
        words[question] = names, templates
    return Faces(data.images, words, facts)


def read_imagenet_c(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Labelled:
    """`imagenet-c/CORRUPTION/LEVEL/WORDNET/*.JPEG`, all 15 corruptions at a level as groups.

    Hendrycks and Dietterich 2019. Corruptions may lie in the folders of its archives, such as
    `noise/`; the four extra ones are left out, as there.

    Raises:
        MissingDataError: a corruption is not there.
        InputError: one has not the folders of 1,000 classes.
    """
    del split, image_size
    assert task.corruption_level is not None, "a task of this reader has a level"
    root, level = data_dir / source.name, str(task.corruption_level)
    names = tuple(alexnet_errors(task.corruption_level))
    paths: list[Path] = []
    labels: list[int] = []
    groups: list[int] = []
    leftovers = 0
    for group, name in enumerate(names):
        found = [p for p in (root / name / level, *root.glob(f"*/{name}/{level}")) if p.is_dir()]
        if not found:
            raise MissingDataError(f"no {root / name / level}: {task.title}\n  {source.url}")
        classes = class_folders(found[0])
        if len(classes) != _IMAGENET_CLASSES:
            raise InputError(
                f"{found[0]} has {len(classes)} folders\n"
                f"expected one for each of {_IMAGENET_CLASSES:,} classes"
            )
        number_of = {folder.name: number for number, folder in enumerate(classes)}
        images, count = find_images(found[0])
        leftovers += count
        paths += images
        labels += [number_of[path.relative_to(found[0]).parts[0]] for path in images]
        groups += [group] * len(images)
    left_out = {LEFTOVERS: leftovers} if leftovers else {}
    return Labelled(
        FileImages(root, paths), np.array(labels), groups=np.array(groups), left_out=left_out,
        group_names=names,
    )  # fmt: skip


class Watermarked:
    """Images with ImageNet-W's watermark on what the model sees of them.

    Li et al. 2023, section 3.2: half transparent white text from 1% and 40% of the image's sides.
    """

    def __init__(self, images: Images, font: Path):
        self._images, self._font = images, font
        self.identity = repr((images.identity, "watermark", font.stat().st_size))
        self.name = images.name
        self.reads_remotely = reads_remotely(images)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> bytes | UInt8[np.ndarray, "h w 3"]:
        return self._images[index]

    def finish(self, pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """Draw it on an image as the model sees it; on the first square of one that is none."""
        image = PIL.Image.fromarray(pixels).convert("RGBA")
        image.alpha_composite(_watermark(self._font, min(image.size)))
        return np.asarray(image.convert("RGB"))


@functools.lru_cache(maxsize=2)
def _watermark(font: Path, size: int) -> PIL.Image.Image:
    layer = PIL.Image.new("RGBA", (size, size), (255, 255, 255, 0))
    loaded = PIL.ImageFont.truetype(font, _FONT_SIZES.get(size, int(size / 6.22)))
    place = (0.01 * size, 0.4 * size)
    PIL.ImageDraw.Draw(layer).text(place, _SHORTCUT, (255, 255, 255, 128), loaded)
    return layer


_SHORTCUT = "捷径捷径捷径"
_FONT_SIZES = {224: 36, 384: 62, 512: 82, 518: 84}
"""By the side of the image: those of the authors' package; others are scaled as there."""


def read_imagenet_w(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Labelled:
    """ImageNet with a watermark, written with the font in `imagenet-w/`.

    Raises:
        MissingDataError: ImageNet or the font is not there.
    """
    font = data_dir / source.name / "SourceHanSerifSC-ExtraLight.otf"
    if not font.is_file():
        raise MissingDataError(f"no {font}: {task.title}\n  {source.url}")
    data = _read_labelled("imagenet1k", task, split, data_dir, image_size)
    return data._replace(images=Watermarked(data.images, font))


def read_imagenet_ood(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> OpenSet:
    """ImageNet, and iNaturalist, SUN, Places and Texture without its classes in `NAME/`.

    Raises:
        MissingDataError: one of them is not there.
        InputError: one holds no images.
    """
    root = data_dir / source.name
    outside: dict[str, Images] = {}
    leftovers = 0
    for name, folder in _OUTSIDE_IMAGENET.items():
        if not (root / folder).is_dir():
            raise MissingDataError(f"no {root / folder}: {task.title}\n  {source.url}")
        paths, count = find_images(root / folder)
        leftovers += count
        if not paths:
            raise InputError(f"{root / folder} holds no images\ndownload it again")
        outside[name] = FileImages(root, paths)
    left_out = {LEFTOVERS: leftovers} if leftovers else {}
    inside = _read_labelled("imagenet1k", task, split, data_dir, image_size)
    return OpenSet(inside, outside, left_out)


def read_wds_ood(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> OpenSet:
    """The webdataset `NAME`, and those that the source's `outside` names, which have other classes.

    Raises:
        MissingDataError: one of them is not there.
        InputError: one is damaged.
    """
    inside = _read_labelled(source.name, task, split, data_dir, image_size)
    others = {name.rsplit("/", 1)[-1]: name for name in source.outside}
    outside = {
        short: _read_labelled(name, task, split, data_dir, image_size).images
        for short, name in others.items()
    }
    return OpenSet(inside, outside)


def _read_labelled(name: str, task: Task, split: str, data_dir: Path, image_size: int) -> Labelled:
    return _labelled(read_wds(task, DataSource("wds", name), split, data_dir, image_size))


def _labelled(data: Labelled | Captioned) -> Labelled:
    assert not isinstance(data, Captioned), "the task's kind is not retrieval"
    return data
