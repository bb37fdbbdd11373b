"""Runs: neighbouring examples of a corpus in object storage, fetched together.

A request to object storage takes some 50 ms to begin, in which a connection could have moved
megabytes: a pair of 40 kB asked for alone uses a hundredth of it.
"""

import functools
import math
from collections.abc import Hashable, Sequence
from typing import Any

from flaxclip.data.sources.source import Source
from flaxclip.data.storage.file_systems import is_remote
from flaxclip.data.storage.range_cache import RangeCache
from flaxclip.data.storage.ranged_reads import Extent, fetch

RUN_BYTES = 5 * 2**20
"""With the shorter ones at the ends of shards, requests then have more than 4 MiB on average."""

_MULTIPLE = 4  # so that sixteen runs are a multiple of 64, a lane's rows
_REMEMBERED = 1024  # runs, in each process


def count_run_length(corpus_bytes: int, examples: int) -> int:
    """Examples of a run, so that it has `RUN_BYTES` or a little more on average."""
    length = RUN_BYTES * max(examples, 1) / max(corpus_bytes, 1)
    return max(1, math.ceil(length / _MULTIPLE)) * _MULTIPLE


class ReadsInRuns:
    """Base of sources whose neighbouring examples lie together in files in object storage."""

    paths: Sequence[str]
    """Of the files."""

    _cache: RangeCache | None = None
    _together = 1

    def __len__(self) -> int:
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes of all files together."""
        raise NotImplementedError

    @functools.cached_property
    def reads_remotely(self) -> bool:
        """True if files are at URLs."""
        return any(map(is_remote, self.paths))

    @functools.cached_property
    def run_length(self) -> int | None:
        """Examples of a run; None if the files are on disk."""
        return count_run_length(self.nbytes, len(self)) if self.reads_remotely else None

    def extents(self, first: int, last: int) -> Sequence[Extent]:
        """The byte ranges in object storage that hold examples [first, last)."""
        raise NotImplementedError

    def read_through(self, cache: RangeCache, together: int) -> None:
        """From now on fetch the extents of `together` neighbouring examples whole, into `cache`."""
        self._cache, self._together = cache, together
        self._known: dict[int, tuple[Extent, ...]] = {}  # by run
        self._read_before: set[int] = set()  # runs

    def is_at_hand(self, index: int) -> bool:
        """True if this process has read of the example's run, which the cache then has.

        Unless it has gone since: reading then takes a request.
        """
        return self._cache is not None and index // self._together in self._read_before

    def run_of(self, index: int) -> int | None:
        """Number of the run that an example is fetched with; None if it is read alone."""
        return None if self._cache is None else index // self._together

    def extents_of(self, index: int) -> tuple[Extent, ...]:
        """The extents that are fetched for an example; none if it is read alone."""
        if self._cache is None:
            return ()
        run = index // self._together
        extents = self._known.get(run)
        if extents is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
                self._read_before.clear()
            first = run * self._together
            last = min(first + self._together, len(self))
            extents = self._known[run] = tuple(self.extents(first, last))
        return extents

    def fetch(self, index: int, wanted: Extent) -> bytes:
        """Bytes of an example, from the cache if there is one; raises as `ranged_reads.fetch`."""
        for whole in self.extents_of(index):
            is_of_file = whole.path == wanted.path
            if is_of_file and whole.start <= wanted.start <= wanted.end <= whole.end:
                assert self._cache is not None, "or there would be no extents"
                data = self._cache.read(whole, wanted.start, wanted.end)
                self._read_before.add(index // self._together)
                return data
        return fetch(wanted)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_known": {}, "_read_before": set()}


def run_of(source: Source, index: int) -> Hashable | None:
    """Which run an example is fetched with; None if it is read alone, as from other sources."""
    find = getattr(source, "run_of", None)
    return None if find is None else find(index)


def extents_of(source: Source, index: int) -> tuple[Extent, ...]:
    """`ReadsInRuns.extents_of`; none for other sources."""
    find = getattr(source, "extents_of", None)
    return () if find is None else find(index)


def is_at_hand(source: Source, index: int) -> bool:
    """True if reading an example means no waiting for a network, though its source may."""
    known = getattr(source, "is_at_hand", None)
    return known is not None and known(index)
