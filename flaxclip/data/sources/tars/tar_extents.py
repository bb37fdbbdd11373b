"""The byte ranges of tar shards in which neighbouring pairs lie."""

from collections.abc import Sequence

import numpy as np

from flaxclip.data.storage.file_systems import Version, is_remote
from flaxclip.data.storage.ranged_reads import Extent

MEMBERS = ("image", "txt", "json")
MAX_MEMBER_BYTES = 2**28
"""A larger member is not read: as large as the largest image that transforms decode, in raw RGB."""

_MOST_BYTES = 2**26  # of an extent, unless its pairs have more
_MOST_WASTE = 4  # bytes fetched for each byte of a member


def find_extents(
    entries: np.ndarray, shards: np.ndarray, paths: Sequence[str]
) -> tuple[Extent, ...]:
    """The extents, one a shard, that hold all members of these pairs.

    None for shards on disk, nor where the members are scattered over a shard (as by a tar that has
    all images first): what lies between them is not worth fetching.

    Args:
        entries: [pairs] of `ENTRY`.
        shards: [shards] of `SHARD`.
        paths: of the shards.
    """
    extents = []
    for number in np.unique(entries["shard"]).tolist():
        if not is_remote(paths[number]):
            continue
        own = entries[entries["shard"] == number]
        offsets = np.stack([own[f"{member}_offset"] for member in MEMBERS]).astype(np.int64)
        sizes = np.stack([own[f"{member}_size"] for member in MEMBERS]).astype(np.int64)
        there = (offsets > 0) & (sizes <= MAX_MEMBER_BYTES)
        if not there.any():
            continue
        start, end = int(offsets[there].min()), int((offsets + sizes)[there].max())
        if end - start <= max(_MOST_BYTES, _MOST_WASTE * int(sizes[there].sum())):
            version = Version(*shards[number][["size", "mtime_ns"]].tolist())
            extents.append(Extent(paths[number], start, end, version))
    return tuple(extents)
