"""Which byte ranges the next steps will read, fetched into the host's cache before they do.

The order is known beforehand, so nothing has to be waited for. Nor does anything depend on this:
whoever loads an example and does not find it in the cache fetches it.
"""

import collections
import dataclasses
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import grain

from flaxclip.data.order import CorpusOrder, Draw
from flaxclip.data.sources.runs import extents_of
from flaxclip.data.sources.source import Source
from flaxclip.data.storage.range_cache import RangeCache
from flaxclip.data.storage.ranged_reads import Extent

_AT_ONCE = 32  # extents of some 5 MiB: 160 MiB in flight
_REMEMBERED = 2**15  # extents; more than the windows of a host have at a time
_POLL_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class Prefetch:
    """Fetches for one host; sent to the process that does it."""

    source: Source
    order: "CorpusOrder | grain.MapDataset[Draw]"
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
            fetched: called after each extent, by several threads.
        """
        seen: collections.OrderedDict[Extent, None] = collections.OrderedDict()
        in_flight = threading.Semaphore(_AT_ONCE)

        def done(_: Future) -> None:
            # An error is found by whoever reads the example, and can name it.
            in_flight.release()
            fetched()

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for step in self.steps:
                while step > needed() + self.steps_ahead:
                    time.sleep(_POLL_SECONDS)
                for position in self.positions(step):
                    for extent in extents_of(self.source, self.order[position].example):
                        if extent not in seen:
                            in_flight.acquire()
                            pool.submit(self.cache.ensure, extent).add_done_callback(done)
                        seen[extent] = None
                        seen.move_to_end(extent)
                        if len(seen) > _REMEMBERED:
                            seen.popitem(last=False)
