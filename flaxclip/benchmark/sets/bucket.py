"""Data sets in object storage, such as those that TFDS keeps: gs://tfds-data/datasets/cifar10."""

import base64
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from flaxclip.benchmark.datasets import MissingDataError
from flaxclip.benchmark.sets.origin import RemoteFile, RemoteSet
from flaxclip.data.storage.file_systems import file_system_of, version_in
from flaxclip.data.storage.repeated_requests import call, described, request
from flaxclip.errors import InputError

_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)/")
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')


class BucketFolder(NamedTuple):
    """A data set's folder."""

    url: str
    folder: str = ""

    @property
    def cache_path(self) -> str:
        """The URL with a slash in place of the colon and slashes."""
        protocol, _, path = self.url.partition("://")
        return f"{protocol}/{path.strip('/')}"

    def look_up(self) -> RemoteSet:
        """What is there; of several versions that TFDS has prepared, in the last one.

        Raises:
            MissingDataError: there is nothing.
            InputError: it cannot be listed.
            StorageAwayError: nobody answers.
        """
        fs = file_system_of(self.url)
        root = fs._strip_protocol(self.url).rstrip("/")
        try:
            found: dict[str, Any] = request(
                self.url, lambda seconds: call(fs, "find", seconds, root, detail=True)
            )
        except FileNotFoundError:
            found = {}
        except OSError as error:
            raise InputError(f"cannot list {self.url}: {described(error)}") from None
        files = {
            path.removeprefix(root).lstrip("/"): RemoteFile(int(info["size"]), _checksum(info))
            for path, info in found.items()
            if info.get("type") != "directory"
        }
        if not files:
            raise MissingDataError(f"there is nothing at {self.url}\ncheck the name")
        version = _last_version(files)
        files = {
            name.removeprefix(version): file
            for name, file in files.items()
            if name.startswith(version)
        }
        url = f"{self.url.rstrip('/')}/{version}".rstrip("/")
        return RemoteSet(url.rpartition("://")[2], url, files)


def _last_version(names: Iterable[str]) -> str:
    """`3.0.2/`, if all files are in folders of versions; else empty."""
    names = list(names)
    found = [_VERSION.match(name) for name in names]
    if not all(found):
        return ""
    return max((one for one in found if one), key=lambda one: tuple(map(int, one.groups())))[0]


def _checksum(info: dict[str, Any]) -> str:
    if info.get("md5Hash"):
        return f"md5:{base64.b64decode(info['md5Hash']).hex()}"
    # Of an object that was sent in one piece it is the MD5 of the content.
    if found := _MD5.fullmatch(str(info.get("ETag", ""))):
        return f"md5:{found[1]}"
    return f"state:{version_in(info).mtime_ns}"
