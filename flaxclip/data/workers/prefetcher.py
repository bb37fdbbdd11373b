"""A process that fetches what workers will read, before they do.

`pool.py` runs it as `python -m flaxclip.data.workers.prefetcher NUMBER CONNECTION SETUP MEMORY`,
like a worker.
"""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Protocol, runtime_checkable

import cloudpickle

from flaxclip.data.storage.repeated_requests import COUNTER
from flaxclip.data.workers.shared_batches import SharedBatches
from flaxclip.data.workers.worker import Failed
from flaxclip.errors import InputError
from flaxclip.exit_codes import PreemptedError


@runtime_checkable
class FetchesAhead(Protocol):
    """Fetches for the workers of a host, ahead of them."""

    def run(self, needed: Callable[[], int], fetched: Callable[[], None]) -> str | None:
        """Fetch all; returns a line for the log, if there is anything to say.

        Args:
            needed: returns the step whose batch is made at present.
            fetched: to be called now and then, by any thread.

        Raises:
            InputError, PreemptedError: that which ends the run. All other errors are left to the
                workers, who find them again where they matter.
        """


def main() -> None:
    """Fetch until the training process closes the connection, or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # when to stop is the training process's decision
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    number, descriptor, setup, memory = map(int, sys.argv[1:])
    connection = Connection(descriptor)
    job, *layout = cloudpickle.loads(os.pread(setup, os.fstat(setup).st_size, 0))
    shared = SharedBatches(memory, *layout)
    arguments = job, shared, number, connection
    threading.Thread(target=_fetch, args=arguments, daemon=True).start()
    try:
        connection.recv()  # there is never a message
    except (EOFError, OSError):
        os._exit(0)  # whatever its threads are waiting for


def _fetch(job: FetchesAhead, shared: SharedBatches, number: int, connection: Connection) -> None:
    def fetched() -> None:
        shared.reads[number] = COUNTER.snapshot()

    try:
        said: Failed | str | None = job.run(lambda: int(shared.needed[0]), fetched)
    except (InputError, PreemptedError) as error:
        said = Failed(-1, error, traceback.format_exc())
    if said is not None:
        with contextlib.suppress(OSError):  # the training process has ended
            connection.send(said)


if __name__ == "__main__":
    # Pickle names classes by their module, which must not be `__main__`.
    from flaxclip.data.workers import prefetcher

    prefetcher.main()
