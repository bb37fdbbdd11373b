"""CLIP_benchmark's webdatasets: `wds_NAME/` with classnames.txt, test/nshards.txt, test/0.tar.

An example is an image (.webp .png .jpg .jpeg) with, under the same key, the number of its class
(.cls), for several classes a NumPy row of 0 and 1 (.npy), or captions, a line each (.txt). Keys are
those that training's own reader sees; what looks like a part of an example and is none is counted.
"""

import collections
import dataclasses
import io
import itertools
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from flaxclip.benchmark.datasets import Captioned, Labelled, MissingDataError
from flaxclip.benchmark.sets.parts import wds_shards
from flaxclip.benchmark.sets.place import published_names
from flaxclip.benchmark.tasks import DataSource, Task
from flaxclip.data.sources.left_out import (
    DOTTED,
    describe_counts,
    member_kind,
    member_reason,
    split_key,
)
from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.errors import InputError

_IMAGES = ("webp", "png", "jpg", "jpeg")  # in the order in which CLIP_benchmark prefers them
_EXTENSIONS = frozenset((*_IMAGES, "cls", "npy", "txt"))


class TarImages:
    """Images inside tars, read by position without unpacking."""

    def __init__(self, members: list[tuple[Path, str, int, int]]):
        """`members`: tar, key, offset and size of each image."""
        self._members = members
        tars = sorted({path for path, *_ in members})
        stats = [(str(tar), tar.stat()) for tar in tars]
        self.identity = repr([(tar, stat.st_size, stat.st_mtime_ns) for tar, stat in stats])

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, index: int) -> bytes:
        path, _, offset, size = self._members[index]
        try:
            with path.open("rb") as file:
                data = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise UnreadableExampleError(f"{path}: {error.strerror}") from error
        if len(data) != size:
            raise UnreadableExampleError(f"{path} ends inside the image")
        return data

    def name(self, index: int) -> str:
        """Tar and key, e.g. `0.tar/s0000007`."""
        path, key, *_ = self._members[index]
        return f"{path.name}/{key}"


