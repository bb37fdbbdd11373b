"""Sets whose captions are longer than what models read at once, as their authors publish them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from flaxclip.benchmark.datasets import Captioned, MissingDataError
from flaxclip.benchmark.readers.folder import FileImages
from flaxclip.benchmark.readers.published_files import files_of
from flaxclip.benchmark.tasks import DataSource, Task
from flaxclip.errors import InputError

_UNUSABLE, _LABEL_ONLY = 2, 1
"""Qualities of a mask of DCI, whose words are left out, or its description."""


def read_docci(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Captioned:
    """`docci/docci_descriptions.jsonlines` over `images/`: Onoe et al. 2024.

    Raises:
        MissingDataError: they are not there.
        InputError: a line is damaged, or there is none of the split.
    """
    del image_size
    root = data_dir / source.name
    file = root / "docci_descriptions.jsonlines"
    _check_there(file, root / "images", task, source)
    found = []
    # Not `splitlines`: descriptions may hold other separators than line ends.
    lines = file.read_text(encoding="utf-8").rstrip("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        item = _json(line, f"{file}, line {number}", ("split", "image_file", "description"))
        if item["split"] == split:
            found.append((root / "images" / item["image_file"], item["description"]))
    if not found:
        raise InputError(f"{file} has no line of split {split!r}\ndownload it again")
    return _one_each(root, found)


def read_dci(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Captioned:
    """`densely_captioned_images/complete/*.json` over `photos/`: Urbanek et al. 2024.

    With `captions: first`, the short caption and what its author added; otherwise also the
    descriptions of all masks, as the authors' code puts them together.

    Raises:
        MissingDataError: they are not there.
        InputError: a file is damaged.
    """
    del split, image_size
    root = data_dir / source.name
    _check_there(root / "complete", root / "photos", task, source)
    found = []
    for file in files_of(root / "complete", "*.json"):
        fields = ("image", "short_caption", "extra_caption", "mask_data")
        item = _json(file.read_text(encoding="utf-8"), str(file), fields)
        caption = f"{item['short_caption']}\n{item['extra_caption']}"
        if source.captions == "all":
            caption = _with_masks(caption, item["mask_data"])
        found.append((root / "photos" / item["image"], caption))
    if not found:
        raise InputError(f"{root / 'complete'} holds no .json\nunpack dci.tar.gz again")
    return _one_each(root, found)


def _with_masks(caption: str, masks: dict[str, dict[str, Any]]) -> str:
    described = [
        mask["label"]
        if mask["mask_quality"] == _LABEL_ONLY
        else f"{mask['label']}: {mask['caption']}"
        for mask in masks.values()
        if mask["mask_quality"] != _UNUSABLE
    ]
    if not described:
        return caption
    return "\n".join([caption, "The following can also be seen in the image:", *described])


def read_urban1k(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Captioned:
    """`Urban1k/caption/N.txt`, the first line, over `Urban1k/image/N.jpg`: Zhang et al. 2024.

    Raises:
        MissingDataError: they are not there.
        InputError: a caption is empty.
    """
    del split, image_size
    root = data_dir / source.name
    _check_there(root / "caption", root / "image", task, source)
    found = []
    for file in files_of(root / "caption", "*.txt"):
        caption = file.read_text(encoding="utf-8").split("\n")[0]
        if not caption.strip():
            raise InputError(f"{file} has nothing in its first line\ndownload it again")
        found.append((root / "image" / f"{file.stem}.jpg", caption))
    if not found:
        raise InputError(f"{root / 'caption'} holds no .txt\ndownload it again")
    return _one_each(root, found)


def _one_each(root: Path, found: list[tuple[Path, str]]) -> Captioned:
    paths, captions = zip(*found, strict=True)
    pairs = np.repeat(np.arange(len(paths)), 2).reshape(-1, 2)
    return Captioned(FileImages(root, paths), captions, pairs)


def _check_there(words: Path, images: Path, task: Task, source: DataSource) -> None:
    if not words.exists() or not images.is_dir():
        raise MissingDataError(f"no {words} or no {images}: {task.title}\n  {source.url}")


def _json(text: str, where: str, fields: tuple[str, ...]) -> dict[str, Any]:
    try:
        item = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where} is no JSON: {error}\ndownload it again") from None
    if missing := [field for field in fields if field not in item]:
        raise InputError(f"{where} has no {missing[0]}\ndownload it again")
    return item
