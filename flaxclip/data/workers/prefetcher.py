"""The process that fetches what workers will read, before they do.

`pool.py` runs it as `python -m flaxclip.data.workers.prefetcher NUMBER CONNECTION SETUP MEMORY`,
like a worker.
"""

import os
import signal
import sys
import threading
from multiprocessing.connection import Connection

import cloudpickle

from flaxclip.data.prefetch import Prefetch
from flaxclip.data.storage.repeated_requests import COUNTER
from flaxclip.data.workers.shared_batches import SharedBatches


def main() -> None:
    """Fetch until the training process closes the connection, or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # when to stop is the training process's decision
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    number, descriptor, setup, memory = map(int, sys.argv[1:])
    connection = Connection(descriptor)
    prefetch, *layout = cloudpickle.loads(os.pread(setup, os.fstat(setup).st_size, 0))
    shared = SharedBatches(memory, *layout)
    threading.Thread(target=_fetch, args=(prefetch, shared, number), daemon=True).start()
    try:
        connection.recv()  # there is never a message
    except (EOFError, OSError):
        os._exit(0)  # whatever its threads are waiting for


def _fetch(prefetch: Prefetch, shared: SharedBatches, number: int) -> None:
    def fetched() -> None:
        shared.reads[number] = COUNTER.snapshot()

    prefetch.run(lambda: int(shared.needed[0]), fetched)


if __name__ == "__main__":
    # Pickle names classes by their module, which must not be `__main__`.
    from flaxclip.data.workers import prefetcher

    prefetcher.main()