def read_wds(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Labelled | Captioned:
    """One split of a set in this layout.

    Raises:
        MissingDataError: it is not there.
        InputError: a file of it is damaged or missing.
    """
    del image_size
    root = find_wds(source.name, data_dir)
    folder = root / split
    examples, left_out = _read_tars(folder, root)
    images = TarImages([example.image() for example in examples])
    if task.kind == "retrieval":
        captions = [_captions(example) for example in examples]
        for index, of_image in enumerate(captions):
            if not of_image:
                raise InputError(f"{folder / images.name(index)} has no caption\nfix the set")
        image_of = np.repeat(np.arange(len(examples)), [len(of_image) for of_image in captions])
        pairs = np.stack([image_of, np.arange(len(image_of))], axis=1)
        return Captioned(images, tuple(itertools.chain.from_iterable(captions)), pairs, left_out)
    if task.kind == "multilabel":
        labels = _multi_hot([_array(example) for example in examples], folder)
    else:
        labels = _numbers([example.field("cls") for example in examples], images, folder)
    groups = None
    if task.group is not None:
        groups = np.array([_in_column(example, task.group) for example in examples])
    names, templates = _lines(root / "classnames.txt"), None
    if (lines := _lines(root / "zeroshot_classification_templates.txt")) is not None:
        templates = tuple(line.replace("{c}", "{}") for line in lines)
    return Labelled(images, labels, names, templates, groups, left_out)


def find_wds(name: str, data_dir: Path) -> Path:
    """The folder of a set: `name` itself, or `wds_NAME` in the folder of data sets."""
    published, *others = published_names(name)
    for root in (Path(name), data_dir / published, *(data_dir / other for other in others)):
        if root.is_dir():
            return root
    raise MissingDataError(
        f"no folder {data_dir / published}: webdataset clip-benchmark/{published} of Hugging Face\n"
        f"  measure it from there: --data hf://datasets/clip-benchmark\n"
        f"  or hf download clip-benchmark/{published} --repo-type dataset "
        f"--local-dir {data_dir / published}"
    )


@dataclasses.dataclass
class _Example:
    """What a tar holds under one key."""

    tar: Path
    key: str
    left_out: Mapping[str, int]
    """What looked like parts of examples in this tar and those before it."""
    images: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    """Extension -> offset and size."""
    fields: dict[str, bytes] = dataclasses.field(default_factory=dict)
    """Extension -> content of a small file."""

    def image(self) -> tuple[Path, str, int, int]:
        """Of several formats the preferred one: tar, key, offset and size."""
        if not self.images:
            raise InputError(
                f"{self.tar}: {self.key} has no image\nexpected one of {', '.join(_IMAGES)}"
                f"{_described(self.left_out)}"
            )
        return self.tar, self.key, *self.images[min(self.images, key=_IMAGES.index)]

    def field(self, extension: str) -> bytes:
        """The small file, which every example of the task needs."""
        if extension not in self.fields:
            raise InputError(
                f"{self.tar}: {self.key} has no .{extension}\nevery image of this task needs one"
                f"{_described(self.left_out)}"
            )
        return self.fields[extension]


def _read_tars(folder: Path, root: Path) -> tuple[list[_Example], dict[str, int]]:
    """All examples, and what is left out."""
    count_file = folder / "nshards.txt"
    if not count_file.is_file():
        raise InputError(
            f"{root} has no {count_file.relative_to(root)}\n"
            "expected the layout of CLIP_benchmark's webdatasets: classnames.txt, "
            "test/nshards.txt, test/0.tar"
        )
    beside = {path.name for path in folder.iterdir()}
    shards = wds_shards(beside, count_file.read_text(), str(folder))
    examples: list[_Example] = []
    left_out: collections.Counter[str] = collections.Counter()
    for shard in shards:
        path = folder / shard
        try:
            examples += _read_tar(path, left_out)
        except tarfile.TarError as error:
            raise InputError(f"{path} is damaged: {error}\ndownload it again") from None
    if not examples:
        raise InputError(
            f"no images in {folder}\nexpected {', '.join(_IMAGES)} in its tars"
            f"{_described(left_out)}"
        )
    return examples, dict(left_out)


def _read_tar(path: Path, left_out: collections.Counter[str]) -> list[_Example]:
    examples: dict[str, _Example] = {}
    dotted = set()
    with tarfile.open(path) as tar:
        for member in tar:
            key, extension = split_key(member.name)
            reason = member_reason(member.name, member_kind(member), _EXTENSIONS)
            if reason == DOTTED:  # an image and its label are one
                dotted.add(member.name.rpartition(".")[0])
            elif reason:
                left_out[reason] += 1
            if reason or extension not in _EXTENSIONS:
                continue
            example = examples.setdefault(key, _Example(path, key, left_out))
            if extension in example.fields or extension in example.images:
                raise InputError(
                    f"{path} has {key}.{extension} twice\n"
                    "which label belongs to which image cannot be known: make the set anew"
                )
            if extension in _IMAGES:
                example.images[extension] = (member.offset_data, member.size)
            else:
                file = tar.extractfile(member)
                assert file is not None, "`member_reason` leaves out all but plain files"
                example.fields[extension] = file.read()
    if dotted:
        left_out[DOTTED] += len(dotted)
    return list(examples.values())


def _described(left_out: Mapping[str, int]) -> str:
    return f"; left out of the tars: {describe_counts(left_out)}" if left_out else ""


def _array(example: _Example) -> np.ndarray:
    content = example.field("npy")
    try:
        return np.load(io.BytesIO(content)).ravel()
    except (OSError, EOFError, ValueError) as error:
        raise InputError(
            f"{example.tar}: {example.key}.npy is no NumPy array: {error}\nfix the set"
        ) from None


def _in_column(example: _Example, column: int) -> int:
    row = _array(example)
    if len(row) <= column or not np.isfinite(row[column]):
        raise InputError(
            f"{example.tar}: {example.key}.npy is {str(row.tolist())[:60]}\n"
            f"this task reads number {column + 1} of it; fix the set"
        )
    return int(row[column])


def _captions(example: _Example) -> list[str]:
    content = example.field("txt")
    try:
        return content.decode().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{example.tar}: {example.key}.txt is not UTF-8: {error}\nfix the set"
        ) from None


def _numbers(fields: list[bytes], images: TarImages, folder: Path) -> Int[np.ndarray, " n"]:
    try:
        return np.array([int(field) for field in fields])
    except ValueError:
        index = next(i for i, field in enumerate(fields) if not field.strip().isdigit())
        raise InputError(
            f"{folder / images.name(index)}.cls holds {fields[index][:20]!r}\nexpected a number"
        ) from None


def _multi_hot(rows: list[np.ndarray], folder: Path) -> Bool[np.ndarray, "n classes"]:
    lengths = {len(row) for row in rows}
    if len(lengths) != 1:
        raise InputError(f"{folder}: .npy rows of lengths {sorted(lengths)}\nexpected one length")
    return np.stack(rows) > 0


def _lines(path: Path) -> tuple[str, ...] | None:
    if not path.is_file():
        return None
    # An empty line between others stays: without it, all names behind it would be of other labels.
    text = path.read_text().rstrip()
    return tuple(line.strip() for line in text.splitlines())
