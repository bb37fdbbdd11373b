"""Which shards indexes know already, in the state that they are in now."""

import os
from collections.abc import Iterable, Sequence

import numpy as np

from flaxclip.data.sources.tars.index.index_folder import IndexFolder
from flaxclip.data.sources.tars.index.index_storage import common_folder, join_path
from flaxclip.data.sources.tars.index.index_table import Table, join_tables
from flaxclip.data.storage.file_systems import Version


class KnownShards:
    """What tables have of some shards; the first table that knows a shard counts."""

    def __init__(
        self, folders: Iterable[IndexFolder], paths: Sequence[str], versions: Sequence[Version]
    ) -> None:
        """What the indexes in `folders` have of shards, in their present state `versions`."""
        self.paths, self.versions = paths, versions
        self._sizes, self._times = np.array(versions, np.int64).reshape(-1, 2).T
        self._tables: list[Table] = []
        # A table, and a row of it.
        self._rows = np.full((len(paths), 2), -1, np.int64)
        self._same_size = self._rows.copy()
        self._seen = np.zeros(len(paths), bool)
        for folder in folders:
            for table in folder.read_tables():
                self.add(table, os.path.dirname(folder.path))

    @property
    def unknown(self) -> list[int]:
        """Places, among the paths, of shards that no table has as they are now."""
        return np.flatnonzero(self._rows[:, 0] < 0).tolist()

    @property
    def changed(self) -> list[int]:
        """Those of the unknown that tables have in another state."""
        return np.flatnonzero(self._seen & (self._rows[:, 0] < 0)).tolist()

    def add(self, table: Table, beside: str = "") -> None:
        """Take in a table; `beside`, a folder, is where its corpus may have moved to."""
        found = self._rows_by_name(table, beside)
        candidates = np.flatnonzero((found >= 0) & (self._rows[:, 0] < 0))
        there = table.shards[found[candidates]]
        sized = there["size"] == self._sizes[candidates]
        same = sized & (there["mtime_ns"] == self._times[candidates])
        for chosen, places in (
            (self._rows, candidates[same]),
            (self._same_size, candidates[sized]),
        ):
            number = np.full(len(places), len(self._tables))
            chosen[places] = np.stack([number, found[places]], axis=1)
        self._seen |= found >= 0
        self._tables.append(table)

    def table(self, places: Sequence[int] | None = None) -> Table:
        """A table of all shards, or of those at some places; all of these must be known."""
        return self._joined(self._rows, range(len(self.paths)) if places is None else places)

    def of_same_size(self) -> tuple[list[int], Table]:
        """Unknown shards that tables have with as many bytes: their places, and their table."""
        places = np.flatnonzero((self._rows[:, 0] < 0) & (self._same_size[:, 0] >= 0)).tolist()
        return places, self._joined(self._same_size, places)

    def _joined(self, rows: np.ndarray, places: Sequence[int]) -> Table:
        chosen = rows[np.array(places, np.int64)]
        return join_tables(self._tables, chosen, [self.paths[place] for place in places])

    def _rows_by_name(self, table: Table, beside: str) -> np.ndarray:
        """[shards] the row of each in a table, or -1.

        The corpus may have moved, with its index: names count from where it was, or is, whichever
        explains most.
        """
        best, most = np.full(len(self.paths), -1, np.int64), 0
        for root in dict.fromkeys((table.root, beside, common_folder(self.paths))):
            numbers = {join_path(root, name): row for row, name in enumerate(table.names)}
            found = np.array([numbers.get(path, -1) for path in self.paths], np.int64)
            if (count := int((found >= 0).sum())) > most:
                best, most = found, count
            if most == len(self.paths):
                break
        return best
