"""Captions and class names in many languages, as their authors publish them."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flaxclip.benchmark.datasets import (
    Captioned,
    LanguageNames,
    MissingDataError,
    Multilingual,
    Translated,
)
from flaxclip.benchmark.readers.folder import FileImages
from flaxclip.benchmark.readers.published_files import files_of
from flaxclip.benchmark.readers.wds import read_wds
from flaxclip.benchmark.tasks import DataSource, Task
from flaxclip.errors import InputError


def read_crossmodal3600(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Translated:
    """`crossmodal3600/captions.jsonl` over `images/KEY.jpg`: Thapliyal et al. 2022.

    With `captions: first`, of several captions of an image in a language the first, as
    CLIP_benchmark has it.

    Raises:
        MissingDataError: they are not there.
        InputError: a line is damaged, or lacks a language or its captions.
    """
    del split, image_size
    file = data_dir / source.name / "captions.jsonl"
    images = _image_folder(file, data_dir / source.name / "images", task, source)
    items = [
        _json(line, f"{file}, line {number}") for number, line in enumerate(_lines(file), start=1)
    ]
    for number, item in enumerate(items, start=1):
        if not (isinstance(item, dict) and "image/key" in item):
            raise InputError(f"{file}, line {number} has no 'image/key'\ndownload it again")
    languages = [name for item in items[:1] for name, value in item.items() if _has_captions(value)]
    chosen = _choose(task, languages, file)

    def texts(language: str) -> list[list[str]]:
        of_images = []
        for number, item in enumerate(items, start=1):
            if not _has_captions(item.get(language)):
                raise InputError(f"{file}, line {number} has no captions in {language!r}")
            captions = item[language]["caption"]
            of_images.append(captions[:1] if source.captions == "first" else captions)
        return of_images

    paths = [images / f"{item['image/key']}.jpg" for item in items]
    return _translated(images, paths, {language: texts(language) for language in chosen})


def _has_captions(value: Any) -> bool:
    return isinstance(value, dict) and bool(value.get("caption"))


_FLORES = re.compile(r"([a-z]{3}_[A-Z][a-z]{3})\.txt")
_XTD = re.compile(r"test_1kcaptions_([a-z]+)\.txt")
_LINED: Mapping[str, tuple[str, re.Pattern[str]]] = {
    "xtd10": ("XTD10/test_image_names.txt", _XTD),
    "xtd200": ("test_image_names.txt", _FLORES),
    "flickr30k-200": ("filenames.txt", _FLORES),
}
"""Set -> its list of images, and names of its files of captions with the language."""


def read_lined_captions(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Translated:
    """A list of images, and for every language a file with a caption a line; `images/`.

    XTD10 (Aggarwal and Kale 2020), XTD200 and Flickr30k-200 (Visheratin 2023), as their
    repositories have them.

    Raises:
        MissingDataError: they are not there.
        InputError: a file has more or fewer lines than there are images, or an empty one; or two
            are of one language.
    """
    del split, image_size
    index, pattern = _LINED[source.name]
    root = data_dir / source.name
    images = _image_folder(root / index, root / "images", task, source)
    names = _lines(root / index)
    files: dict[str, Path] = {}
    for path in files_of(root, "**/*.txt"):
        if match := pattern.fullmatch(path.name):
            if match[1] in files:
                raise InputError(
                    f"{files[match[1]]} and {path} are both of {match[1]!r}\n"
                    "which of them is right cannot be known: remove one"
                )
            files[match[1]] = path
    captions = {}
    for language in _choose(task, list(files), root):
        lines = _lines(files[language])
        if len(lines) != len(names):
            raise InputError(
                f"{files[language]} has {len(lines):,} lines, {root / index} {len(names):,}\n"
                "there must be one caption for each image: download the file again"
            )
        if "" in map(str.strip, lines):
            empty = [line.strip() for line in lines].index("") + 1
            raise InputError(f"{files[language]}, line {empty} is empty\ndownload it again")
        captions[language] = [[line] for line in lines]
    return _translated(images, [images / name for name in names], captions)


def read_flickr_annotations(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Captioned:
    """`NAME_SPLIT_LANGUAGE.txt` with lines `image.jpg,caption` under a heading, beside the images.

    The files of mehdidc/retrieval_annotations, which CLIP_benchmark reads.

    Raises:
        MissingDataError: it is not there.
        InputError: a line is not of this form.
    """
    del image_size
    folder, language = source.name.rsplit("-", 1)
    file = data_dir / folder / f"{folder}_{split}_{language}.txt"
    _image_folder(file, file.parent, task, source)
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(_lines(file)[1:], start=2):
        if not line.strip():
            continue
        name, suffix, caption = line.strip().partition(".jpg,")
        if not (suffix and caption):
            raise InputError(f"{file}, line {number} is {line[:40]!r}\nexpected image.jpg,caption")
        captions.setdefault(f"{name}.jpg", []).append(caption)
    if not captions:
        raise InputError(f"{file} holds no captions\ndownload it again")
    paths = [file.parent / name for name in captions]
    return _captioned(FileImages(file.parent, paths), list(captions.values()))


def read_babel_imagenet(
    task: Task, source: DataSource, split: str, data_dir: Path, image_size: int
) -> Multilingual:
    """`babel-imagenet/NAME.json` (language -> numbers of classes, their names) over ImageNet.

    Geigle et al. 2023. Names are asked as they are, English by the names of the CLIP paper, as
    there; or with the source's file of `prompts`, in the languages that it has, as in
    CLIP_benchmark.

    Raises:
        MissingDataError: names, prompts or images are not there.
        InputError: a file is damaged, or ImageNet is not that of 1,000 classes.
    """
    root = data_dir / "babel-imagenet"
    files = [root / f"{name}.json" for name in (source.name, source.prompts) if name]
    for file in files:
        if not file.is_file():
            raise MissingDataError(
                f"no {file}: {task.title}\n  {source.url} data/{file.name}; its licence "
                "(BabelNet, non-commercial) does not let it come with this program"
            )
    named, *prompts = (_json(file.read_text(), str(file)) for file in files)
    if prompts:
        (templates,) = prompts
    else:
        english = task.prompts["openai"].class_names
        assert english is not None, "the task has ImageNet's words"
        named["EN"] = [list(range(len(english))), english]
        templates = {language: ["{}"] for language in named}
    languages = {}
    for language in _choose(task, [name for name in named if name in templates], root):
        classes, names = named[language]
        if len(classes) != len(names) or not set(classes) <= set(range(1000)):
            raise InputError(
                f"{files[0]}: {language} has {len(classes)} classes, {len(names)} names"
            )
        languages[language] = LanguageNames(
            np.array(classes), tuple(names), tuple(templates[language])
        )
    imagenet = read_wds(task, DataSource("wds", "imagenet1k"), split, data_dir, image_size)
    assert not isinstance(imagenet, Captioned), "the task's kind is not retrieval"
    return Multilingual(imagenet.images, imagenet.labels, languages)


def _choose(task: Task, languages: Sequence[str], where: Path) -> Sequence[str]:
    if not languages:
        raise InputError(f"{task.name}: nothing in any language in {where}\ndownload it again")
    if unknown := sorted(set(task.languages) - set(languages)):
        raise InputError(
            f"{task.name}: no language {unknown[0]!r}\nthere are: {', '.join(languages)}"
        )
    return task.languages or languages


def _translated(
    root: Path, paths: list[Path], captions: Mapping[str, list[list[str]]]
) -> Translated:
    images = FileImages(root, paths)
    return Translated(
        images, {language: _captioned(images, texts) for language, texts in captions.items()}
    )


def _captioned(images: FileImages, captions: Sequence[Sequence[str]]) -> Captioned:
    image_of = np.repeat(np.arange(len(captions)), [len(texts) for texts in captions])
    pairs = np.stack([image_of, np.arange(len(image_of))], axis=1)
    return Captioned(images, tuple(text for texts in captions for text in texts), pairs)


def _image_folder(file: Path, images: Path, task: Task, source: DataSource) -> Path:
    if not file.is_file() or not images.is_dir():
        raise MissingDataError(f"no {file} or no {images}: {task.title}\n  {source.url}")
    return images


def _lines(file: Path) -> list[str]:
    # Not `splitlines`: captions may hold other separators than line ends.
    lines = file.read_text(encoding="utf-8").replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{where} is no JSON: {error}\ndownload it again") from None
