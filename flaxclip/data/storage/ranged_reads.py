"""Byte ranges of files: each one request to object storage, or one positioned read from disk.

extent = Extent("gs://bucket/0.tar", 2**22, 2**23, version_of("gs://bucket/0.tar"))
data = fetch(extent)  # exactly 4 MiB of that state of the file, or an error
"""

import contextlib
import functools
import io
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple

from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.data.storage.file_systems import (
    Version,
    file_system_of,
    is_remote,
    state_of,
    unbuffered,
)
from flaxclip.data.storage.hedged_requests import read_range
from flaxclip.data.storage.repeated_requests import (
    COUNTER,
    StorageAwayError,
    TransientError,
    described,
    request,
    status_of,
)
from flaxclip.errors import InputError

_OPEN_FILES = 128  # kept open in each process; the usual limit is 1,024
_READ_AHEAD = 2**23  # bytes; large enough that scanning a tar is bound by bandwidth
_KNOWN_STATES = 2**15  # a few hundred bytes each; beyond, files are asked for again
_REFUSALS = (412, 416)  # precondition failed, range not satisfiable

_Condition = dict[str, Any]


class Extent(NamedTuple):
    """A byte range of a file in one state."""

    path: str
    """Of a file, or a URL."""
    start: int
    end: int
    version: Version | None
    """If None, the file is one whose contents are never changed, such as one named by their hash;
    only remote ones can be."""

    @property
    def size(self) -> int:
        """Its number of bytes."""
        return self.end - self.start


def fetch(extent: Extent) -> bytes:
    """The bytes of an extent, from where the file is.

    The version of a local file is checked at every read. That of a remote one costs a request when
    a process first reads of it; gs:// and most http(s):// servers are asked for this version in
    every request besides, s3:// is not. A remote file that becomes shorter is always noticed.

    Raises:
        UnreadableExampleError: it cannot be read, or is not in the expected state any more.
        InputError: the server ignores ranges, or the package that speaks to it is not installed.
        StorageAwayError: its storage stays away, or does not accept the credentials any more.
    """
    with unreadable_on_failure(extent.path):
        return _read_remote(extent) if is_remote(extent.path) else _read_local(extent)


@contextlib.contextmanager
def unreadable_on_failure(path: str) -> Iterator[None]:
    """Turn errors over a file into `UnreadableExampleError`; others pass."""
    try:
        yield
    except (InputError, StorageAwayError, UnreadableExampleError):
        raise
    except OSError as error:
        raise UnreadableExampleError(f"{path}: {error.strerror or error}") from error
    except Exception as error:
        if not is_remote(path):
            raise
        # Clients of object storage, having tried again by themselves, have errors of their own.
        raise UnreadableExampleError(f"{path}: {described(error)}") from error


def _has_changed(path: str) -> UnreadableExampleError:
    return UnreadableExampleError(f"{path} has changed since it was indexed")


def _read_local(extent: Extent) -> bytes:
    assert extent.version is not None, "or a file that is replaced would stay open"
    file = _open_file(extent.path, extent.version)
    stat = os.fstat(file.descriptor)
    data = os.pread(file.descriptor, extent.size, extent.start)
    if Version(stat.st_size, stat.st_mtime_ns) != extent.version or len(data) != extent.size:
        raise _has_changed(extent.path)
    return data


def _read_remote(extent: Extent) -> bytes:
    path, size, fs = extent.path, extent.size, file_system_of(extent.path, repeats=False)
    version = extent.version
    if version and (_STATES.condition(path, version) is None or extent.end > version.size):
        raise _has_changed(path)
    if not size:
        return b""

    def send(seconds: float) -> bytes:
        condition = _STATES.condition(path, version) if version else {}
        if condition is None:
            raise _has_changed(path)
        arguments = unbuffered(path) | condition
        try:
            data = read_range(fs, path, extent.start, extent.end, seconds, **arguments)
        except Exception as error:
            if not version or not condition or not _is_refusal(error, condition):
                raise
            # Some servers do not know their own tags.
            _STATES.ask_anew(path, version, {})
            raise TransientError(f"refused, though it is unchanged: {described(error)}") from None
        COUNTER.add(bytes=len(data))
        if len(data) > size:
            raise InputError(
                f"the server ignores ranges: {size:,} bytes of {path} were asked for, "
                f"{len(data):,} came\nexpected one that answers ranged requests, as object storage "
                "does; or copy the files to disk"
            )
        if len(data) < size:
            # Shorter files are told from bodies that end early.
            if version:
                _STATES.ask_anew(path, version, condition)
            raise TransientError(f"the answer ended after {len(data):,} of {size:,} bytes")
        return data

    return request(path, send, size)


