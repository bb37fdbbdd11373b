"""Reports of each host's activity to the others, so that a host that falls silent can be named.

JAX also notices a lost host, but by its number, after a timeout of its own, and with an abort.
"""

import json
import math
import socket
import threading
import time
from typing import Any

import jax

from flaxclip.hosts.coordination import coordination_client

_REPORTS, _LOST = "flaxclip/report", "flaxclip/lost"
_SILENT = 0.7  # of the time-out without a new report: then a host is lost
_SOON = 4  # intervals without one, where an error already says that something is wrong


class HostReports:
    """Reports this host's activity to the others every few seconds, and learns which are silent.

    Reports are stored by the coordination service of host 0. It reads all of them and tells the
    others which host is lost: a thousand hosts that each read a thousand reports would be too much
    for it. Does nothing if there is one host.
    """

    def __init__(self, timeout_seconds: float):
        self.interval = min(5.0, timeout_seconds / 15)
        """Seconds between two reports."""
        self.lost: str | None = None
        """Description of the host that has stopped reporting; known on all hosts."""
        self.heard_at = time.monotonic()
        """Time of the coordination service's last answer."""
        self.curious = False
        """True if this host also reads the others' reports, for `late`."""
        self.failed = False
        """True if this host's devices have failed, perhaps because another host is lost."""
        self._timeout = timeout_seconds
        self._failed_anywhere = False
        self._doing, self._doing_since = "starting", time.monotonic()
        self._heard: dict[int, tuple[dict[str, Any], float]] = {}  # host -> report, and since when
        self._ended = threading.Event()
        self._client: Any = coordination_client()  # JAX's, which has no types
        self._thread: threading.Thread | None = None
        if self._client is not None:
            self._thread = threading.Thread(target=self._talk, name="host reports", daemon=True)
            self._thread.start()

    @property
    def silent_seconds(self) -> float:
        """Seconds without a new report after which a host is lost; fewer if its devices failed."""
        soon = self.failed or self._failed_anywhere
        return min(_SILENT * self._timeout, _SOON * self.interval if soon else math.inf)

    def doing(self, what: str) -> None:
        """Set the activity that this host is about to begin."""
        self._doing, self._doing_since = what, time.monotonic()

    def own(self) -> str:
        """A description of this host's activity."""
        seconds = time.monotonic() - self._doing_since
        return (
            f"{_who(jax.process_index(), socket.gethostname())}, {self._doing} for {seconds:.0f} s"
        )

    def late(self) -> list[str]:
        """Hosts that keep the others waiting: busy while those wait for their devices."""
        return [
            f"{_who(host, report['name'])} is late, {report['doing']} for {report['since']:.0f} s"
            for host, (report, _) in sorted(self._heard.items())
            if report and not report["doing"].startswith("waiting for the devices")
        ]

    def close(self) -> None:
        """Stop; a coordination service that does not answer may delay this by some seconds."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _talk(self) -> None:
        number = 0  # so that each report differs from the one before
        while not self._ended.wait(self.interval):
            number += 1
            since = time.monotonic() - self._doing_since
            report = {
                "name": socket.gethostname(),
                "doing": self._doing,
                "since": since,
                "failed": self.failed,
            }
            try:
                self._client.key_value_set(
                    f"{_REPORTS}/{jax.process_index()}",
                    json.dumps(report | {"number": number}),
                    allow_overwrite=True,
                )
                if jax.process_index() == 0 or self.curious:
                    self._read_all()
                self.lost = self.lost or self._lost_host()
            except jax.errors.JaxRuntimeError:
                continue  # the service does not answer: `heard_at` says since when
            self.heard_at = time.monotonic()

    def _read_all(self) -> None:
        now = time.monotonic()
        reports = dict(self._client.key_value_dir_get(_REPORTS))
        for host in range(jax.process_count()):
            report = json.loads(reports.get(f"{_REPORTS}/{host}", "{}"))
            if host not in self._heard or self._heard[host][0] != report:
                self._heard[host] = report, now
            self._failed_anywhere |= report.get("failed", False)
        for host, (report, since) in self._heard.items():
            # One that has not reported yet may still be opening its data: JAX watches over it.
            if report and now - since > self.silent_seconds:
                self.lost = (
                    f"{_who(host, report['name'])} is dead or frozen: silent for "
                    f"{now - since:.0f} s, {report['doing']} before"
                )
                self._client.key_value_set(_LOST, self.lost, allow_overwrite=True)

    def _lost_host(self) -> str | None:
        try:
            return self._client.key_value_try_get(_LOST)
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" not in str(error):
                raise
            return None


def _who(host: int, name: str) -> str:
    return f"host {host} ({name})"
