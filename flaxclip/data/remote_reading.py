"""How a host reads corpora in object storage: what is fetched together, into which cache."""

from typing import NamedTuple

from flaxclip.data.order import HostRows, OrderConfig, corpus_orders
from flaxclip.data.sources.mixture import MixtureSource
from flaxclip.data.sources.runs import RUN_BYTES, ReadsInRuns
from flaxclip.data.sources.source import Source, run_length
from flaxclip.data.storage.files import cache_folder
from flaxclip.data.storage.range_cache import RangeCache
from flaxclip.data.storage_order import RUNS
from flaxclip.errors import InputError

_LEAST_BYTES = 2**31
_WINDOWS = 3  # the present ones, the next ones, and what goes last because it was used last


class RemoteReading(NamedTuple):
    """What `read_through_cache` has arranged."""

    cache: RangeCache
    steps_ahead: int
    """Steps after which the present windows are used up; 0 if there are none."""


def read_through_cache(
    source: Source, order: OrderConfig, rows: HostRows, folder: str | None, gib: float | None
) -> RemoteReading | None:
    """Let corpora in object storage be read through a cache on this host's disk.

    Corpora in the storage order, and those that fit into the cache, are fetched in runs. Others are
    fetched example by example: of each run that were fetched for one, the rest would be gone
    before it is needed.

    Args:
        source: its corpora read through the cache from now on.
        order: of the examples.
        rows: that this host loads.
        folder: of the cache. If None, a folder in the user's cache.
        gib: GiB of the cache. If None, as many as the order needs.

    Returns:
        None if nothing is to be cached: no corpus is remote, or all are read example by example
        and no size is given.

    Raises:
        InputError: less than the order needs, or the folder cannot be written.
    """
    parts = source.sources if isinstance(source, MixtureSource) else (source,)
    needed = steps_ahead = 0
    whole: dict[int, int] = {}  # bytes of the corpora that are not in the storage order
    for number, corpus in enumerate(corpus_orders(source, order, 0, rows.batch_size)):
        length = run_length(parts[number])
        if length is None:
            continue
        size = RUN_BYTES * -(-len(parts[number]) // length)
        if corpus.storage is None:
            whole[number] = size
            continue
        lanes = -(-corpus.storage.lanes // rows.process_count) + 1
        needed += min(_WINDOWS * lanes * RUNS * RUN_BYTES, size)
        steps_ahead = max(steps_ahead, corpus.storage.window_steps)
    ordered = needed
    if order.window == "auto" and order.sampling == "epochs":
        needed += sum(whole.values())  # small, or they would be in the storage order
    if not needed and (gib is None or not whole):
        return None
    limit = max(_LEAST_BYTES, needed) if gib is None else int(gib * 2**30)
    if limit < needed:
        raise InputError(
            f"data.cache_gib is {gib:g}\n"
            f"this host's part of the batches is drawn from {needed / 2**30:.1f} GiB at a time: "
            "expected that or more, or None"
        )
    cache = RangeCache(folder or str(cache_folder("runs")), limit)
    fits = ordered + sum(whole.values()) <= limit
    for number, part in enumerate(parts):
        if isinstance(part, ReadsInRuns) and part.run_length is not None:
            part.read_through(cache, part.run_length if number not in whole or fits else 1)
    return RemoteReading(cache, steps_ahead)
