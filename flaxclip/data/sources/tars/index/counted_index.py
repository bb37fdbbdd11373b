"""The index of shards that are not scanned yet, but whose numbers of pairs are stated.

The numbers fix which pairs there are, and so every order of them. Where the members of a pair are
is found by scanning its shard, when it is asked for first. If a shard then has another number of
pairs than is stated, all that was counted from there on is wrong, and nothing may go on.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from flaxclip.data.sources.left_out import MEMBER_REASONS, describe_counts
from flaxclip.data.sources.shard_paths import shown
from flaxclip.data.sources.tars.index.index_table import SHARD, Piece, Table
from flaxclip.data.sources.tars.index.kept_scans import KeptScans, Scan
from flaxclip.data.sources.tars.index.shard_scans import PARALLEL_FROM
from flaxclip.data.sources.tars.index.stated_counts import StatedCount
from flaxclip.data.sources.tars.index.tar_index import PairIndex, piece_state
from flaxclip.data.sources.tars.scan_processes import scanning
from flaxclip.data.sources.tars.tar_scan import COUNTS, ENTRY, scan_shard
from flaxclip.data.storage.file_systems import Version
from flaxclip.errors import InputError

_UNKNOWN = Piece("", 0)


class CountedIndex(PairIndex):
    """`PairIndex` of shards at URLs, each of which is scanned at its first use.

    A copy sent to another process finds, and leaves, what is in a shard in the `scans`.
    """

    def __init__(
        self,
        shards: np.ndarray,
        pieces: Sequence[Piece],
        paths: Sequence[str],
        stated: Sequence[StatedCount],
        scans: KeptScans,
    ) -> None:
        """See `count_shards`; `pieces` without a path belong to shards that are not scanned."""
        super().__init__(shards, pieces)
        self._paths, self._stated, self._scans = paths, stated, scans

    def __reduce__(self) -> tuple[type["CountedIndex"], tuple]:
        parts = self.shards, self._pieces, self._paths, self._stated, self._scans
        return CountedIndex, parts

    @property
    def unknown(self) -> list[int]:
        """Numbers of the shards that have not been scanned, as far as this process knows."""
        return self._unknown_of(range(len(self.shards)))

    def unknown_of(self, pairs: Sequence[int]) -> list[int]:
        """Those of the shards that these pairs are in."""
        return self._unknown_of(np.unique(self._ends.searchsorted(pairs, "right")).tolist())

    def _unknown_of(self, numbers: Iterable[int]) -> list[int]:
        pieces = self.shards["piece"]
        return [number for number in numbers if self._pieces[pieces[number]] == _UNKNOWN]

    def scan(self, numbers: Sequence[int], processes: int, report: Callable[[], None]) -> None:
        """Scan shards that are unknown, at once; more than a few in processes of their own.

        Args:
            numbers: of the shards.
            processes: so many, at most.
            report: called after each shard.

        Raises:
            InputError: as `find` does.
        """
        if not numbers:
            return
        with contextlib.ExitStack() as opened:
            threads: ThreadPoolExecutor
            scan: Scan = scan_shard
            if len(numbers) < PARALLEL_FROM:
                threads = opened.enter_context(ThreadPoolExecutor(len(numbers)))
            else:
                threads, scan = opened.enter_context(scanning(min(processes, len(numbers))))
            for _ in threads.map(functools.partial(self.find, scan=scan), numbers):
                report()

    def find(self, number: int, scan: Scan = scan_shard) -> None:
        """Find what is in a shard.

        Raises:
            InputError: it has not as many pairs as are stated, cannot be used, or is not written
                to the cache; or the folder of several hosts cannot be written.
        """
        row = self.shards[number]
        piece = int(row["piece"])
        if self._pieces[piece] != _UNKNOWN:
            return
        path, stated = self._paths[number], self._stated[number]
        version = Version(*row[["size", "mtime_ns"]].tolist())
        try:
            kept = self._scans.get(path, version, scan)
        except OSError as error:
            raise InputError(
                f"cannot share what is in {shown(path)}: {error.strerror or error}\n"
                f"all hosts must be able to read and write {self._scans.shared}: check --workdir"
            ) from None
        if kept.counts["pairs"] != stated.pairs:
            raise _differs(path, stated, kept.counts)
        for name, count in kept.counts.items():
            row[name] = count
        row["keys_at"], row["keys_size"] = stated.pairs * ENTRY.itemsize, kept.keys_size
        self._states[piece] = piece_state(kept.piece)
        self._pieces[piece] = kept.piece  # last: other threads look at it first

    def is_at_hand(self, number: int) -> bool:
        """True if this host has scanned a shard; waits for nothing."""
        row = self.shards[number]
        version = Version(*row[["size", "mtime_ns"]].tolist())
        known = self._pieces[int(row["piece"])] != _UNKNOWN
        return known or self._scans.here(self._paths[number], version)

    def _row(self, shard: int) -> np.void:
        self.find(shard)
        return self.shards[shard]


def count_shards(
    paths: Sequence[str],
    versions: Sequence[Version],
    stated: Sequence[StatedCount],
    known: tuple[Sequence[int], Table],
    scans: KeptScans,
) -> CountedIndex:
    """An index from stated numbers of pairs.

    Args:
        paths: of the shards.
        versions: their present states.
        stated: their numbers of pairs.
        known: places of shards that are indexed already, and their table.
        scans: where what is found in the others is kept.

    Raises:
        InputError: an indexed shard has another number of pairs than is stated.
    """
    places, table = known
    rows = np.zeros(len(paths), SHARD)
    rows["size"], rows["mtime_ns"] = np.array(versions, np.int64).reshape(-1, 2).T
    rows["pairs"] = [count.pairs for count in stated]
    rows["piece"] = len(table.pieces) + np.arange(len(paths))
    for place, row in zip(places, table.shards, strict=True):
        if row["pairs"] != stated[place].pairs:
            counts = {name: int(row[name]) for name in (*COUNTS, *MEMBER_REASONS)}
            raise _differs(paths[place], stated[place], counts)
        rows[place] = row
    pieces = [*table.pieces, *([_UNKNOWN] * len(paths))]
    return CountedIndex(rows, pieces, paths, stated, scans)


def _differs(path: str, stated: StatedCount, counts: dict[str, int]) -> InputError:
    left_out = describe_counts({name: n for name, n in counts.items() if n and name != "pairs"})
    return InputError(
        f"{shown(path)} has {counts['pairs']:,} pairs, not {stated.pairs:,} as in "
        f"{shown(stated.file)}\n{f'left out: {left_out}' if left_out else 'nothing was left out'}\n"
        "the order of all examples follows from the numbers stated, so that no step can be trusted "
        "which was made with them: start anew without --data.counts, or with an index, made by "
        "python -m flaxclip.data.index SHARDS, which is used in their place"
    )
