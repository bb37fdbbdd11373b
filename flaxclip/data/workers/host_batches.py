"""One host's part of each batch, and a loader for it without worker processes."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from flaxclip.data.storage.repeated_requests import COUNTER, Counts

ROWS_AT_A_TIME = 16
"""Few enough to divide a batch evenly among workers; enough to make the costs of a message, and of
filling a core's cache for each kind of work, small."""


class Row(NamedTuple):
    """One row of a batch: an example at one of its visits, with statistics of its loading."""

    image: UInt8[np.ndarray, "height width 3"]
    tokens: Int32[np.ndarray, " length"]
    truncated: bool
    replaced: tuple[str, ...]


Load = Callable[..., list[Row]]
"""(positions in the stream, begin) -> their rows. Calls `begin` with each position that it begins
to work on. If there is a `ReadAhead`, what it has returned for the positions is a third argument.
"""

ReadAhead = Callable[[range], Any]
"""Begins to read the examples at positions in the stream, and waits for nothing."""


class HostBatch(NamedTuple):
    """The rows of a batch that this host loads; valid until the next batch is asked for."""

    images: UInt8[np.ndarray, "rows height width 3"]
    tokens: Int32[np.ndarray, "rows length"]
    truncated: int
    replaced: tuple[str, ...]
    reads: Counts
    """Of this host, since loading began."""


class LocalLoading:
    """Does the work of `WorkerPool` in the thread that iterates."""

    def __init__(self, load: Load, steps: range, positions: Callable[[int], range]):
        """See `WorkerPool`."""
        self._load, self._steps, self._positions = load, steps, positions
        self._closed = False
        self._before = COUNTER.snapshot()

    def __iter__(self) -> Iterator[HostBatch]:
        """Batches of `steps`, in order."""
        for step in self._steps:
            positions, rows = self._positions(step), []
            for first in range(0, len(positions), ROWS_AT_A_TIME):
                if self._closed:
                    return
                rows += self._load(positions[first : first + ROWS_AT_A_TIME], lambda _: None)
            yield HostBatch(
                np.stack([row.image for row in rows]),
                np.stack([row.tokens for row in rows]),
                sum(row.truncated for row in rows),
                tuple(name for row in rows for name in row.replaced),
                COUNTER.snapshot().since(self._before),
            )

    def close(self) -> None:
        """End the iteration, after the rows that are being loaded."""
        self._closed = True
