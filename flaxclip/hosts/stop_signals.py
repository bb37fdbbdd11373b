"""SIGTERM and SIGINT: the first asks the run to save and stop, the second ends it immediately.

TPU VMs, Kubernetes and SLURM also announce preemption with SIGTERM. A thread acts on signals:
Python would call a handler only when the main thread returns from waiting for the devices, which
may take a step, or forever.

The same signal within five seconds is the same notice: Ctrl-C, `timeout` and systemd signal all
processes of a group, and launchers among them pass on what they get.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

from flaxclip.exit_codes import PREEMPTED
from flaxclip.hosts.coordination import Requests

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SAME_NOTICE_SECONDS = 5.0


class StopSignals:
    """Context manager around the training loop: signals become a request to stop."""

    def __init__(self, requests: Requests):
        self._requests = requests
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is not threading.main_thread():
            return self  # the only one that may say what signals do
        self._inbox, outbox = socket.socketpair()
        self._outbox = outbox
        outbox.setblocking(False)
        self._fd_before = signal.set_wakeup_fd(outbox.fileno())
        # The numbers of signals that have a handler are written to that socket, there and then.
        self._before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
        self._thread = threading.Thread(target=self._act, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._before:
            return
        for number, handler in self._before.items():
            # None is a handler that was not installed from Python, as jax.distributed's.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._fd_before)
        self._outbox.close()
        self._thread.join()
        self._inbox.close()

    def _act(self) -> None:
        first: tuple[int, float] | None = None  # its number, and when it came
        while numbers := self._inbox.recv(1):
            (number,), now = numbers, time.monotonic()
            if number not in _SIGNALS:
                continue
            name = signal.Signals(number).name
            if first is not None:
                if number == first[0] and now < first[1] + _SAME_NOTICE_SECONDS:
                    continue
                _say(f"{name} again: leaving immediately; the last checkpoint stands")
                os._exit(PREEMPTED)
            first = number, now
            self._requests.make("stop")
            wait = f"{_SAME_NOTICE_SECONDS:g} s"
            _say(f"{name}: saving, then stopping; again after {wait}: leaving immediately")


def exit_on_signals() -> None:
    """Exit on signals, with the code of a restart, as long as there is no loop that must save.

    `jax.distributed` catches SIGTERM without acting on it; this must come after it.
    """
    for number in _SIGNALS:
        signal.signal(number, lambda *_: os._exit(PREEMPTED))


def _say(text: str) -> None:
    # Nobody may read it any more: with `2>&1 | tee log`, Ctrl-C has ended `tee` too.
    with contextlib.suppress(OSError):
        # Unbuffered: the process may leave immediately.
        os.write(sys.stderr.fileno(), f"flaxclip.train: {text}\n".encode())
