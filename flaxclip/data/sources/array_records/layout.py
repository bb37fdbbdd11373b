"""Where the records of an ArrayRecord file lie, from its last bytes.

An ArrayRecord file is a Riegeli file: a sequence of chunks, each a header and some records. A block
header of 24 bytes interrupts whatever stands at every 64 KiB.

    chunk: hash 8, data size 8, hash of data 8, kind 1, records 7, decoded size 8; data
    data: kind of compression 1, size of sizes (varint), sizes of records (varints), records

The last block holds the postscript, which says where the footer begins. The records of that are
protocol buffers: one about the file, then one for each chunk before it, with its position. Nothing
else is decoded here, and no hash is checked: that is left to the library that reads the records.

Specifications: google/riegeli, doc/riegeli_records_file_format.md; google/array_record,
cpp/layout.proto.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Int

BLOCK = 2**16
POSTSCRIPT_BYTES = 256
"""From the start of the last block; the rest of it is padding."""
_BLOCK_HEADER, _CHUNK_HEADER = 24, 40
_MAGIC = 0x71930E704FDAE05E
_SIMPLE = ord("r")
_CODECS = {ord("b"): "brotli", ord("z"): "zstd", ord("s"): "snappy"}
_CHUNK_TAGS = [8, 16, 24]  # fields 1 (position), 2 (decoded size), 3 (records), all varints
_FILE_TAGS = [8, 16, 24]  # fields 1 (version), 2 (chunks), 3 (records)


class LayoutError(ValueError):
    """The file is no whole ArrayRecord file of a known version."""


class Footer(NamedTuple):
    """The chunks of a file, and how many records each has."""

    bounds: Int[np.ndarray, " chunks_and_one"]
    """Positions of the chunks, and of the end of the last one."""
    records: int
    records_per_chunk: int
    """The last chunk may have fewer."""

    def chunks(self, first: int, last: int) -> tuple[int, int]:
        """The first byte, and one past the last, of the chunks of records [first, last)."""
        begin, end = first // self.records_per_chunk, -(-last // self.records_per_chunk)
        return int(self.bounds[begin]), int(self.bounds[end])


def footer_start(postscript: bytes, size: int) -> int:
    """Where the footer of a file of `size` bytes begins, from the start of its last block.

    Raises:
        LayoutError: this is no postscript.
    """
    try:
        sizes, values, _ = _records(_chunk(postscript, size - BLOCK))
        tag, start, magic_tag, magic = _varints(values[: sizes[0]]).tolist()
    except (ValueError, IndexError, pa.ArrowException):
        tag = magic_tag = start = magic = -1
    if (tag, magic_tag, magic) != (8, 16, _MAGIC) or not 0 <= start < size - BLOCK:
        raise LayoutError("it does not end as one, so it may have been cut off or never closed")
    return start


def count_records(head: bytes, start: int) -> int | None:
    """Number of records in the file, from the first bytes of its footer; None if it takes more.

    Raises:
        LayoutError: see `read_footer`.
    """
    try:
        sizes, values, _ = _records(_chunk(head, start))
        return _about_file(values[: sizes[0]]) if sizes[0] <= len(values) else None
    except IndexError:
        return None


def read_footer(data: bytes, start: int) -> Footer:
    """The whole footer, which begins at byte `start` of the file.

    Raises:
        LayoutError: it is cut off, or of another version.
    """
    try:
        sizes, values, are_whole = _records(_chunk(data, start))
        records = _about_file(values[: sizes[0]])
        table = _varints(values[sizes[0] :]).reshape(len(sizes) - 1, 6)
    except (ValueError, IndexError, pa.ArrowException) as error:
        raise LayoutError(f"its footer cannot be read: {error}") from error
    positions, counts = table[:, 1], table[:, 5]
    bounds = np.append(positions, start)
    per_chunk = int(counts[0]) if len(counts) else 1
    if (
        not are_whole
        or (table[:, ::2] != _CHUNK_TAGS).any()
        or (np.diff(bounds) <= 0).any()
        or (counts[:-1] != per_chunk).any()
        or counts.sum() != records
        or -(-records // per_chunk) != len(counts)
    ):
        raise LayoutError("its footer contradicts itself, or is of an unknown version")
    return Footer(bounds, records, per_chunk)


def _chunk(data: bytes, start: int) -> tuple[bytes, bool]:
    """Data of the chunk that begins at byte `start`, as far as they are there; and if that is all.

    `data` are the bytes of the file from there on.
    """
    first = -start % BLOCK
    parts = [data[:first]]
    parts += [data[at + _BLOCK_HEADER : at + BLOCK] for at in range(first, len(data), BLOCK)]
    joined = b"".join(parts)
    if len(joined) < _CHUNK_HEADER:
        raise IndexError("the chunk is cut off")
    size = int.from_bytes(joined[8:16], "little")
    if joined[24] != _SIMPLE:
        raise LayoutError(f"a chunk of kind {joined[24]} is in place of its footer")
    return joined[_CHUNK_HEADER : _CHUNK_HEADER + size], len(joined) >= _CHUNK_HEADER + size


def _records(chunk: tuple[bytes, bool]) -> tuple[Int[np.ndarray, " records"], bytes, bool]:
    """Sizes of a chunk's records, the records one after the other, and if they are all there."""
    data, are_whole = chunk
    sizes_size, at = _varint(data, 1)
    if at + sizes_size > len(data) or (data[0] and not are_whole):
        raise IndexError("the chunk is cut off")
    sizes = _varints(_decompressed(data[0], data[at : at + sizes_size]))
    return sizes, _decompressed(data[0], data[at + sizes_size :]), are_whole


def _decompressed(compression: int, data: bytes) -> bytes:
    if not compression:
        return data
    if compression not in _CODECS:
        raise LayoutError(f"its footer is compressed in an unknown way: {compression}")
    size, at = _varint(data, 0)
    return pa.Codec(_CODECS[compression]).decompress(data[at:], size, asbytes=True)


def _about_file(data: bytes) -> int:
    """Number of records, from the first record of a footer."""
    # {1: {1: version, 2: chunks, 3: records, 4: a text}}
    _, at = _varint(data, 1)
    numbers = _varints(data[at : at + 32])[:6].tolist()
    if data[:1] != b"\x0a" or numbers[::2] != _FILE_TAGS or numbers[1] != 1:
        raise LayoutError("its footer is of an unknown version")
    return numbers[5]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number, 7 bits a byte, and the position after it."""
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at


def _varints(data: bytes) -> Int[np.ndarray, " numbers"]:
    """The numbers of which `data` consists, below 2^63; one that is cut off is left out."""
    octets = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(octets < 128)
    starts = np.append(0, ends[:-1] + 1)[: len(ends)]
    octets = octets[: ends[-1] + 1] if len(ends) else octets[:0]
    places = np.arange(len(octets)) - np.repeat(starts, ends - starts + 1)
    return np.add.reduceat((octets & 127).astype(np.int64) << 7 * places, starts)
