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


def fetch_tail(path: str, version: Version, records: int) -> Tail:
    """The end of a file of so many records, by one request, or two if it is longer than most.

    Raises:
        LayoutError: it is no whole ArrayRecord file.
        UnreadableExampleError: it cannot be read.
    """
    end = version.size - BLOCK
    # The footer is padded to the end of its last block.
    guess = max(end - BLOCK - min(_FOOTER_BYTES * records, _MOST_GUESSED), 0)
    data = fetch(Extent(path, guess, end + POSTSCRIPT_BYTES, version))
    postscript = data[end - guess :]
    start = footer_start(postscript, version.size)
    if start < guess:
        data = fetch(Extent(path, start, guess, version)) + data
    footer_bytes = data[max(start - guess, 0) :][: end - start]
    # The padding is zeros, as holes are.
    return Tail(read_footer(footer_bytes, start), footer_bytes.rstrip(b"\0"), postscript)


class Tails:
    """Ends of the files that were read last; each is fetched once, by whoever asks first."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, Version], Future[Tail]] = {}
        self._lock = threading.Lock()

    def of(self, path: str, version: Version, records: int) -> Tail:
        """See `fetch_tail`; a failure is one for all who wait, and whoever asks later asks anew."""
        key = path, version
        with self._lock:
            found = self._known.pop(key, None)
            tail = self._known[key] = found or Future()  # as the last that was asked for
            if len(self._known) > _KEPT_FOOTERS:
                del self._known[next(iter(self._known))]
        if found is None:
            try:
                tail.set_result(fetch_tail(path, version, records))
            except BaseException as error:
                tail.set_exception(error)
                with self._lock:
                    if self._known.get(key) is tail:
                        del self._known[key]
        return tail.result()


TAILS = Tails()


def read_records(
    tail: Tail, size: int, chunks: bytes, first: int, last: int
) -> list[bytes | UnreadableExampleError]:
    """Records [first, last) of a file of `size` bytes, or for each what is wrong with it.

    Args:
        tail: its end.
        size: its number of bytes.
        chunks: the bytes that `tail.footer.chunks(first, last)` tells.
        first: number of the first record.
        last: one past that of the last.

    Raises:
        InputError: there is no room for them.
    """
    start, end = tail.footer.chunks(first, last)
    if len(chunks) != end - start:
        raise ValueError(f"{len(chunks)} bytes of the {end - start} that hold these records")
    footer = int(tail.footer.bounds[-1])
    pieces = [(start, chunks), (footer, tail.footer_bytes), (size - BLOCK, tail.postscript)]
    with _file_with_holes(size, pieces) as path:
        reader = ArrayRecordReader(path, options=_OPTIONS)
    records: list[bytes | UnreadableExampleError] = []
    length = tail.footer.records_per_chunk
    while first < last:  # chunk by chunk, since each has a hash
        stop = min((first // length + 1) * length, last)
        try:
            records += reader.read(first, stop)
        except (RuntimeError, IndexError) as error:
            broken = UnreadableExampleError(str(error).split(";")[0])
            records += [broken] * (stop - first)
        first = stop
    return records


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
