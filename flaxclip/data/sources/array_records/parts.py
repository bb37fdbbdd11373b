"""Records of ArrayRecord files of which only parts are here, as ranged requests bring them.

The library that reads them, and checks their hashes, takes whole files. It is given one that has
the size of the whole and holes where nothing is known, which take no room.
"""

import errno
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple, cast

from array_record.python.array_record_module import ArrayRecordReader

from flaxclip.data.sources.array_records.layout import (
    BLOCK,
    POSTSCRIPT_BYTES,
    Footer,
    LayoutError,
    count_records,
    footer_start,
    read_footer,
)
from flaxclip.data.sources.source import UnreadableExampleError
from flaxclip.data.storage.file_systems import Version
from flaxclip.data.storage.range_cache import RangeCache
from flaxclip.data.storage.ranged_reads import Extent, fetch
from flaxclip.errors import InputError

_HEAD_BYTES = 2**14  # of the footer of 16,000 chunks, as far as the number of records
_FOOTER_BYTES = 16  # of each chunk, uncompressed
_MOST_GUESSED = 2**20
_KEPT_FOOTERS = 64  # in each process, at about 20 bytes a chunk
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


class Tail(NamedTuple):
    """The end of a file: where its chunks lie, and what the library wants to read of it."""

    footer: Footer
    footer_bytes: bytes
    postscript: bytes


def count_remote_records(path: str, version: Version) -> int:
    """Number of records of a file, by two requests of 16 KiB together.

    Footers that are compressed, or of more than 16,000 chunks, take a third request for all of it.

    Raises:
        LayoutError: it is no whole ArrayRecord file.
        UnreadableExampleError: it cannot be read.
    """
    end = version.size - BLOCK
    if end < 0:
        raise LayoutError(f"{version.size:,} bytes are too few, so it may have been cut off")
    postscript = fetch(Extent(path, end, end + POSTSCRIPT_BYTES, version))
    start = footer_start(postscript, version.size)
    head = min(start + _HEAD_BYTES, end)
    records = count_records(fetch(Extent(path, start, head, version)), start)
    if records is None:
        records = read_footer(fetch(Extent(path, start, end, version)), start).records
    return records


def fetch_tail(path: str, version: Version, records: int, cache: RangeCache | None = None) -> Tail:
    """The end of a file of so many records, by one request, or two if it is longer than most.

    Through the cache, if there is one: one request for all processes of the host.

    Raises:
        LayoutError: it is no whole ArrayRecord file.
        UnreadableExampleError: it cannot be read.
    """
    end = version.size - BLOCK
    # The footer is padded to the end of its last block.
    guess = max(end - BLOCK - min(_FOOTER_BYTES * records, _MOST_GUESSED), 0)
    data = _read(Extent(path, guess, end + POSTSCRIPT_BYTES, version), cache)
    postscript = data[end - guess :]
    start = footer_start(postscript, version.size)
    if start < guess:
        data = _read(Extent(path, start, guess, version), cache) + data
    footer_bytes = data[max(start - guess, 0) :][: end - start]
    # The padding is zeros, as holes are.
    return Tail(read_footer(footer_bytes, start), footer_bytes.rstrip(b"\0"), postscript)


def _read(extent: Extent, cache: RangeCache | None) -> bytes:
    return fetch(extent) if cache is None else cache.read(extent, extent.start, extent.end)


class Tails:
    """Ends of the files that were read last; each is fetched once, by whoever asks first."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, Version], Future[Tail]] = {}
        self._lock = threading.Lock()

    def of(
        self, path: str, version: Version, records: int, cache: RangeCache | None = None
    ) -> Tail:
        """See `fetch_tail`; a failure is one for all who wait, and whoever asks later asks anew."""
        key = path, version
        with self._lock:
            found = self._known.pop(key, None)
            tail = self._known[key] = found or Future()  # as the last that was asked for
            if len(self._known) > _KEPT_FOOTERS:
                del self._known[next(iter(self._known))]
        if found is None:
            try:
                tail.set_result(fetch_tail(path, version, records, cache))
            except BaseException as error:
                tail.set_exception(error)
                with self._lock:
                    if self._known.get(key) is tail:
                        del self._known[key]
        return tail.result()


TAILS = Tails()


def read_record(tail: Tail, size: int, chunk: bytes, number: int) -> bytes:
    """A record of a file.

    Args:
        tail: the file's end.
        size: its number of bytes.
        chunk: the bytes that `tail.footer.chunks(number, number + 1)` tells.
        number: of the record.

    Raises:
        UnreadableExampleError: the chunk is damaged.
        InputError: there is no room for it.
    """
    start, end = tail.footer.chunks(number, number + 1)
    if len(chunk) != end - start:
        raise ValueError(f"{len(chunk)} bytes of the {end - start} that hold this record")
    footer = int(tail.footer.bounds[-1])
    pieces = [(start, chunk), (footer, tail.footer_bytes), (size - BLOCK, tail.postscript)]
    with _file_with_holes(size, pieces) as path:
        reader = ArrayRecordReader(path, options=_OPTIONS)
    try:
        return reader.read(number, number + 1)[0]
    except (RuntimeError, IndexError) as error:
        raise UnreadableExampleError(str(error).split(";")[0]) from None


@contextmanager
def _file_with_holes(size: int, pieces: Sequence[tuple[int, bytes]]) -> Iterator[str]:
    """The path of a file, which is gone when all who have opened it have closed it.

    Raises:
        InputError: there is no room for it.
    """
    with _nameless_file() as file:
        try:
            os.ftruncate(file.fileno(), size)
            for start, data in pieces:
                if os.pwrite(file.fileno(), data, start) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise InputError(
                f"no room for parts of a shard of {size:,} bytes: {error.strerror}\n"
                f"make room in memory or in {tempfile.gettempdir()}, or raise ulimit -f"
            ) from None
        yield f"/dev/fd/{file.fileno()}"


def _nameless_file() -> BinaryIO:
    if hasattr(os, "memfd_create"):  # in memory; macOS has none
        return cast(BinaryIO, os.fdopen(os.memfd_create("array_record"), "r+b", 0))
    return cast(BinaryIO, tempfile.TemporaryFile(buffering=0))
