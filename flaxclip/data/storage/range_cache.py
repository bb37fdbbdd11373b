"""A bounded cache of byte ranges in a local folder, for all processes of a host and several runs.

    cache = RangeCache("/mnt/disks/ssd/flaxclip", 200 * 2**30)
    cache.ensure(extent)                    # in the process that prefetches
    data = cache.read(extent, start, end)   # in workers; never needs `ensure` to have been called

An extent is a file, named by a hash of its path, bounds and version. One process downloads it into
a partial file that it has locked, while others wait for the lock, which the kernel releases if the
process dies; then the file is renamed. What was used longest ago goes first.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

from flaxclip.data.storage.cached_file import END_BYTES, is_whole, write_whole
from flaxclip.data.storage.ranged_reads import Extent, fetch
from flaxclip.data.storage.repeated_requests import Counter
from flaxclip.errors import InputError

_KEPT = 0.95  # of the bound, when it is reached: listing a large folder takes a second
_PAUSE_SECONDS = 60.0  # without storing, after the disk has refused
_TOTAL = "total"  # file that holds the size of all others, and whose lock guards it
_PARTIAL = ".partial"
_ANY = 2**63
_LARGE = 2**20  # bytes of an extent, of which a process downloads few at once to read of them
_LARGE_READS = threading.BoundedSemaphore(16)  # some 80 MiB in each of a hundred workers

_logger = logging.getLogger(__name__)


class CacheCounts(NamedTuple):
    """What a process has done with caches."""

    hits: int = 0
    misses: int = 0
    """Extents that it has downloaded into the cache."""
    not_stored: int = 0
    """Reads that went past the cache: it was full of what is being written, or the disk refused."""
    evicted: int = 0
    damaged: int = 0
    """Files that were cut short, or had not reached the disk when the machine went down."""


COUNTER = Counter(CacheCounts())


@dataclasses.dataclass(frozen=True)
class RangeCache:
    """See the module's docstring. Copies can be sent to other processes.

    Raises:
        InputError: the bound is not positive, or the folder cannot be written.
    """

    folder: str
    max_bytes: int
    """Of all files together, partial ones included. If several runs share the folder, each sees to
    its own bound."""

    def __post_init__(self) -> None:
        if self.max_bytes <= 0:
            raise InputError(f"a cache of {self.max_bytes:,} bytes\nit must be positive")
        object.__setattr__(self, "folder", os.path.abspath(self.folder))
        try:
            os.makedirs(self.folder, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder) as file:
                file.write(bytes(2**12))
                file.flush()
                os.fsync(file.fileno())
            with self._locked_total() as total:
                total.bytes = self._evict(self.max_bytes)
        except OSError as error:
            raise InputError(
                f"cannot write into the cache {self.folder}: {error.strerror or error}\n"
                "expected a folder on a local disk with room: make some there, or name another one"
            ) from None

    def __setstate__(self, state: dict) -> None:
        # Nothing is checked or counted again.
        self.__dict__.update(state)

    def __contains__(self, extent: Extent) -> bool:
        """True if an extent is there now; it may be evicted at once."""
        descriptor = self._open(extent)
        if descriptor is None:
            return False
        os.close(descriptor)
        return True

    def ensure(self, extent: Extent) -> bool:
        """Download an extent, unless it is there; True if it was not, and is now.

        Where the cache cannot store it, nothing is downloaded. Raises as `fetch` does.
        """
        found = self._find(extent)
        if isinstance(found, int):
            os.close(found)
        return isinstance(found, bytes)

    def read(self, extent: Extent, start: int, end: int) -> bytes:
        """The bytes from `start` to `end`, positions in the file, of an extent that holds them.

        Downloads the whole extent, unless it is there; but only these bytes if the cache cannot
        store it.

        Raises as `fetch` does; and ValueError: the extent does not hold these bytes.
        """
        if not extent.start <= start <= end <= extent.end:
            raise ValueError(f"bytes {start} to {end} of {extent}")
        found: int | bytes | None = self._open(extent)
        if found is None:
            with _LARGE_READS if extent.size > _LARGE else contextlib.nullcontext():
                found = self._find(extent)
        if found is None:
            COUNTER.add(not_stored=1)
            return fetch(extent._replace(start=start, end=end))
        if isinstance(found, bytes):
            return found[start - extent.start : end - extent.start]
        try:
            COUNTER.add(hits=1)
            return os.pread(found, end - start, start - extent.start)
        finally:
            os.close(found)

    def _find(self, extent: Extent) -> int | bytes | None:
        """The file of an extent, opened; or its data, if it had to be downloaded.

        None if the cache cannot store it.
        """
        while True:
            descriptor = self._open(extent)
            if descriptor is not None:
                return descriptor
            if time.monotonic() < _paused.get(self.folder, 0.0):
                return None
            with contextlib.ExitStack() as stack:
                try:
                    partial = stack.enter_context(self._locked_partial(extent))
                    if partial is None:
                        continue  # another process has it now, or failed
                    if not self._reserve(partial, extent.size + END_BYTES):
                        return None
                except OSError as error:
                    self._pause(error)
                    return None
                data = fetch(extent)
                try:
                    self._store(extent, partial, data)
                except OSError as error:
                    self._pause(error)
                return data

    def _path(self, extent: Extent) -> str:
        name = hashlib.sha256(repr(tuple(extent)).encode()).hexdigest()[:32]
        return os.path.join(self.folder, name[:2], name)

    def _open(self, extent: Extent) -> int | None:
        """A descriptor of the extent's file; None if there is none that is whole."""
        path = self._path(extent)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            whole = is_whole(descriptor, path, extent.size)
        except OSError:
            whole = False
        if whole:
            return descriptor
        os.close(descriptor)
        COUNTER.add(damaged=1)
        # The total is too large from now on, until files are counted again.
        with contextlib.suppress(OSError):
            os.unlink(path)
        return None

    @contextlib.contextmanager
    def _locked_partial(self, extent: Extent) -> Iterator[int | None]:
        """A descriptor of the extent's partial file, which no other process has meanwhile.

        None if it was another's, which has finished or given up. What is still there in the end is
        removed, also what a killed process has left.
        """
        path = self._path(extent)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor = os.open(path + _PARTIAL, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not _is_at(descriptor, path + _PARTIAL):
                yield None
                return
            try:
                yield None if os.path.exists(path) else descriptor
            finally:
                if _is_at(descriptor, path + _PARTIAL):
                    self._remove_partial(descriptor, path + _PARTIAL)
        finally:
            os.close(descriptor)  # and unlock

    def _remove_partial(self, descriptor: int, path: str) -> None:
        with contextlib.suppress(OSError), self._locked_total() as total:
            total.bytes -= os.fstat(descriptor).st_size
            os.unlink(path)

    def _reserve(self, partial: int, size: int) -> bool:
        """Give a partial file its size, and evict others as it needs; False if it has no room."""
        with self._locked_total() as total:
            more = size - os.fstat(partial).st_size
            if total.bytes + more > self.max_bytes:
                total.bytes = self._evict(int(_KEPT * self.max_bytes) - more)
            if total.bytes + more > self.max_bytes:
                return False
            os.ftruncate(partial, size)
            total.bytes += more
            return True

    def _store(self, extent: Extent, partial: int, data: bytes) -> None:
        write_whole(partial, data)
        path = self._path(extent)
        with self._locked_total():  # not while files are counted, where it might be missed
            os.rename(path + _PARTIAL, path)
        COUNTER.add(misses=1)

    def _pause(self, error: OSError) -> None:
        """Store nothing for a while; say so, once in a process."""
        if self.folder not in _paused:
            _logger.warning(
                "cannot write into the cache %s: %s; what it does not hold is read past it",
                *(self.folder, error.strerror or error),
            )
        _paused[self.folder] = time.monotonic() + _PAUSE_SECONDS

    @contextlib.contextmanager
    def _locked_total(self) -> Iterator["_Total"]:
        """The size of all files, to be changed; locked against all processes.

        A process that is killed leaves it too large, never too small.
        """
        descriptor = os.open(
            os.path.join(self.folder, _TOTAL), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666
        )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            text = os.pread(descriptor, 32, 0)
            total = _Total(int(text) if text.strip().isdigit() else self._evict(_ANY))
            try:
                yield total
            finally:
                os.pwrite(descriptor, b"%020d" % max(total.bytes, 0), 0)
        finally:
            os.close(descriptor)

    def _evict(self, target: int) -> int:
        """Remove what was used longest ago until `target` bytes are left; returns what is left.

        Only by who holds the lock of the total.
        """
        files, total = [], 0
        for path, stat in self._files():
            if path.endswith(_PARTIAL):
                total += 0 if _removed_if_left(path) else stat.st_size
            else:
                total += stat.st_size
                files.append((stat.st_mtime_ns, stat.st_size, path))
        for _, size, path in sorted(files):
            if total <= target:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            total -= size
            COUNTER.add(evicted=1)
        return total

    def _files(self) -> Iterator[tuple[str, os.stat_result]]:
        for folder in os.scandir(self.folder):
            if len(folder.name) == 2 and folder.is_dir():
                for entry in os.scandir(folder.path):
                    with contextlib.suppress(FileNotFoundError):  # renamed or removed meanwhile
                        yield entry.path, entry.stat()


@dataclasses.dataclass
class _Total:
    bytes: int


_paused: dict[str, float] = {}  # folder -> time until which nothing is stored there


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _removed_if_left(partial: str) -> bool:
    """Remove a partial file whose process has ended; True if so."""
    with contextlib.suppress(OSError):
        descriptor = os.open(partial, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(partial)
            return True
        finally:
            os.close(descriptor)
    return False
