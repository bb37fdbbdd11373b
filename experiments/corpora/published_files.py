"""What is right of a small published set, its images, and the files that such sets are made of."""

import csv
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet

from flaxclip.data.sources.scenes import ScenesSource

SIDE = 32
NAMES = ("circle", "square", "star")
"""Of the classes in sets that bring none of their own."""


class Labels(NamedTuple):
    """Images with a class each; and a group each, if the set has groups."""

    images: Sequence[Any]
    labels: Sequence[int]
    groups: Sequence[int] = ()


class Captions(NamedTuple):
    """Images, and captions with the number of the image that each is of."""

    images: Sequence[Any]
    captions: Sequence[str]
    image_of: Sequence[int]


class Statements(NamedTuple):
    """Images with right and wrong captions each, and the kind of each question."""

    images: Sequence[Any]
    right: Sequence[Sequence[str]]
    wrong: Sequence[Sequence[str]]
    kinds: Sequence[str] = ()


class TwoByTwo(NamedTuple):
    """Images and captions of which each is the other's; every two after each other are an item."""

    images: Sequence[Any]
    captions: Sequence[str]


class Cues(NamedTuple):
    """For each cue, images, and which of them go with it."""

    cues: Sequence[str]
    images: Sequence[Sequence[bytes]]
    goes: Sequence[Sequence[bool]]


class InLanguages(NamedTuple):
    """What is asked in each language."""

    languages: Mapping[str, Any]


class Named(NamedTuple):
    """Labelled images, of which a language names some classes: number -> name."""

    labelled: Labels
    names: Mapping[int, str]


class Known(NamedTuple):
    """Images of known classes, and of others by where they are from."""

    inside: Labels
    outside: Mapping[str, Sequence[bytes]]


class People(NamedTuple):
    """Images, the facts of each in the order of DataComp's columns, and the words of questions."""

    images: Sequence[bytes]
    facts: np.ndarray
    names: Mapping[str, Sequence[str]]


def draw(count: int, first: int = 0) -> list[bytes]:
    """Scenes as JPEG, which differ for different numbers."""
    scenes, files = ScenesSource("seen", SIDE), []
    for number in range(first, first + count):
        files.append(io.BytesIO())
        PIL.Image.fromarray(scenes[number].image).save(files[-1], "JPEG")
    return [file.getvalue() for file in files]


def one_each(images: Sequence[Any], captions: Sequence[str]) -> Captions:
    """A caption for each image."""
    return Captions(images, captions, range(len(images)))


def several_each(images: Sequence[Any], texts: Sequence[Sequence[str]]) -> Captions:
    """Captions by image."""
    image_of = [number for number, of_image in enumerate(texts) for _ in of_image]
    return Captions(images, [text for of_image in texts for text in of_image], image_of)


def statements(
    images: Sequence[Any],
    items: Iterable[Mapping[str, Any]],
    right: Sequence[str],
    wrong: Sequence[str],
    kinds: Sequence[str] = (),
) -> Statements:
    """An item for each image; `right` and `wrong` are fields of it."""
    items = list(items)
    texts = ([[item[field] for field in fields] for item in items] for fields in (right, wrong))
    return Statements(images, *texts, kinds)


def write(file: Path, content: bytes | str) -> None:
    """A file in a folder that need not be there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)


def write_images(folder: Path, images: Sequence[bytes]) -> list[str]:
    """`FOLDER/NNN_FOLDER.jpg`: no two folders have a name in common."""
    names = [f"{number:03}_{folder.name}.jpg" for number in range(len(images))]
    for name, image in zip(names, images, strict=True):
        write(folder / name, image)
    return names


def write_json(file: Path, content: Any) -> None:
    """JSON."""
    write(file, json.dumps(content, ensure_ascii=False))


def write_csv(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """CSV with a heading."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write(file, text.getvalue())


def write_parquet(file: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """A table."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.table(columns), file)


def write_tar(file: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """A tar of small files."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_wds(
    root: Path,
    examples: Sequence[Mapping[str, bytes]],
    names: Sequence[str],
    templates: Sequence[str] = ("a photo of a {c}.",),
) -> None:
    """CLIP_benchmark's layout, in two shards; `examples`: extension -> content."""
    half = len(examples) // 2
    for shard, part in enumerate((examples[:half], examples[half:])):
        members = [
            (f"s{half * shard + number:07}.{extension}", data)
            for number, example in enumerate(part)
            for extension, data in example.items()
        ]
        write_tar(root / f"test/{shard}.tar", members)
    write(root / "test/nshards.txt", "2\n")
    write(root / "classnames.txt", "".join(f"{name}\n" for name in names))
    lines = "".join(f"{template}\n" for template in templates)
    write(root / "zeroshot_classification_templates.txt", lines)
