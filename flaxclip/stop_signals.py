"""SIGTERM and SIGINT: the first asks the run to save and stop, the second ends it at once.

SIGTERM is also how preemption is announced: by TPU VMs, Kubernetes and SLURM alike.
"""

import os
import signal
import sys
import threading
from types import FrameType

from flaxclip.coordination import Requests
from flaxclip.exit_codes import PREEMPTED

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Context manager around the training loop: signals become a request to stop."""

    def __init__(self, requests: Requests):
        self._requests = requests
        self._received = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # the only one that may do this
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None: a handler that was not installed from Python, as jax.distributed's.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._received:
            _say(f"{name} again: leaving at once, the last checkpoint stands")
            os._exit(PREEMPTED)
        self._received = True
        _say(f"{name}: saving, then stopping")
        self._requests.make("stop")


def exit_on_signals() -> None:
    """Until there is a loop, there is nothing to save: end at once, with the code of a restart.

    `jax.distributed` catches SIGTERM without acting on it; this must come after it.
    """
    for number in _SIGNALS:
        signal.signal(number, lambda *_: os._exit(PREEMPTED))


def _say(text: str) -> None:
    # Unbuffered: a signal handler may have interrupted a print.
    os.write(sys.stderr.fileno(), f"flaxclip.train: {text}\n".encode())
