"""A folder of images: with texts beside them, or in a folder for each class.

    photos/0001.jpg + photos/0001.txt (or .json)      fields: txt, or those of the JSON
    photos/great_auk/0001.jpg                         field: class, "great auk"

If any image has a text beside it, those without one are left out, counted and reported. So are
hidden images, and leftovers of other programs: see `left_out.py`.
"""

import logging
import posixpath
from typing import Any

import pyarrow as pa

from flaxclip.data.sources.captions import (
    DEFAULT_CAPTIONS,
    CaptionConfig,
    json_fields,
    make_captions,
    utf8,
)
from flaxclip.data.sources.left_out import LEFTOVERS, describe_leftovers, is_leftover
from flaxclip.data.sources.source import Pair
from flaxclip.data.storage.file_systems import is_remote
from flaxclip.data.storage.files import files_below, is_folder, read_file
from flaxclip.errors import InputError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
MAX_IMAGE_BYTES = 2**28  # as large as the largest image that transforms decode, in raw RGB
_SHARDS = (".tar", ".array_record", ".parquet", ".csv", ".tsv")
_MAX_TEXT_BYTES = 2**24

_logger = logging.getLogger(__name__)


class FolderSource:
    """A `Source` over the images below a folder, sorted by path."""

    def __init__(self, folder: str, captions: CaptionConfig = DEFAULT_CAPTIONS) -> None:
        """List the folder.

        Raises:
            InputError: no such folder, or no image in it that has a text or a class.
        """
        if not is_folder(folder):
            raise InputError(f"no folder {folder}\nexpected one with images in it")
        self._folder = folder.rstrip("/")
        self._captions = captions
        files: dict[str, dict[str, str]] = {}
        leftovers: list[str] = []
        for path in files_below(self._folder):
            stem, extension = posixpath.splitext(path)
            if is_leftover(path):
                leftovers += [path] * path.lower().endswith(EXTENSIONS)
            else:
                files.setdefault(stem, {})[extension.lower()] = extension
        images, texts, left_out = [], [], 0
        with_texts = any(_texts(found) and _images(found) for found in files.values())
        for stem, found in sorted(files.items()):
            for extension in _images(found):
                if _texts(found) if with_texts else "/" in stem:
                    images.append(stem + found[extension])
                    texts.append("".join(found[text] for text in _texts(found)))
                else:
                    left_out += 1
        shards = next((e for found in files.values() for e in found if e in _SHARDS), None)
        if not images and shards:
            raise InputError(f"{folder} holds shards\ngive '{self._folder}/*{shards}'")
        if not images:
            raise InputError(
                f"no images with captions in {folder}\n"
                f"{sum(map(len, files.values())):,} files, {left_out:,} of them images; expected "
                "a .txt or .json of the same name beside images, or a folder for each class"
                f"{describe_leftovers(leftovers)}"
            )
        # Arrow: a fifth of what a list of strings takes, in this process and in every worker.
        self._paths, self._texts = pa.array(images), pa.array(texts)
        counts = {"images_without_text_or_class": left_out, LEFTOVERS: len(leftovers)}
        self.left_out = {name: count for name, count in counts.items() if count}
        """Counts, by reason, of images that are not part of the source."""
        _logger.log(
            logging.WARNING if self.left_out else logging.INFO,
            "%s images in %s%s%s",
            f"{len(self):,}",
            folder,
            f"; {left_out:,} left out, without a text or a class" if left_out else "",
            describe_leftovers(leftovers),
        )

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Pair:
        captions = self.captions(index)
        path = f"{self._folder}/{self._path(index)}"
        return Pair(read_file(path, MAX_IMAGE_BYTES), *captions)

    def captions(self, index: int) -> tuple[tuple[str, ...], tuple[float, ...] | None]:
        """The captions alone, with weights: they may exist although the image is missing."""
        return make_captions(self.fields(index), self._captions, ("txt", "caption", "class"))

    @property
    def paths(self) -> list[str]:
        """Paths of all images."""
        return [f"{self._folder}/{path}" for path in self._paths.to_pylist()]

    def fields(self, index: int) -> dict[str, Any]:
        """`txt` and the fields of the JSON; or `class`: the folder's name, with spaces for `_`."""
        path = self._path(index)
        stem = posixpath.splitext(f"{self._folder}/{path}")[0]
        fields: dict[str, Any] = {}
        for extension in self._texts[index].as_py().split(".")[1:]:
            data = read_file(f"{stem}.{extension}", _MAX_TEXT_BYTES)
            fields |= {"txt": utf8(data)} if extension.lower() == "txt" else json_fields(data)
        if not fields and "/" in path:
            fields["class"] = posixpath.basename(posixpath.dirname(path)).replace("_", " ")
        return fields

    def name(self, index: int) -> str:
        """Path, with the folder's own name in front."""
        return f"{posixpath.basename(self._folder)}/{self._path(index)}"

    @property
    def reads_remotely(self) -> bool:
        """True if the folder is at a URL."""
        return is_remote(self._folder)

    def _path(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self):,}")
        return self._paths[index].as_py()


def _images(found: dict[str, str]) -> list[str]:
    return [extension for extension in EXTENSIONS if extension in found]


def _texts(found: dict[str, str]) -> list[str]:
    return [extension for extension in (".json", ".txt") if extension in found]
