"""A thread that notices when a step takes far too long, or a host is lost, and ends the process.

Without it, a job that has lost a host would wait in a collective forever.
"""

import collections
import contextlib
import faulthandler
import math
import os
import statistics
import sys
import threading
import time

import jax

from flaxclip.exit_codes import PREEMPTED
from flaxclip.hosts.reports import HostReports
from flaxclip.standard_streams import say
from flaxclip.xla_errors import is_lost_connection, is_out_of_memory, is_xla_error

_SLOW = 10  # times the median step: then all stacks are printed
_SLOW_SECONDS = 10.0  # and at least this long: milliseconds are no reason to print stacks
_WINDOW = 100
_NEWS_SECONDS = 60.0
"""Seconds to wait for news of a lost host after an error: by then its name is known."""


class Watchdog:
    """Context manager around a run, on every host.

    A step that takes 10 times the median prints the stacks of all threads. A step that takes longer
    than `timeout_seconds`, or a host that is silent for so long, ends the process with the code of
    a restart, and with the name of that host. Where the devices have failed, silence counts much
    sooner, and a lost connection ends the process whether or not a host is found silent. The first
    step is not timed: it compiles, and there is no step to compare it with.
    """

    def __init__(self, timeout_seconds: float):
        self._timeout = timeout_seconds
        self._hosts = HostReports(timeout_seconds)
        self._durations: collections.deque[float] = collections.deque(maxlen=_WINDOW)
        self._step_done_at: float | None = None  # None: not timed
        self._printed = False
        self._ended = threading.Event()

    def __enter__(self) -> "Watchdog":
        self._watcher = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if is_xla_error(error) and not is_out_of_memory(error) and jax.process_count() > 1:
            self._await_news(error)
        self._ended.set()
        self._watcher.join()
        self._hosts.close()

    def doing(self, what: str) -> None:
        """Set the training loop's next activity, for the messages."""
        self._hosts.doing(what)

    def step_done(self) -> None:
        """Note that the devices have completed a step."""
        now = time.monotonic()
        if self._step_done_at is not None:
            self._durations.append(now - self._step_done_at)
        self._step_done_at, self._printed = now, False

    def exempt(self, what: str) -> None:
        """Begin an activity that is not part of a step, e.g. a save; the next step follows it."""
        self._hosts.doing(what)
        self._step_done_at = None

    def _watch(self) -> None:
        while not self._ended.wait(self._hosts.interval):
            if self._hosts.lost is not None:
                self._leave(self._hosts.lost)
            unheard = time.monotonic() - self._hosts.heard_at
            patience = self._hosts.silent_seconds if self._hosts.failed else self._timeout
            if jax.process_count() > 1 and unheard > patience:
                self._leave(f"host 0, which the others talk through, is silent for {unheard:.0f} s")
            done_at = self._step_done_at
            late = 0.0 if done_at is None else time.monotonic() - done_at
            usual = statistics.median(self._durations) if self._durations else math.inf
            slow = max(_SLOW * usual, _SLOW_SECONDS)
            self._hosts.curious = late > min(slow, self._timeout / 2)
            if late > slow and not self._printed:
                self._printed = True
                self._print_stacks(f"step takes {late:.0f} s, the median is {usual:.1f}")
            if late > self._timeout:
                hosts = self._hosts.late() or ["no host stands out"]
                self._leave("\n  ".join([f"no step in {late:.0f} s", *hosts]))

    def _await_news(self, error: BaseException | None) -> None:
        """Wait until it is known whether a host is lost: if so, the watcher ends the process."""
        _say(f"{str(error).splitlines()[0]}\nwaiting to hear whether a host is lost")
        self.exempt("hit by an error")
        self._hosts.failed = True
        self._ended.wait(min(self._timeout, _NEWS_SECONDS))
        if is_lost_connection(error):
            self._leave("the connection to a host is lost; which one, nobody has said")

    def _leave(self, reason: str) -> None:
        try:
            self._print_stacks("giving up")
            _say(f"{reason} (health.host_timeout_seconds is {self._timeout:g})")
        finally:
            os._exit(PREEMPTED)

    def _print_stacks(self, why: str) -> None:
        _say(f"{why}; {self._hosts.own()}; all its stacks:")
        with contextlib.suppress(OSError):  # nobody reads it any more
            faulthandler.dump_traceback(all_threads=True)


def _say(text: str) -> None:
    say(f"flaxclip.train: {text}", sys.stderr)
