"""Batches made by worker processes: in order, a bounded number ahead, and never a silent wait.

Why not Grain's processes: they hold whole batches in pipes and bounded numbers rather than bytes,
each makes every n-th batch by itself, and one that is killed or hangs cannot name the example.
Why not `multiprocessing`'s: they import the main program again, with JAX and all, and a killed
process can take a queue's lock with it. Here each worker has a socket of its own; the data goes
through shared memory; and a worker imports only what rows need.
"""

import collections
import contextlib
import logging
import multiprocessing.connection
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cloudpickle

from flaxclip.data.storage.file_systems import REQUESTS_AT_ONCE
from flaxclip.data.storage.repeated_requests import Counts
from flaxclip.data.workers.batch_shapes import StepShapes
from flaxclip.data.workers.child_process import ChildProcess
from flaxclip.data.workers.host_batches import ROWS_AT_A_TIME, HostBatch, Load, ReadAhead
from flaxclip.data.workers.prefetcher import FetchesAhead
from flaxclip.data.workers.shared_batches import SharedBatches, create_shared_memory
from flaxclip.data.workers.stalls import StallWatch, Worker, WorkerError
from flaxclip.data.workers.worker import Done, Failed, Task

_TASKS_A_WORKER = 2  # one in hand, one waiting: no worker is idle while a message travels
_TASKS_READING_AHEAD = 1 + REQUESTS_AT_ONCE // ROWS_AT_A_TIME  # one in hand, the others being read
_TICK_SECONDS = 1.0

_logger = logging.getLogger(__name__)


class _Filling:
    """A slot that workers are writing into."""

    def __init__(self, slot: int, rows: int):
        self.slot, self.missing = slot, rows
        self.truncated = self.truncated_for_teachers = 0
        self.replaced: dict[int, list[str]] = {}  # by the first row of the task


