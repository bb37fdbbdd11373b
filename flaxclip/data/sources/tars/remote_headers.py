"""Reads a tar's headers from object storage, and of the data between what is cheaper read along.

Two ways lead from one header to the next. A request for a few KiB at the next header costs its
latency, L seconds; the data between, read along, costs its bytes over the bandwidth, b. Where a
request would lead from a header past d bytes on average, requests are taken if

    L + w / b  <  d / b

with w = 16 KiB, which a request asks for, since small members often follow a large one. Otherwise
the tar is read in one go, by requests of 8 L b bytes, so that waiting takes a ninth of the time. L
and b are measured over the first requests of a process and followed from then on; d over the first
headers of each tar. All that is read is asked for by ranges, whose lengths are checked.
"""

import io
import threading
import time

from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.data.storage.file_systems import Version
from flaxclip.data.storage.ranged_reads import Extent, fetch

_WINDOW = 2**14  # bytes, w
_FIRST = 2**16  # of a tar
_PROBE = 2**20  # large enough to measure bandwidth with
_CHUNKS = (2**20, 2**25)  # bytes: the shortest and the longest read in one go
_ENOUGH = 4  # requests, that would have been made, to tell how far they lead
_MEMORY = 0.7  # weight of what was measured before


class Link:
    """Latency and bandwidth of storage, as the requests of this process find them."""

    def __init__(self) -> None:
        self.latency: float | None = None
        """Seconds."""
        self.bandwidth: float | None = None
        """Bytes a second, of one request."""
        self._lock = threading.Lock()

    def measured(self, size: int, seconds: float) -> None:
        """Take in one request."""
        with self._lock:
            if size <= _FIRST:
                self.latency = _follow(self.latency, seconds)
            elif size >= _PROBE // 2 and self.latency is not None:
                # A request may take less than latency does on average.
                transfer = max(seconds - self.latency, seconds / 10, 1e-9)
                self.bandwidth = _follow(self.bandwidth, size / transfer)

    def skips_pay(self, distance: float) -> bool:
        """True if requests that lead `distance` bytes further are faster than reading these."""
        if self.latency is None or self.bandwidth is None:
            return False
        return self.latency + _WINDOW / self.bandwidth < distance / self.bandwidth

    def chunk(self) -> int:
        """Bytes to ask for at once when reading in one go."""
        if self.latency is None or self.bandwidth is None:
            return _PROBE
        shortest, longest = _CHUNKS
        return min(max(int(8 * self.latency * self.bandwidth), shortest), longest)


def _follow(before: float | None, now: float) -> float:
    return now if before is None else _MEMORY * before + (1 - _MEMORY) * now


LINK = Link()


class RemoteHeaders(io.RawIOBase):
    """A tar in object storage as a file, for a reader that jumps from header to header.

    `read` raises `OSError`, and what `fetch` raises of the whole of a server.
    """

    def __init__(self, path: str, version: Version) -> None:
        self._path, self._version, self._link = path, version, LINK
        self._position = 0
        self._buffer, self._start = b"", 0
        # As if all was read by requests for a window: how far each would have led.
        self._window_end = self._windows = 0
        self.bytes_read = self.requests = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._version.size}
        self._position = base[whence] + offset
        return self._position

    def tell(self) -> int:
        """The byte that is read next."""
        return self._position

    def read(self, size: int = -1) -> bytes:
        """The next bytes, as many as asked for unless the tar ends."""
        start = self._position
        left = max(self._version.size - start, 0)
        size = left if size < 0 else min(size, left)
        end = start + size
        if end > self._window_end:
            self._windows += 1
            self._window_end = max(start + _WINDOW, end)
        if start < self._start or end > self._start + len(self._buffer):
            self._fill(start, end)
        self._position = end
        return self._buffer[start - self._start : end - self._start]

    def _fill(self, start: int, end: int) -> None:
        """Read from `start` on, at least up to `end`."""
        if not self.requests:
            size = _FIRST
        elif self._windows >= _ENOUGH and self._link.skips_pay(start / self._windows):
            size = _WINDOW
        else:
            size = self._link.chunk()
        stop = min(max(start + size, end), self._version.size)
        kept = b""
        if self._start <= start < self._start + len(self._buffer):
            kept = self._buffer[start - self._start :]
        begin = time.monotonic()
        try:
            data = fetch(Extent(self._path, start + len(kept), stop, self._version))
        except UnreadableExampleError as error:
            raise OSError(str(error)) from error
        self._link.measured(len(data), time.monotonic() - begin)
        self.requests += 1
        self.bytes_read += len(data)
        self._buffer, self._start = kept + data, start
