"""Shards that are counted, but not indexed: which are indexed when.

Before the first step, those of the first batch. While a run goes on, those of the next steps, by
the process that reads ahead for the workers; and all others, one after the other, by a process of
their own. Hosts divide these. So a wrong count is found, and ends the run, as soon as an index of
all shards would have been made.
"""

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from flaxclip.data.sources.mixture import MixtureSource
from flaxclip.data.sources.source import Source
from flaxclip.data.sources.tars.index.counted_index import CountedIndex
from flaxclip.data.sources.tars.webdataset import WebDatasetSource

_AT_ONCE = 4  # shards, beside a run: each takes what one connection can carry
_SECONDS_BETWEEN_LINES = 30.0
_POLL_SECONDS = 0.05

_logger = logging.getLogger(__name__)


def counted_corpora(source: Source) -> list[tuple[int, CountedIndex]]:
    """The corpora whose shards are counted: the first example of each in `source`, and its index.

    Without those all of whose shards are indexed, as far as this process knows.
    """
    corpora: Sequence[tuple[int, Source]] = [(0, source)]
    if isinstance(source, MixtureSource):
        corpora = list(zip(source.starts, source.sources, strict=True))
    return [
        (start, corpus.counted)
        for start, corpus in corpora
        if isinstance(corpus, WebDatasetSource) and corpus.counted is not None
    ]


def index_shards_of(source: Source, examples: Sequence[int], threads: ThreadPoolExecutor) -> None:
    """Index the shards that these examples are in.

    Raises:
        InputError: as `CountedIndex.find` does.
    """
    for index, unknown in _unknown_of(source, examples):
        for _ in threads.map(index.find, unknown):
            pass


def index_before_start(source: Source, examples: Sequence[int] | None) -> None:
    """Index the shards of these examples, or all if None, in processes; say how far that is.

    Raises:
        InputError: as `CountedIndex.find` does.
    """
    for index, unknown in _unknown_of(source, examples):
        if not unknown:
            continue
        _logger.info(
            "indexing %s of %s shards before the first step; the numbers of pairs are stated",
            *(f"{len(unknown):,}", f"{len(index.shards):,}"),
        )
        done, last_line = 0, time.monotonic()

        def report(shards: int = len(unknown)) -> None:
            nonlocal done, last_line
            done += 1
            if time.monotonic() - last_line >= _SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                _logger.info("%s of %s shards are indexed", f"{done:,}", f"{shards:,}")

        cores = os.cpu_count() or 1
        index.scan(unknown, max(cores, min(4 * cores, 64)), report)


def _unknown_of(
    source: Source, examples: Sequence[int] | None
) -> list[tuple[CountedIndex, list[int]]]:
    found = []
    for start, index in counted_corpora(source):
        if examples is None:
            found.append((index, index.unknown))
        else:
            own = np.asarray(examples) - start
            found.append((index, index.unknown_of(own[(own >= 0) & (own < len(index))].tolist())))
    return found


@dataclasses.dataclass(frozen=True)
class IndexingAhead:
    """Indexes a host's part of the shards; sent to the process that does it."""

    source: Source
    host: int
    hosts: int
    first_step: int
    """Its batch, which the devices wait for, is made before."""

    def run(self, needed: Callable[[], int], fetched: Callable[[], None]) -> str:
        """Index all of the part; returns a line that says so.

        Args:
            needed: returns the step whose batch is made at present.
            fetched: called after each shard, by several threads.

        Raises:
            InputError: as `CountedIndex.find` does.
        """
        while needed() <= self.first_step:
            time.sleep(_POLL_SECONDS)
        shards = 0
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for _, index in counted_corpora(self.source):

                def find(number: int, index: CountedIndex = index) -> None:
                    index.find(number)
                    fetched()

                part = [n for n in index.unknown if n % self.hosts == self.host]
                shards += len(part)
                for _ in pool.map(find, part):
                    pass
        return f"all shards of this host's part are indexed, {shards:,} of them during the run"
