"""Which byte ranges the next steps will read, fetched into the host's cache before they do.

The order is known beforehand, so nothing has to be waited for. Nor does anything depend on this:
whoever loads an example and does not find it in the cache fetches it.
"""

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor

from flaxclip.data.counted_shards import index_shards_of
from flaxclip.data.order import Order
from flaxclip.data.sources.runs import extents_of, run_of
from flaxclip.data.sources.source import Source
from flaxclip.data.storage.range_cache import RangeCache

_AT_ONCE = 32  # runs of some 5 MiB: 160 MiB in flight
_REMEMBERED = 2**15  # runs; more than the windows of a host have at a time
_POLL_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class Prefetch:
    """Fetches for one host; sent to the process that does it."""

    source: Source
    order: Order
    cache: RangeCache
    steps: range
    positions: Callable[[int], range]
    """Step -> the positions of this host's rows."""
    steps_ahead: int
    """Of the step that is needed next, at most: so much fits into the cache."""

    def run(self, needed: Callable[[], int], fetched: Callable[[], None]) -> None:
        """Fetch for all steps.

        Args:
            needed: returns the step whose batch is made at present.
            fetched: called after each run, by several threads.

        Raises:
            InputError: a shard that is only counted cannot be used.
        """
        seen: collections.OrderedDict[Hashable, None] = collections.OrderedDict()
        in_flight = threading.Semaphore(_AT_ONCE)

        def done(_: Future) -> None:
            # An error is found by whoever reads the example, and can name it.
            in_flight.release()
            fetched()

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for step in self.steps:
                while step > needed() + self.steps_ahead:
                    time.sleep(_POLL_SECONDS)
                examples = [self.order[position].example for position in self.positions(step)]
                index_shards_of(self.source, examples, pool)
                for example in examples:
                    run = run_of(self.source, example)
                    if run is None:
                        continue
                    if run not in seen:
                        in_flight.acquire()
                        pool.submit(self._fetch, example).add_done_callback(done)
                    seen[run] = None
                    seen.move_to_end(run)
                    if len(seen) > _REMEMBERED:
                        seen.popitem(last=False)

    def _fetch(self, example: int) -> None:
        # Where a run lies may be a request too, of an index in object storage.
        for extent in extents_of(self.source, example):
            self.cache.ensure(extent)