class WorkerPool:
    """Iterate over it once; `close` it from any thread, whereupon the iteration ends.

    A thread hands out tasks and watches the workers, whatever the training loop is doing.
    """

    def __init__(
        self,
        load: Load,
        name: Callable[[int], str],
        shapes: StepShapes,
        steps: range,
        positions: Callable[[int], range],
        *,
        workers: int,
        slots: int,
        stall_seconds: float,
        read_ahead: ReadAhead | None = None,
        ahead: Sequence[FetchesAhead] = (),
    ):
        """Start the processes.

        Args:
            load: sent to the workers by cloudpickle.
            name: position in the stream -> name of its example, for messages.
            shapes: of this host's part of a batch, at each step.
            steps: whose batches are made.
            positions: step -> the positions of this host's rows.
            workers: number of processes.
            slots: batches in memory at most, the one included that is being used.
            stall_seconds: a worker that takes longer over one example ends the iteration.
            read_ahead: sent to the workers too, which call it with positions that they will load.
            ahead: each is run by a process of its own; `AHEAD` at most.
        """
        self._name, self._steps, self._positions = name, steps, positions
        self._tasks_a_worker = _TASKS_READING_AHEAD if read_ahead else _TASKS_A_WORKER
        with contextlib.ExitStack() as descriptors, contextlib.ExitStack() as started:
            memory = create_shared_memory()
            descriptors.callback(os.close, memory)  # the workers inherit it
            self._shared = SharedBatches(memory, shapes, slots, workers)
            self._shared.positions[:] = -1
            self._shared.needed[0] = steps.start
            layout = shapes, slots, workers

            def setup(*of_process: Any) -> int:
                # In memory, not through the connections, which would hold up all by the slowest.
                descriptor = create_shared_memory()
                descriptors.callback(os.close, descriptor)
                with open(descriptor, "wb", closefd=False) as file:
                    cloudpickle.dump((*of_process, *layout), file)
                return descriptor

            self._prefetchers: list[ChildProcess] = []
            for number, job in enumerate(ahead, workers):
                prefetcher = ChildProcess(
                    "flaxclip.data.workers.prefetcher",
                    *(number, setup(job), memory),
                    # What has been fetched is given back to the kernel at once.
                    environment={"MALLOC_MMAP_THRESHOLD_": str(2**20)},
                )
                self._prefetchers.append(prefetcher)
                started.callback(prefetcher.close)
            self._workers: list[Worker] = []
            of_workers = setup(load, read_ahead)
            for number in range(workers):
                self._workers.append(Worker(number, of_workers, memory))
                started.callback(self._workers[-1].close)
            started.pop_all()  # `close` ends them from now on
        self._watch = StallWatch(self._workers, self._shared.positions, name, stall_seconds)
        self._ready: queue.SimpleQueue[_Filling | Exception | None] = queue.SimpleQueue()
        self._free_slots = list(range(slots))
        self._released, self._release = multiprocessing.connection.Pipe(duplex=False)
        self._releasing = threading.Lock()  # a connection must not be closed while it is written to
        self._feeder = threading.Thread(target=self._feed, name="feeds workers", daemon=True)
        self._feeder.start()

    def __iter__(self) -> Iterator[HostBatch]:
        """Batches of `steps`, in order.

        Raises:
            InputError: as `load` has raised it in a worker.
            WorkerError: a worker was killed, crashed, or stalled.
        """
        for step in self._steps:
            ready = self._ready.get()
            if ready is None:
                return
            if isinstance(ready, Exception):
                raise ready
            batch = self._shared.batch(ready.slot, step)
            yield HostBatch(
                batch.images,
                batch.tokens,
                ready.truncated,
                tuple(name for _, names in sorted(ready.replaced.items()) for name in names),
                Counts(*self._shared.reads.sum(axis=0).tolist()),
                batch.extra,
                ready.truncated_for_teachers,
            )
            with self._releasing:
                if self._release.closed:
                    return
                self._release.send(ready.slot)

    def close(self) -> None:
        """End the workers, and the iteration."""
        with self._releasing:
            if self._release.closed:
                return
            self._release.send(None)
            self._release.close()
        self._feeder.join()
        self._released.close()
        self._ready.put(None)
        for process in self._processes:
            process.connection.close()  # all begin to end
        for process in self._processes:
            process.close()

    @property
    def _processes(self) -> list[ChildProcess]:
        return [*self._workers, *self._prefetchers]

    def _feed(self) -> None:
        try:
            self._hand_out_and_collect()
        except Exception as error:
            self._ready.put(error)

    def _hand_out_and_collect(self) -> None:
        steps = iter(self._steps)
        tasks: collections.deque[Task] = collections.deque()
        filling: dict[int, _Filling] = {}  # by step, in order
        by_connection = {worker.connection: worker for worker in self._workers}
        prefetchers = {process.connection: process for process in self._prefetchers}
        ticked = time.monotonic()
        while True:
            while self._free_slots and (step := next(steps, None)) is not None:
                slot = self._free_slots.pop()
                positions = self._positions(step)
                filling[step] = _Filling(slot, len(positions))
                tasks.extend(_divide(step, slot, positions))
            while tasks and (worker := self._least_busy()).tasks < self._tasks_a_worker:
                self._send(worker, tasks.popleft())
            connections: list[Any] = [self._released, *by_connection, *prefetchers]
            ready: list[Any] = multiprocessing.connection.wait(connections, _TICK_SECONDS)
            for connection in ready:
                if connection is self._released:
                    slot = connection.recv()
                    if slot is None:
                        return
                    self._free_slots.append(slot)
                elif connection in prefetchers:
                    _listen(prefetchers[connection])
                else:
                    self._collect(by_connection[connection], filling)
            while filling and (first := next(iter(filling.values()))).missing == 0:
                del filling[next(iter(filling))]
                self._ready.put(first)
            if filling:
                self._shared.needed[0] = next(iter(filling))
            now = time.monotonic()
            if now - ticked >= _TICK_SECONDS:
                # No more than a tick at a time: the whole job may have been suspended.
                self._watch.look(min(now - ticked, 2 * _TICK_SECONDS))
                ticked = now

    def _least_busy(self) -> Worker:
        return min(self._workers, key=lambda worker: worker.tasks)

    def _send(self, worker: Worker, task: Task) -> None:
        # If it has ended, `_collect` hears that, after what it has said before.
        with contextlib.suppress(OSError):
            worker.connection.send(task)
        worker.tasks += 1

    def _collect(self, worker: Worker, filling: dict[int, _Filling]) -> None:
        try:
            message: Done | Failed = worker.connection.recv()
        except (EOFError, OSError):
            raise self._lost(worker) from None
        if isinstance(message, Failed):
            raise message.error or WorkerError(
                f"{worker} failed over example {self._name(message.position)}\n{message.traceback}"
            )
        worker.tasks -= 1
        batch = filling[message.task.step]
        batch.missing -= len(message.task.positions)
        batch.truncated += message.truncated
        batch.truncated_for_teachers += message.truncated_for_teachers
        batch.replaced[message.task.first_row] = message.replaced

    def _lost(self, worker: Worker) -> WorkerError:
        how, advice = worker.how_it_ended()
        return WorkerError(f"{worker} {how}, {self._watch.doing(worker)}\n{advice}")


def _divide(step: int, slot: int, positions: range) -> Iterator[Task]:
    for row in range(0, len(positions), ROWS_AT_A_TIME):
        yield Task(step, slot, row, positions[row : row + ROWS_AT_A_TIME])


def _listen(prefetcher: ChildProcess) -> None:
    """Log what it says; or raise the error that it has met, or that is its end."""
    try:
        message: Failed | str = prefetcher.connection.recv()
    except (EOFError, OSError):
        how, advice = prefetcher.how_it_ended()
        name = f"the prefetching process ({prefetcher.process.pid})"
        raise WorkerError(f"{name} {how}\n{advice}") from None
    if isinstance(message, Failed):
        raise message.error or WorkerError(message.traceback)
    _logger.info(message)
