"""Which shards indexes know already, in the state that they are in now."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flaxclip.data.sources.storage import Version
from flaxclip.data.sources.tars.index_folder import IndexFolder
from flaxclip.data.sources.tars.index_storage import common_folder, join_path
from flaxclip.data.sources.tars.index_table import Table


class Known(NamedTuple):
    """What indexes have of some shards."""

    tables: list[Table]
    rows: np.ndarray
    """[shards, 2] int64: for each shard a table, and its row there; -1, -1 if it is not known."""
    changed: list[str]
    """Shards that are known, but in another state."""


def find_known(
    folders: Sequence[IndexFolder], paths: Sequence[str], versions: Sequence[Version]
) -> Known:
    """What the indexes in `folders` have of shards in their present state."""
    tables: list[Table] = []
    rows = np.full((len(paths), 2), -1, np.int64)
    seen = np.zeros(len(paths), bool)
    sizes, times = np.array(versions, np.int64).reshape(-1, 2).T
    for folder in folders:
        for table in folder.read_tables():
            found = _rows_by_name(table, folder, paths)
            seen |= found >= 0
            candidates = np.flatnonzero((found >= 0) & (rows[:, 0] < 0))
            entries = table.shards[found[candidates]]
            same = (entries["size"] == sizes[candidates]) & (
                entries["mtime_ns"] == times[candidates]
            )
            places = candidates[same]
            rows[places] = np.stack([np.full(len(places), len(tables)), found[places]], axis=1)
            tables.append(table)
    return Known(
        tables, rows, [paths[place] for place in np.flatnonzero(seen & (rows[:, 0] < 0)).tolist()]
    )


def _rows_by_name(table: Table, folder: IndexFolder, paths: Sequence[str]) -> np.ndarray:
    """[paths] the row of each path in a table, or -1.

    The corpus may have moved, with its index: names count from where it was, or is, whichever
    explains most.
    """
    best, most = np.full(len(paths), -1, np.int64), 0
    beside = os.path.dirname(folder.path)
    for root in dict.fromkeys((table.root, beside, common_folder(paths))):
        numbers = {join_path(root, name): row for row, name in enumerate(table.names)}
        found = np.array([numbers.get(path, -1) for path in paths], np.int64)
        if (count := int((found >= 0).sum())) > most:
            best, most = found, count
        if most == len(paths):
            break
    return best
