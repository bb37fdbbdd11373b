"""Host batches -> arrays on the mesh, while the previous step is running."""

import queue
import threading
import time
from collections.abc import Generator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from flaxclip.data.batch import Batch
from flaxclip.data.workers.host_batches import HostBatch, LocalLoading
from flaxclip.data.workers.pool import WorkerPool
from flaxclip.sharding import batch_sharding


class LoadedBatch(NamedTuple):
    """A batch on the mesh, with statistics of its loading on this host."""

    batch: Batch
    truncated: int
    """Captions that lost their end to the context length."""
    replaced: tuple[str, ...]
    """Names of unreadable examples that were replaced in the batch, and the reasons."""
    wait_seconds: float
    """Seconds that the training loop waited for this batch."""


def feed_devices(
    host_batches: WorkerPool | LocalLoading, mesh: Mesh
) -> Generator[LoadedBatch, None, None]:
    """Move batches to the devices, two ahead of the one that was taken last.

    A thread does it: one batch is complete on the devices while the next is on its way. Closes
    `host_batches` at its end.

    Raises:
        Exception: what iterating over `host_batches` raises.
    """
    ready: queue.Queue[LoadedBatch | BaseException | None] = queue.Queue(maxsize=1)
    ended = threading.Event()

    def put(item: LoadedBatch | BaseException | None) -> None:
        while not ended.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def move() -> None:
        try:
            for host_batch in host_batches:
                put(_to_mesh(host_batch, mesh))
                if ended.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    mover = threading.Thread(target=move, name="moves batches", daemon=True)
    mover.start()
    try:
        while True:
            start = time.perf_counter()
            loaded = ready.get()
            if loaded is None:
                return
            if isinstance(loaded, BaseException):
                raise loaded
            yield loaded._replace(wait_seconds=time.perf_counter() - start)
    finally:
        ended.set()
        host_batches.close()
        mover.join()


def _to_mesh(host_batch: HostBatch, mesh: Mesh) -> LoadedBatch:
    sharding = batch_sharding(mesh)
    # The host's memory is written anew once this returns. On the CPU, JAX would go on using it.
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    images, tokens = (
        jax.make_array_from_process_local_data(sharding, np.array(array) if on_cpu else array)
        for array in (host_batch.images, host_batch.tokens)
    )
    jax.block_until_ready((images, tokens))
    return LoadedBatch(Batch(images, tokens), host_batch.truncated, host_batch.replaced, 0.0)
