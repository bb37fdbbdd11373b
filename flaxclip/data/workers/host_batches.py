"""One host's part of each batch, and a loader for it without worker processes."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from flaxclip.data.images.native_size import PatchArrays
from flaxclip.data.storage.repeated_requests import COUNTER, Counts
from flaxclip.data.workers.batch_shapes import NO_ARRAYS, Row, StepShapes

ROWS_AT_A_TIME = 16
"""Few enough to divide a batch evenly among workers; enough to make the costs of a message, and of
filling a core's cache for each kind of work, small."""

Load = Callable[..., list[Row]]
"""(positions in the stream, begin) -> their rows. Calls `begin` with each position that it begins
to work on. If there is a `ReadAhead`, what it has returned for the positions is a third argument.
"""

ReadAhead = Callable[[range], Any]
"""Begins to read the examples at positions in the stream, and waits for nothing."""


class HostBatch(NamedTuple):
    """The rows of a batch that this host loads; valid until the next batch is asked for."""

    images: UInt8[np.ndarray, "rows height width 3"] | PatchArrays
    tokens: Int32[np.ndarray, "rows length"]
    truncated: int
    replaced: tuple[str, ...]
    reads: Counts
    """Of this host, since loading began."""
    extra: Mapping[str, np.ndarray] = NO_ARRAYS
    """Further arrays of the rows, by name."""
    truncated_for_teachers: int = 0

    @property
    def patches(self) -> int | None:
        """Patches of images at their own aspect ratio, without padding. If None, all are square."""
        if not isinstance(self.images, PatchArrays):
            return None
        return int(self.images.grid.prod(axis=1, dtype=np.int64).sum())


class LocalLoading:
    """Does the work of `WorkerPool` in the thread that iterates."""

    def __init__(
        self, load: Load, shapes: StepShapes, steps: range, positions: Callable[[int], range]
    ):
        """See `WorkerPool`."""
        self._load, self._shapes, self._steps, self._positions = load, shapes, steps, positions
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
            shape = self._shapes.of_step(step)
            arrays = shape.arrays(bytearray(shape.nbytes))
            for place, row in enumerate(rows):
                arrays.write(place, row)
            yield HostBatch(
                arrays.images,
                arrays.tokens,
                sum(row.truncated for row in rows),
                tuple(name for row in rows for name in row.replaced),
                COUNTER.snapshot().since(self._before),
                arrays.extra,
                sum(row.truncated_for_teachers for row in rows),
            )

    def close(self) -> None:
        """End the iteration, after the rows that are being loaded."""
        self._closed = True
