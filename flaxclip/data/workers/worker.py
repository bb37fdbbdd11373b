"""The worker process: loads the rows that it is assigned into shared memory.

`pool.py` runs it as `python -m flaxclip.data.workers.worker NUMBER CONNECTION SETUP MEMORY`, where
all but the first are descriptors that it inherits. It imports no more than the rows need.
"""

import faulthandler
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
import warnings
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import cloudpickle

from flaxclip.data.storage.repeated_requests import COUNTER
from flaxclip.data.workers.host_batches import ReadAhead
from flaxclip.data.workers.shared_batches import SharedBatches
from flaxclip.errors import InputError
from flaxclip.exit_codes import PreemptedError


class Task(NamedTuple):
    """Consecutive rows of a batch."""

    step: int
    slot: int
    first_row: int
    positions: range


class Done(NamedTuple):
    """A task is done, with statistics of its loading."""

    task: Task
    truncated: int
    truncated_for_teachers: int
    replaced: list[str]


class Failed(NamedTuple):
    """Loading a row has raised an error."""

    position: int
    error: InputError | PreemptedError | None
    """If None, an unexpected error, of which there is only the traceback."""
    traceback: str


def main() -> None:
    """Work until the training process closes the connection, or ends."""
    # Those who want to stop a run signal its whole group; when to stop is the training process's
    # decision, which may want some more batches first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Of broken EXIF and the like, which harm no pixel: each worker would repeat the warning.
    warnings.filterwarnings("ignore", module="PIL")
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # sent by the pool to a worker that stalls
    number, descriptor, setup, memory = map(int, sys.argv[1:])
    connection = Connection(descriptor)
    # Read by position: the workers share the descriptor's own.
    load, read_ahead, *layout = cloudpickle.loads(os.pread(setup, os.fstat(setup).st_size, 0))
    shared = SharedBatches(memory, *layout)
    tasks: queue.SimpleQueue[tuple[Task, list[Any]]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, tasks, read_ahead), daemon=True).start()

    def begin(position: int) -> None:
        shared.positions[number] = position

    while True:
        task, ahead = tasks.get()
        try:
            rows = load(task.positions, begin, *ahead)
        except Exception as error:
            expected = error if isinstance(error, InputError | PreemptedError) else None
            position = int(shared.positions[number])
            _send(connection, Failed(position, expected, traceback.format_exc()))
            return
        truncated, truncated_for_teachers, replaced = 0, 0, []
        batch = shared.batch(task.slot, task.step)
        for place, row in enumerate(rows, task.first_row):
            batch.write(place, row)
            truncated += row.truncated
            truncated_for_teachers += row.truncated_for_teachers
            replaced.extend(row.replaced)
        shared.positions[number] = -1
        shared.reads[number] = COUNTER.snapshot()
        _send(connection, Done(task, truncated, truncated_for_teachers, replaced))


def _send(connection: Connection, message: Done | Failed) -> None:
    try:
        connection.send(message)
    except OSError:
        os._exit(0)  # the training process has ended, or needs no more batches


def _receive(
    connection: Connection, tasks: queue.SimpleQueue, read_ahead: ReadAhead | None
) -> None:
    """Receive in a thread of its own, to notice the end of the training process at once."""
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            os._exit(0)
        try:
            ahead = [read_ahead(task.positions)] if read_ahead else []
        except Exception:
            traceback.print_exc()
            os._exit(1)  # the pool tells of it
        tasks.put((task, ahead))


if __name__ == "__main__":
    # Pickle names classes by their module, which must not be `__main__`.
    from flaxclip.data.workers import worker

    worker.main()
