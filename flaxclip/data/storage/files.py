"""Files on disk and in object storage: by path, or by a URL that fsspec knows (gs://, s3://)."""

import errno
import io
import os
import pathlib
import posixpath
from collections.abc import Iterator

from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.data.storage.file_systems import file_system_of, is_remote
from flaxclip.data.storage.ranged_reads import open_ranged, unreadable_on_failure


def open_to_read(path: str) -> io.IOBase:
    """A file to be read from its beginning; raises `OSError`."""
    if not is_remote(path):
        try:
            return open(path, "rb")
        except ValueError as error:  # a NUL or half of a surrogate pair: no file has such a name
            raise OSError(errno.EINVAL, str(error)) from None
    return open_ranged(path)


def read_file(path: str, max_bytes: int) -> bytes:
    """A whole file.

    Raises:
        UnreadableExampleError: it cannot be read, or is larger.
        InputError: see `fetch`.
        StorageAwayError: see `fetch`.
    """
    with unreadable_on_failure(path), open_to_read(path) as file:
        # Of a remote file, only its size has been asked for so far.
        size = file.seek(0, os.SEEK_END)
        if size > max_bytes:
            raise UnreadableExampleError(f"{path} has more than {max_bytes:,} bytes")
        file.seek(0)
        return file.read(size)


def files_below(folder: str) -> Iterator[str]:
    """Paths, relative to `folder` and with slashes, of all files below it; in no order."""
    if not is_remote(folder):
        for parent, folders, names in os.walk(folder, followlinks=True):
            folders[:] = [name for name in folders if not _leads_back(parent, name)]
            inner = os.path.relpath(parent, folder)
            yield from (name if inner == "." else f"{inner}/{name}" for name in names)
        return
    fs = file_system_of(folder)
    root = fs._strip_protocol(folder).rstrip("/")
    for path in fs.find(root):
        yield posixpath.relpath(path, root)


def _leads_back(parent: str, name: str) -> bool:
    """True if a link leads to a folder that contains it, which would be listed again."""
    path = os.path.join(parent, name)
    if not os.path.islink(path):
        return False
    return f"{os.path.realpath(parent)}/".startswith(f"{os.path.realpath(path).rstrip('/')}/")


def is_folder(path: str) -> bool:
    """True if `path` is a folder, or the equivalent in object storage."""
    if not is_remote(path):
        return os.path.isdir(path)
    if path.startswith(("http://", "https://")):
        # The client would download a file whole, to look for links in it.
        return path.endswith("/")
    return file_system_of(path).isdir(path)


def cache_folder(kind: str) -> pathlib.Path:
    """`$XDG_CACHE_HOME/flaxclip/KIND`, or below `~/.cache`."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(cache, "flaxclip", kind)
