"""What hosts tell each other beside the devices: requests that all follow at the same step.

A host that is told to stop cannot stop alone: the others would wait in the next collective for
ever. Requests travel through the coordination service that `jax.distributed` runs on host 0, which
takes no device time. JAX has no public face for its key-value store; Orbax reaches it the same way.
"""

import contextlib
import threading
from typing import Any

import jax
from jax._src import distributed

from flaxclip.exit_codes import PreemptedError

_PREFIX = "flaxclip/request"
_LISTEN_MS = 500


def coordination_client() -> Any | None:
    """The key-value store that the hosts share; None where there is one host."""
    return distributed.global_state.client if jax.process_count() > 1 else None


class Requests:
    """Requests, such as "stop" or "save", that one host makes and all follow at the same step.

    Context manager around the training loop. Every host calls `agreed` once after each step it has
    dispatched. When a request is known to a host it says which step it is at and waits for the
    others to say so, too: the furthest of these steps is the one at which all follow it.
    """

    def __init__(self, timeout_seconds: float):
        self._client = coordination_client()
        self._timeout_ms = int(1000 * timeout_seconds)
        self._wanted: list[str] = []
        self._number = 0  # of requests followed so far, alike on all hosts
        self._known = False  # there is a request with that number
        self._follow_at: int | None = None
        self._closed = False
        self._followed = threading.Condition()

    def __enter__(self) -> "Requests":
        if self._client is not None:
            self._listener = threading.Thread(target=self._listen, name="requests", daemon=True)
            self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._followed:
            self._closed = True
            self._followed.notify_all()
        # Python, when it exits, ends threads by an exception; one that is inside the service's
        # client then aborts the process.
        if self._client is not None:
            self._listener.join()

    def make(self, kind: str) -> None:
        """Ask all hosts for `kind`; may be called from a signal handler."""
        if kind not in self._wanted:
            self._wanted.append(kind)

    def agreed(self, step: int, last: bool) -> str | None:
        """The request that all hosts follow after `step`, if there is one.

        At the `last` step all hosts meet, so that none waits for one that has left the loop.

        Raises:
            PreemptedError: a host did not answer in time.
        """
        if self._client is None:
            return self._wanted.pop(0) if self._wanted else None
        if self._wanted and not self._known:
            self._post(self._wanted[0])
        if not self._known and not last:
            return None
        if self._follow_at is None:
            self._follow_at = self._meet(step)
        if step < self._follow_at:
            return None
        kind = self._read()
        if kind in self._wanted:
            self._wanted.remove(kind)
        with self._followed:
            self._number, self._known, self._follow_at = self._number + 1, False, None
            self._followed.notify_all()
        return kind

    def _post(self, kind: str) -> None:
        # Raises where another host's request has that number already: ours gets the next.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{_PREFIX}/{self._number}/kind", kind)
        self._known = True

    def _meet(self, step: int) -> int:
        key = f"{_PREFIX}/{self._number}/step"
        try:
            self._client.key_value_set(f"{key}/{jax.process_index()}", str(step))
            self._client.wait_at_barrier(key, self._timeout_ms)
            return max(int(value) for _, value in self._client.key_value_dir_get(key))
        except jax.errors.JaxRuntimeError as error:
            raise PreemptedError(
                f"the hosts could not agree on a step to stop at: {error}"
            ) from None

    def _read(self) -> str | None:
        # Whoever made it did so before the hosts met, so now all of them see the same.
        try:
            return self._client.key_value_try_get(f"{_PREFIX}/{self._number}/kind")
        except jax.errors.JaxRuntimeError:
            return None  # a meeting at the last step, without a request

    def _listen(self) -> None:
        """Learn of other hosts' requests, in a thread."""
        while not self._closed:
            number = self._number
            try:
                self._client.blocking_key_value_get(f"{_PREFIX}/{number}/kind", _LISTEN_MS)
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" in str(error):
                    continue
                return  # the service is gone, and with it the job: the main thread will notice
            with self._followed:
                if number == self._number:
                    self._known = True
                    self._followed.wait_for(lambda n=number: self._number != n or self._closed)