def _is_refusal(error: Exception, condition: _Condition) -> bool:
    """True if the server says that there is no such state of a file."""
    if "generation" in condition and isinstance(error, FileNotFoundError):
        return True
    return status_of(error) in _REFUSALS


class OpenFile:
    """A file descriptor, closed with its last user: another thread may read while it is evicted."""

    def __init__(self, path: str) -> None:
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


@functools.lru_cache(_OPEN_FILES)
def _open_file(path: str, version: Version) -> OpenFile:
    """The version is in the cache's key, so that a new one is opened anew."""
    del version
    return OpenFile(path)


class _States:
    """Whether remote files are in the states that are expected: one request a process for each.

    A request that fails is one for all who wait for it; whoever asks later asks anew.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, Version], _Condition | None] = {}
        self._asked: dict[tuple[str, Version], Future[_Condition | None]] = {}
        self._lock = threading.Lock()

    def condition(self, path: str, expected: Version) -> _Condition | None:
        """Arguments of `cat_file` that ask for this state alone; None if it is past."""
        key = path, expected
        with self._lock:
            if key in self._known:
                return self._known[key]
            asked, first = self._asked.get(key), key not in self._asked
            if asked is None:
                asked = self._asked[key] = Future()
        if first:
            try:
                found, condition = state_of(path)
                if found != expected:
                    found, condition = state_of(path, anew=True)
            except BaseException as error:
                asked.set_exception(error)
            else:
                result = condition if found == expected else None
                self.remember(path, expected, result)
                asked.set_result(result)
            with self._lock:
                del self._asked[key]
        return asked.result()

    def remember(self, path: str, expected: Version, condition: _Condition | None) -> None:
        """Note what has just been asked for; forget what was noted first, if it is too much."""
        with self._lock:
            self._known[path, expected] = condition
            if len(self._known) > _KNOWN_STATES:
                del self._known[next(iter(self._known))]

    def ask_anew(self, path: str, expected: Version, condition: _Condition) -> None:
        """Check a state again, whose reads fail; to be asked for with `condition` if it is present.

        Raises:
            UnreadableExampleError: it is past.
        """
        found, _ = state_of(path, anew=True)
        self.remember(path, expected, condition if found == expected else None)
        if found != expected:
            raise _has_changed(path)


_STATES = _States()


class _RangedFile(io.RawIOBase):
    """A remote file for readers of local ones; one block of it is in memory."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path, self._position = path, 0
        self._version, condition = state_of(path)
        _STATES.remember(path, self._version, condition)
        self._block, self._block_start = b"", 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._version.size}
        position = base[whence] + offset
        if position < 0:
            raise ValueError(f"negative position {position} in {self._path}")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        start = self._position - self._block_start
        if not 0 <= start < len(self._block):
            end = min(self._position + max(len(buffer), _READ_AHEAD), self._version.size)
            if end <= self._position:
                return 0
            try:
                self._block = fetch(Extent(self._path, self._position, end, self._version))
            except UnreadableExampleError as error:
                raise OSError(str(error)) from error
            self._block_start, start = self._position, 0
        data = memoryview(self._block)[start : start + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def open_ranged(path: str) -> io.BufferedReader:
    """A remote file to be read from its beginning: at least `_READ_AHEAD` bytes a request.

    Reading from it raises `OSError` too, where it cannot be read or has changed since.

    Raises:
        OSError: there is none, or it cannot be reached.
        InputError: see `fetch`; or the server does not say how large it is.
        StorageAwayError: see `fetch`.
    """
    return io.BufferedReader(_RangedFile(path), 2**16)
