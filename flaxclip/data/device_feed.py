"""Host batches -> arrays on the mesh, while the previous step is running."""

import queue
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from flaxclip.data.batch import Batch, make_batch
from flaxclip.data.storage.repeated_requests import Counts
from flaxclip.data.workers.host_batches import HostBatch, LocalLoading
from flaxclip.data.workers.pool import WorkerPool
from flaxclip.exit_codes import PreemptedError
from flaxclip.sharding import batch_sharding


class LoadedBatch(NamedTuple):
    """A batch on the mesh, with statistics of its loading on this host."""

    batch: Batch
    truncated: int
    """Captions that lost their end to the context length."""
    truncated_for_teachers: int
    """Captions that lost it for a teacher that runs beside the student, summed over teachers. Of
    teachers whose vectors are stored, the datasheet of the corpus says it."""
    replaced: tuple[str, ...]
    """Names of unreadable examples that were replaced in the batch, and the reasons."""
    reads: Counts
    """What this host has asked of remote storage since loading began."""
    wait_seconds: float
    """Seconds that the training loop waited for this batch."""
    patches: int | None = None
    """Of this host's rows, patches of images at their own aspect ratio, without padding. If None,
    images are squares."""


class DeviceFeed:
    """Iterator that moves batches to the devices, two ahead of the one that was taken last.

    A thread does it from the start: one batch is complete on the devices while the next is on its
    way. Ends with the last batch, with an error, or when it is closed, and closes `host_batches`.
    """

    def __init__(self, host_batches: WorkerPool | LocalLoading, mesh: Mesh, teachers: int = 0):
        """Start. Batches are for a student and so many `teachers` that run beside it."""
        self._ready: queue.Queue[LoadedBatch | BaseException | None] = queue.Queue(maxsize=1)
        self._ended = threading.Event()
        args = (host_batches, mesh, teachers, self._ready, self._ended)
        mover = threading.Thread(target=_move, args=args, name="moves batches", daemon=True)
        mover.start()
        # Also called for a feed that is dropped, to which therefore neither it nor the thread may
        # refer, and before the interpreter ends: later, its threads stand still, and joining one
        # would wait forever.
        self._close = weakref.finalize(self, _close, host_batches, self._ended, mover)

    def __iter__(self) -> "DeviceFeed":
        return self

    def __next__(self) -> LoadedBatch:
        """The next batch.

        Raises:
            Exception: what iterating over `host_batches` raises.
        """
        if self._ended.is_set():
            raise StopIteration
        start = time.perf_counter()
        loaded = self._ready.get()
        if isinstance(loaded, LoadedBatch):
            return loaded._replace(wait_seconds=time.perf_counter() - start)
        self.close()
        raise StopIteration if loaded is None else loaded

    def close(self) -> None:
        """End the thread and the workers; harmless if they have ended."""
        self._close()


def _close(
    host_batches: WorkerPool | LocalLoading, ended: threading.Event, mover: threading.Thread
) -> None:
    ended.set()
    host_batches.close()
    mover.join()


def _move(
    host_batches: WorkerPool | LocalLoading,
    mesh: Mesh,
    teachers: int,
    ready: queue.Queue[LoadedBatch | BaseException | None],
    ended: threading.Event,
) -> None:
    def put(item: LoadedBatch | BaseException | None) -> None:
        while not ended.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    try:
        for host_batch in host_batches:
            put(_to_mesh(host_batch, mesh, teachers))
            if ended.is_set():
                return
        put(None)
    except BaseException as error:
        put(error)


def _to_mesh(host_batch: HostBatch, mesh: Mesh, teachers: int) -> LoadedBatch:
    sharding = batch_sharding(mesh)
    # The host's memory is written anew once this returns. On the CPU, JAX would go on using it.
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    images, tokens, extra = jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(
            sharding, np.array(array) if on_cpu else array
        ),
        (host_batch.images, host_batch.tokens, dict(host_batch.extra)),
    )
    jax.block_until_ready((images, tokens, extra))
    return LoadedBatch(
        make_batch(images, tokens, extra, teachers),
        host_batch.truncated,
        host_batch.truncated_for_teachers,
        host_batch.replaced,
        host_batch.reads,
        wait_seconds=0.0,
        patches=host_batch.patches,
    )


def until_lost(batches: Iterable[LoadedBatch], lost: list[PreemptedError]) -> Iterator[LoadedBatch]:
    """The batches, up to where this host's data is lost; the error is then put into `lost`.

    With several hosts it is raised: the others are in the next update, and cannot save with it.
    """
    try:
        yield from batches
    except PreemptedError as error:
        if jax.process_count() > 1:
            raise
        lost.append(error)
