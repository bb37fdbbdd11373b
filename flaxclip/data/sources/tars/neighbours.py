"""The files of an example that lie beside those that the index of a tar knows.

webdataset takes for a sample what follows one another under one key, whatever the extensions are.
The index knows images, texts and JSON alone; all else of an example lies between them, before them
or behind them, up to the examples before and after it.
"""

import io
import tarfile
from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from flaxclip.data.sources.left_out import split_key
from flaxclip.data.sources.tars.tar_extents import MAX_MEMBER_BYTES, MEMBERS
from flaxclip.data.sources.tars.tar_scan import READ_WHOLE, Header

_BLOCK = tarfile.BLOCKSIZE
_TYPE = 156  # offset of it in a header
_ZERO = b"\0"


class Span(NamedTuple):
    """Bytes of a tar, from the header of a member on."""

    start: int
    end: int
    is_cut: bool = False
    """Whether it ends somewhere in a member, as what lies there is too large to be read."""
    ends_archive: bool = False
    """Whether it goes to the end of the tar."""


def spans_of(
    entry: np.void, before: np.void | None, after: np.void | None, shard_bytes: int
) -> tuple[Span, Span]:
    """Where an example's further files can lie: from its first known one on, and before that.

    Args:
        entry: the example, of `ENTRY`.
        before: the example before it in its shard, if there is one.
        after: the example after it, likewise.
        shard_bytes: size of the shard.
    """
    first = _first(entry) - _BLOCK
    end = shard_bytes if after is None else _first(after) - _BLOCK
    most = first + MAX_MEMBER_BYTES
    start = 0 if before is None else min(_end(before), first)
    return (
        Span(first, min(end, most), end > most, after is None),
        Span(start if first - start <= MAX_MEMBER_BYTES else first, first),
    )


class Members(NamedTuple):
    """The members of a sample."""

    contents: dict[str, bytes]
    """By extension."""
    damage: str | None
    """Where the tar breaks off before the end of what was to be read, and what is there."""


def read_members(data: bytes, span: Span, key: str, extensions: Collection[str]) -> Members:
    """The members of a sample that are whole, of the `data` of a tar in `span`."""
    found: dict[str, bytes] = {}
    file, last, start, error = io.BytesIO(data), "", 0, None
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=Header) as tar:
            while member := tar.next():
                room = len(data) - member.offset_data
                if not 0 <= member.size <= room:
                    what = f"{member.name} of {member.size:,} bytes, with room for {room:,}"
                    return Members(found, None if span.is_cut else _at(span, start, last, what))
                its_key, extension = split_key(member.name)
                if its_key == key and extension in extensions and member.isreg():
                    contents = tar.extractfile(member)
                    assert contents is not None, "it is a file"
                    found.setdefault(extension, contents.read())
                start, last = tar.offset, member.name
    except (tarfile.TarError, ValueError, OverflowError) as found_error:
        error = found_error
    fault = _fault(data[start:], span, error, file.tell() >= len(data))
    return Members(found, fault and _at(span, start, last, fault))


def _fault(rest: bytes, span: Span, error: Exception | None, is_read: bool) -> str | None:
    """What is wrong with the `rest` of a span, in which there is no further member.

    tarfile takes a bad header, and the end of its file, for the end of an archive; of some headers
    it raises an `error`. `is_read` if it has read all of `rest`.
    """
    if not rest:
        return "no end-of-archive mark" if span.ends_archive and not span.is_cut else None
    if not any(rest) and span.ends_archive:
        return None
    if not any(rest[:_BLOCK]):
        return "zeros in place of a header"
    if len(rest) < _BLOCK:
        return None if span.is_cut else f"{len(rest)} bytes of a header"
    if error is not None and is_read and rest[_TYPE : _TYPE + 1] in READ_WHOLE:
        # It counts for the next header, which is that with which a known member begins.
        return str(error) if span.ends_archive and not span.is_cut else None
    return f"a bad header, which begins with {rest[:32].rstrip(_ZERO)!r}"


def _at(span: Span, start: int, last: str, what: str) -> str:
    behind = f", behind {last}" if last else ""
    return f"at byte {span.start + start:,}{behind}: {what}"


def _places(entry: np.void) -> list[tuple[int, int]]:
    places = ((int(entry[f"{name}_offset"]), int(entry[f"{name}_size"])) for name in MEMBERS)
    return [place for place in places if place[0]]


def _first(entry: np.void) -> int:
    return min(offset for offset, _ in _places(entry))


def _end(entry: np.void) -> int:
    """Where the header after its last known member begins."""
    return max(offset + -(-size // _BLOCK) * _BLOCK for offset, size in _places(entry))
