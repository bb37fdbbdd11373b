"""Shards that were copied, which gives them another time or generation: the same by their headers.

A shard is taken for a copy if it has the size of the one that was indexed and some of its headers,
the first and the last image's among them, are where the index says, with the sizes that it says.
The index holds nothing but keys and positions: what it could get wrong is a shard whose members
were exchanged for others of the same sizes, in places that were not looked at.
"""

import logging
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from flaxclip.data.sources.left_out import split_key
from flaxclip.data.sources.tars.index.index_folder import IndexFolder
from flaxclip.data.sources.tars.index.index_lookup import KnownShards
from flaxclip.data.sources.tars.index.tar_index import TarIndex
from flaxclip.data.storage.files import open_to_read

_HEADERS = 5  # looked at in each shard
_SHORT = 90  # characters of a key that a header always holds, whatever comes after

_logger = logging.getLogger(__name__)


def add_copies(known: KnownShards) -> None:
    """Count shards that are copies of those that were indexed as known."""
    places, table = known.of_same_size()
    if not places:
        return
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(32) as pool:
        index = TarIndex(IndexFolder(folder).publish(table, ""))
        copies = list(
            pool.map(lambda n: _has_headers(index, n, table.names[n]), range(len(index.shards)))
        )
    _logger.info("%s shards are copies of those indexed", f"{sum(copies):,}")
    table.shards["mtime_ns"] = [known.versions[place].mtime_ns for place in places]
    rows = np.flatnonzero(copies)
    names = tuple(table.names[row] for row in rows.tolist())
    known.add(table._replace(shards=table.shards[rows], names=names))


def _has_headers(index: TarIndex, shard: int, path: str) -> bool:
    """True if some headers of a shard are where they were."""
    pairs = int(index.shards["pairs"][shard])
    first = int(index.shards["pairs"][:shard].sum(dtype=np.int64))
    if not pairs:
        return True  # and as many bytes
    with open_to_read(path) as file:
        for number in np.unique(np.linspace(0, pairs - 1, _HEADERS).astype(int)).tolist():
            entry, key = index.entry(first + number), index.key(first + number)
            file.seek(int(entry["image_offset"]) - tarfile.BLOCKSIZE)
            try:
                buffer = file.read(tarfile.BLOCKSIZE)
                header = tarfile.TarInfo.frombuf(buffer, "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                return False
            named = split_key(header.name)[0] == key or len(key) > _SHORT
            if not named or min(header.size, 2**32 - 1) != entry["image_size"]:
                return False
    return True
