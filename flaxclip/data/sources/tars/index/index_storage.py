"""Whole small files of an index, on disk and in object storage."""

import os
import posixpath
import tempfile
from collections.abc import Sequence
from typing import Any

from flaxclip.data.storage.file_systems import file_system_of, is_remote
from flaxclip.data.storage.files import open_to_read


def join_path(folder: str, *names: str) -> str:
    """The path of something in a folder."""
    return (posixpath if is_remote(folder) else os.path).join(folder, *names)


def resolve(folder: str, path: str) -> str:
    """`path`, which counts from `folder` unless it is absolute or a URL."""
    return path if is_remote(path) or os.path.isabs(path) else join_path(folder, path)


def relative_to(root: str, path: str) -> str:
    """`path` without the folder `root`, if it lies below it."""
    return path.removeprefix(f"{root.rstrip('/')}/") if root else path


def common_folder(paths: Sequence[str]) -> str:
    """The folder that all paths lie in, without a slash at its end."""
    folders = [f"{os.path.dirname(path)}/" for path in paths]
    # By characters, up to a slash: commonpath would spoil URLs.
    return os.path.commonprefix(folders).rpartition("/")[0]  # noqa: RUF071


def can_list(folder: str) -> bool:
    """False for web servers, which at best have a page of links."""
    return not folder.startswith(("http://", "https://"))


def list_files(folder: str) -> dict[str, dict[str, Any]]:
    """The files in a folder by name, each with `size` and whatever else its storage says of it.

    A folder that is not there is empty, and so is one of a web server.

    Raises:
        OSError: it cannot be listed.
    """
    if not can_list(folder):
        return {}
    try:
        if not is_remote(folder):
            with os.scandir(folder) as found:
                return {entry.name: {"size": entry.stat().st_size} for entry in found}
        fs = file_system_of(folder)
        fs.invalidate_cache(folder)
        listed = fs.ls(folder, detail=True)
    except FileNotFoundError:
        return {}
    return {posixpath.basename(info["name"].rstrip("/")): info for info in listed}


def exists(path: str) -> bool:
    """True if there is such a file; raises `OSError`."""
    return file_system_of(path).exists(path) if is_remote(path) else os.path.exists(path)


def read_whole(path: str) -> bytes:
    """The contents of a file; raises `OSError`."""
    with open_to_read(path) as file:
        return file.read()


def write_whole(path: str, data: bytes) -> None:
    """Write a file so that readers see none, or the old one, or all of the new one.

    Raises:
        OSError: it cannot be written.
    """
    if is_remote(path):  # an object appears when it is complete
        fs = file_system_of(path)
        try:
            fs.pipe_file(path, data)
        except FileNotFoundError:  # storage that has folders
            fs.makedirs(posixpath.dirname(path), exist_ok=True)
            fs.pipe_file(path, data)
        return
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(prefix=".", dir=folder)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
