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

_BLOCK = tarfile.BLOCKSIZE


class Span(NamedTuple):
    """Bytes of a tar, from the header of a member on."""

    start: int
    end: int


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
    start = 0 if before is None else min(_end(before), first)
    return (
        Span(first, min(end, first + MAX_MEMBER_BYTES)),
        Span(start if first - start <= MAX_MEMBER_BYTES else first, first),
    )


def read_members(data: bytes, key: str, extensions: Collection[str]) -> dict[str, bytes]:
    """The members of a sample by extension, of a tar that starts with the header of one.

    What is cut off at the end of `data` is not there.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                its_key, extension = split_key(member.name)
                if its_key == key and extension in extensions and member.isreg():
                    file = tar.extractfile(member)
                    assert file is not None, "it is a file"
                    found.setdefault(extension, file.read())
    except tarfile.TarError:
        pass  # the end of `data` is no end of an archive
    return found


def _places(entry: np.void) -> list[tuple[int, int]]:
    places = ((int(entry[f"{name}_offset"]), int(entry[f"{name}_size"])) for name in MEMBERS)
    return [place for place in places if place[0]]


def _first(entry: np.void) -> int:
    return min(offset for offset, _ in _places(entry))


def _end(entry: np.void) -> int:
    """Where the header after its last known member begins."""
    return max(offset + -(-size // _BLOCK) * _BLOCK for offset, size in _places(entry))
