"""Memory that worker processes write batches into, and the training process reads them from."""

import math
import mmap
import os
import tempfile
from typing import Any

import numpy as np

from flaxclip.data.storage.repeated_requests import Counts
from flaxclip.data.workers.batch_shapes import BatchArrays, StepShapes
from flaxclip.errors import InputError

AHEAD = 2
"""Processes that fetch ahead of the workers, at most."""

_DEFAULT_BYTES = 2**30
_ALIGNMENT = 64
_MOST_SLOTS = 16  # more would make the first step late, and no later one early


def count_slots(batch_bytes: int, prefetch_bytes: int | None) -> int:
    """Batches of `batch_bytes` that fit into `prefetch_bytes`; at most 16.

    Raises:
        InputError: fewer than two do: one that is filled while the other is moved to the devices.
    """
    if prefetch_bytes is None:
        prefetch_bytes = max(_DEFAULT_BYTES, 2 * batch_bytes)
    if prefetch_bytes < 2 * batch_bytes:
        raise InputError(
            f"data.prefetch_bytes is {prefetch_bytes:,}, less than two batches\n"
            f"this host's part of a batch has {batch_bytes:,} bytes: expected twice that or more"
        )
    return min(prefetch_bytes // batch_bytes, _MOST_SLOTS)


class SharedBatches:
    """Slots, each of which holds a batch; what every process does, and has read.

    Attributes:
        positions: [workers] int64, the position in the stream that each is loading, or -1.
        needed: [1] int64, the step whose batch is to be complete next.
        reads: [workers + AHEAD, counts] float64, `Counts` of each process.
    """

    positions: np.ndarray
    needed: np.ndarray
    reads: np.ndarray

    def __init__(self, descriptor: int, shapes: StepShapes, slots: int, workers: int):
        """Map the memory behind `descriptor`, which `create_shared_memory` has made."""
        arrays: dict[str, tuple[tuple[int, ...], Any]] = {
            "positions": ((workers,), np.int64),
            "needed": ((1,), np.int64),
            "reads": ((workers + AHEAD, len(Counts._fields)), np.float64),
        }
        self._shapes = shapes
        self._slot_bytes = -(-shapes.nbytes // _ALIGNMENT) * _ALIGNMENT
        sizes = [math.prod(dims) * np.dtype(kind).itemsize for dims, kind in arrays.values()]
        self._first_slot = -(-sum(sizes) // _ALIGNMENT) * _ALIGNMENT
        size = self._first_slot + slots * self._slot_bytes
        os.ftruncate(descriptor, size)
        self._memory = mmap.mmap(descriptor, size)
        offset = 0
        for (name, (dims, kind)), nbytes in zip(arrays.items(), sizes, strict=True):
            setattr(self, name, np.ndarray(dims, kind, self._memory, offset))
            offset += nbytes

    def batch(self, slot: int, step: int) -> BatchArrays:
        """The arrays of the batch of `step`, which is in `slot`."""
        offset = self._first_slot + slot * self._slot_bytes
        return self._shapes.of_step(step).arrays(self._memory, offset)


def create_shared_memory() -> int:
    """A file descriptor that stands for memory, still of no size.

    It has no name, so the kernel frees it with its last user, however that ends; and unlike
    /dev/shm, which containers limit to 64 MB by default, it may be as large as memory is.
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create("flaxclip")
    with tempfile.TemporaryFile() as file:  # macOS has none: a file that is unlinked already
        return os.dup(file.fileno())
