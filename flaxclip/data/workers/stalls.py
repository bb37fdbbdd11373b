"""Workers that stay over one example for too long: storage does not answer, or a reader hangs."""

import logging
import signal
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from flaxclip.data.workers.child_process import ChildProcess
from flaxclip.exit_codes import PreemptedError

_START_SECONDS = 120.0  # granted to a worker before its first example, on a busy machine

_logger = logging.getLogger(__name__)


class WorkerError(PreemptedError):
    """A worker process was killed, crashed or stalled; the message names the example."""


class Worker(ChildProcess):
    """The training process's side of a worker."""

    def __init__(self, number: int, setup: int, memory: int):
        super().__init__("flaxclip.data.workers.worker", number, setup, memory)
        self.number, self.tasks = number, 0
        self.position, self.seconds = -1, 0.0  # over one example

    def __str__(self) -> str:
        return f"worker {self.number} (process {self.process.pid})"


class StallWatch:
    """Counts, tick by tick, how long each worker has been over its example."""

    def __init__(
        self,
        workers: Sequence[Worker],
        positions: Int[np.ndarray, " workers"],
        name: Callable[[int], str],
        stall_seconds: float,
    ):
        """Watch `workers`.

        Args:
            workers: those of a pool.
            positions: where each is in the stream, as it writes it; -1 between two examples.
            name: position -> name of its example, for messages.
            stall_seconds: the limit.
        """
        self._workers, self._positions, self._name = workers, positions, name
        self._stall_seconds = stall_seconds

    def look(self, seconds: float) -> None:
        """`seconds` have passed. At half of the limit a worker prints its stack.

        Raises:
            WorkerError: one has been over its example for longer than the limit.
        """
        for worker, position in zip(self._workers, self._positions.tolist(), strict=True):
            if position != worker.position or not worker.tasks:
                worker.position, worker.seconds = position, 0.0
                continue
            before, worker.seconds = worker.seconds, worker.seconds + seconds
            limit = (
                self._stall_seconds if position >= 0 else max(self._stall_seconds, _START_SECONDS)
            )
            if worker.seconds > limit:
                raise WorkerError(
                    f"{worker} has been {self.doing(worker)} for {worker.seconds:.0f} s "
                    f"(data.stall_seconds is {self._stall_seconds:g})\n"
                    "its stack was printed before; does the storage answer?"
                )
            if before <= self._stall_seconds / 2 < worker.seconds and position >= 0:
                _logger.warning(
                    "%s has been %s for %.0f s; its stack:",
                    *(worker, self.doing(worker), worker.seconds),
                )
                worker.process.send_signal(signal.SIGUSR1)

    def doing(self, worker: Worker) -> str:
        """For messages."""
        position = int(self._positions[worker.number])
        return "between two examples" if position < 0 else f"at example {self._name(position)}"
