"""Files on disk and in object storage: by path, or by a URL that fsspec knows (gs://, s3://)."""

import contextlib
import errno
import functools
import hashlib
import io
import os
import pathlib
import posixpath
import shutil
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple

import fsspec

from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.errors import InputError

REQUESTS_AT_ONCE = 64
"""In flight, to remote storage, in each process. A core decodes some 600 images a second and a
request takes about 0.1 s, so that 60 keep it busy; as many encoded images take a few MB."""

_OPEN_FILES = 128  # kept open in each process; the usual limit is 1,024
_S3 = ("s3", "s3a")
_READ_AHEAD = 2**23  # bytes; large enough that scanning a tar is bound by bandwidth


class Version(NamedTuple):
    """Identifies one state of a file."""

    size: int
    mtime_ns: int
    """In object storage without times, a number made of the object's tag."""


def is_remote(path: str) -> bool:
    """True if `path` is a URL."""
    return "://" in path


@functools.lru_cache(16)
def file_system(protocol: str) -> fsspec.AbstractFileSystem:
    """The file system of URLs that begin with `protocol`.

    Raises:
        InputError: the package that speaks to it is not installed.
    """
    try:
        return fsspec.filesystem(protocol, **_options(protocol))
    except (ImportError, ValueError) as error:
        raise InputError(
            f"cannot open {protocol}:// paths: {error}\n"
            "for Google Cloud Storage: pip install 'flaxclip[gcs]'; for S3: 'flaxclip[s3]'"
        ) from None


def _options(protocol: str) -> dict[str, Any]:
    if protocol not in _S3:
        return {}
    # It would have 10 connections, at which all further requests wait.
    config = {"max_pool_connections": REQUESTS_AT_ONCE}
    for name in _S3:  # what the user has set stands
        config |= fsspec.config.conf.get(name, {}).get("config_kwargs", {})
    return {"config_kwargs": config}


def file_system_of(path: str) -> fsspec.AbstractFileSystem:
    """The file system of a URL; raises `InputError` as `file_system` does."""
    return file_system(path.partition("://")[0])


def version_of(path: str) -> Version:
    """The present state of a file; raises `OSError`."""
    if not is_remote(path):
        stat = os.stat(path)
        return Version(stat.st_size, stat.st_mtime_ns)
    info = file_system_of(path).info(path)
    return Version(int(info["size"]), _change_number(info))


def _change_number(info: dict[str, Any]) -> int:
    for name in ("generation", "etag", "ETag", "mtime", "LastModified", "last_modified", "created"):
        if info.get(name):
            digest = hashlib.sha256(str(info[name]).encode()).digest()
            return int.from_bytes(digest[:7])
    return 0


def open_to_read(path: str) -> io.IOBase:
    """A file to be read from its beginning; raises `OSError`."""
    if not is_remote(path):
        try:
            return open(path, "rb")
        except ValueError as error:  # a NUL or half of a surrogate pair: no file has such a name
            raise OSError(errno.EINVAL, str(error)) from None
    return file_system_of(path).open(path, "rb", block_size=_READ_AHEAD, cache_type="readahead")


def read_file(path: str, max_bytes: int) -> bytes:
    """A whole file.

    Raises:
        UnreadableExampleError: it cannot be read, or is larger.
    """
    with _unreadable_on_failure(path), open_to_read(path) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UnreadableExampleError(f"{path} has more than {max_bytes:,} bytes")
    return data


def read_range(path: str, offset: int, size: int, expected: Version) -> bytes:
    """Part of a file: one positioned read, or one ranged request.

    The version of a local file is checked at every read; that of a remote one, which costs a
    request, when a process first reads of it. A remote file that becomes shorter is always noticed.

    Raises:
        UnreadableExampleError: it cannot be read, or is not in the expected state any more.
    """
    with _unreadable_on_failure(path):
        if is_remote(path):
            version = _FIRST_SEEN.of(path)
            data = file_system_of(path).cat_file(path, start=offset, end=offset + size)
        else:
            file = _open_file(path, expected)
            stat = os.fstat(file.descriptor)
            version = Version(stat.st_size, stat.st_mtime_ns)
            data = os.pread(file.descriptor, size, offset)
    if version != expected or len(data) != size:
        raise UnreadableExampleError(f"{path} has changed since it was indexed")
    return data


@contextlib.contextmanager
def _unreadable_on_failure(path: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise UnreadableExampleError(f"{path}: {error.strerror or error}") from error
    except Exception as error:
        if not is_remote(path):
            raise
        # Clients of object storage, having tried again by themselves, have errors of their own.
        raise UnreadableExampleError(f"{path}: {type(error).__name__}: {error}") from error


class _OpenFile:
    """A file descriptor, closed with its last user: another thread may read while it is evicted."""

    def __init__(self, path: str) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


@functools.lru_cache(_OPEN_FILES)
def _open_file(path: str, version: Version) -> _OpenFile:
    """The version is in the cache's key, so that a new one is opened anew."""
    del version
    return _OpenFile(path)


class _FirstSeenVersions:
    """Versions of remote files when this process first asked: one request, whoever asks, for each.

    A request that fails is one for all who wait for it; whoever asks later asks anew.
    """

    def __init__(self) -> None:
        self._known: dict[str, Version] = {}
        self._asked: dict[str, Future[Version]] = {}
        self._lock = threading.Lock()

    def of(self, path: str) -> Version:
        with self._lock:
            if path in self._known:
                return self._known[path]
            asked, first = self._asked.get(path), path not in self._asked
            if asked is None:
                asked = self._asked[path] = Future()
        if first:
            try:
                version = version_of(path)
            except BaseException as error:
                asked.set_exception(error)
            else:
                self._known[path] = version
                asked.set_result(version)
            with self._lock:
                del self._asked[path]
        return asked.result()


_FIRST_SEEN = _FirstSeenVersions()


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
    return file_system_of(path).isdir(path) if is_remote(path) else os.path.isdir(path)


def cache_folder(kind: str) -> pathlib.Path:
    """`$XDG_CACHE_HOME/flaxclip/KIND`, or below `~/.cache`."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(cache, "flaxclip", kind)


def local_copy(path: str) -> str:
    """`path` itself, or, for a URL, a copy of the file in the cache; for readers of local files.

    Raises:
        InputError: it cannot be read, or the copy cannot be written.
    """
    if not is_remote(path):
        return path
    try:
        version = version_of(path)
        name = hashlib.sha256(repr((path, version)).encode()).hexdigest()[:32]
        copy = cache_folder("shards") / name
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=copy.parent) as folder:
                partial = pathlib.Path(folder, "partial")
                with open_to_read(path) as source, partial.open("wb") as file:
                    shutil.copyfileobj(source, file, _READ_AHEAD)
                partial.replace(copy)
    except OSError as error:
        raise InputError(
            f"cannot copy {path} into {cache_folder('shards')}: {error.strerror or error}\n"
            "only copies of such files can be read; make room there, set XDG_CACHE_HOME to another "
            "folder, or mount the bucket and give its local path"
        ) from None
    return str(copy)
