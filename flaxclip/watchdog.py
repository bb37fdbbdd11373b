"""A thread that notices when a step takes far too long, and on which host.

Without it a job that has lost a host waits in a collective for ever.
"""

import collections
import contextlib
import faulthandler
import json
import os
import socket
import statistics
import sys
import threading
import time
from typing import Any

import jax

from flaxclip.coordination import coordination_client
from flaxclip.exit_codes import PREEMPTED

_PREFIX = "flaxclip/progress"
_SLOW = 10  # times the median step: then all stacks are printed
_SLOW_SECONDS = 10.0  # and at least this long: milliseconds are no reason to print stacks
_WINDOW = 100


class Watchdog:
    """Context manager around the training loop, on every host.

    A step that takes 10 times the median prints the stacks of all threads. One that takes longer
    than `timeout_seconds` ends the process with the code of a restart, and says which hosts the
    others were waiting for. The first step is exempt: it compiles.
    """

    def __init__(self, timeout_seconds: float):
        self._timeout = timeout_seconds
        self._interval = min(5.0, timeout_seconds / 10)
        self._client = coordination_client()
        self._durations: collections.deque[float] = collections.deque(maxlen=_WINDOW)
        self._doing, self._doing_since = "starting", time.monotonic()
        self._step_done_at: float | None = None  # None: not watched
        self._printed = False
        self._reports = 0
        self._heard: dict[int, tuple[str, float]] = {}  # host -> its last report, and since when
        self._ended = threading.Event()

    def __enter__(self) -> "Watchdog":
        self._watcher = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watcher.join(timeout=5)  # as long as a lost service may hold it up

    def doing(self, what: str) -> None:
        """What the training loop is about to do, for the messages."""
        self._doing, self._doing_since = what, time.monotonic()

    def step_done(self) -> None:
        """A step has been completed by the devices."""
        now = time.monotonic()
        if self._step_done_at is not None:
            self._durations.append(now - self._step_done_at)
        self._step_done_at, self._printed = now, False

    def exempt(self) -> None:
        """What comes now is not part of a step, e.g. a save; the next step begins after it."""
        self._step_done_at = None

    def silent_hosts(self) -> list[str]:
        """Hosts that have stopped reporting, from several looks at their reports."""
        for _ in range(4):
            self._listen()
            time.sleep(self._interval)
        return self._suspects()

    def _watch(self) -> None:
        while not self._ended.wait(self._interval):
            self._report()
            done_at = self._step_done_at
            if done_at is None:
                self._heard.clear()
                continue
            late = time.monotonic() - done_at
            slow = max(_SLOW * statistics.median(self._durations or [0.0]), _SLOW_SECONDS)
            if late > min(slow, self._timeout / 2):
                self._listen()
            if late > slow and not self._printed:
                self._printed = True
                self._print_stacks(late)
            if late > self._timeout:
                self._print_stacks(late)
                _say(
                    f"no step in {late:.0f} s (health.host_timeout_seconds is {self._timeout:g})\n"
                    + "\n".join(f"  {host}" for host in self._suspects() or ["no host stands out"])
                )
                os._exit(PREEMPTED)

    def _print_stacks(self, late: float) -> None:
        host = f"host {jax.process_index()} ({socket.gethostname()})"
        _say(f"{host} has been {self._doing} for {late:.0f} s; all its stacks:")
        faulthandler.dump_traceback(all_threads=True)

    def _report(self) -> None:
        """Tell the other hosts that this one lives, and what it is doing."""
        if self._client is None:
            return
        self._reports += 1  # so that each differs from the one before
        since = time.monotonic() - self._doing_since
        report = {"name": socket.gethostname(), "doing": self._doing, "since": since}
        report["number"] = self._reports
        # Raises where host 0, which holds the reports, is gone: `_listen` finds that out.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(
                f"{_PREFIX}/{jax.process_index()}", json.dumps(report), allow_overwrite=True
            )

    def _listen(self) -> None:
        """Read all hosts' reports; note since when each has been the same."""
        if self._client is None:
            return
        now = time.monotonic()
        try:
            reports = dict(self._client.key_value_dir_get(_PREFIX))
        except jax.errors.JaxRuntimeError:
            reports = {}
        for host in range(jax.process_count()):
            report = reports.get(f"{_PREFIX}/{host}", "")
            if host not in self._heard or self._heard[host][0] != report:
                self._heard[host] = report, now

    def _suspects(self) -> list[str]:
        """The hosts that do not report; where all do, those that are not waiting for devices."""
        silent, busy = [], []
        for host, (text, since) in sorted(self._heard.items()):
            report: dict[str, Any] = json.loads(text or "{}")
            who = f"host {host} ({report.get('name', 'name unknown')})"
            doing = report.get("doing", "nothing that it told")
            if time.monotonic() - since > 2.5 * self._interval:
                silent.append(f"{who} is dead or frozen; when last heard of it was {doing}")
            elif not doing.startswith("waiting for the devices"):
                busy.append(f"{who} is late: it has been {doing} for {report['since']:.0f} s")
        return silent or busy


def _say(text: str) -> None:
    print(f"flaxclip.train: {text}", file=sys.stderr, flush=True)
