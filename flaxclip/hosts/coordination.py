"""Messages between hosts apart from the devices: decisions of host 0, and requests of any host.

A host that receives a signal to stop cannot stop alone: the others would wait forever in the next
collective. Requests travel through the coordination service that `jax.distributed` runs on host 0,
which takes no device time. JAX has no public API for its key-value store; Orbax reaches it the same
way.
"""

import contextlib
import json
import threading
import time
from typing import Any, TypeVar

import jax
from jax._src import distributed

from flaxclip.exit_codes import PreemptedError

_Value = TypeVar("_Value", bool, list[int])

_PREFIX, _DECISIONS = "flaxclip/request", "flaxclip/decision"
_DAY_MS = 24 * 3600 * 1000
_LISTEN_MS = 500


def coordination_client() -> Any | None:
    """The key-value store that the hosts share; None where there is one host."""
    return distributed.global_state.client if jax.process_count() > 1 else None


def broadcast_from_host_0(name: str, value: _Value) -> _Value:
    """Host 0's `value`, on all hosts; callable once a job for each `name`.

    It does not use the devices: hosts can arrive minutes apart, if one compiled longer, which is
    too late for a collective. The watchdog handles the loss of host 0.
    """
    client = coordination_client()
    if client is None:
        return value
    key = f"{_DECISIONS}/{name}"
    if jax.process_index() == 0:
        client.key_value_set(key, json.dumps(value))
    there: _Value = json.loads(client.blocking_key_value_get(key, _DAY_MS))
    return there


class Requests:
    """Requests, such as "stop" or "save", that one host makes and all follow at the same step.

    Context manager around the training loop. Every host calls `agreed` once after each step it has
    dispatched. A thread of every host receives a request and answers with the first step at which
    its loop can still follow it; all follow it at the latest of these steps. The loop itself does
    not answer, and waits for no other loop: another may already be a step ahead, and wait in a
    collective for this one.
    """

    def __init__(self, timeout_seconds: float):
        self._client: Any = coordination_client()  # JAX's, which has no types
        self._timeout = timeout_seconds
        self._wanted: list[str] = []
        self._number = 0  # of requests followed so far, alike on all hosts
        self._passed = 0  # the last step after which the loop went on
        self._known = False  # there is a request with that number
        self._follow_at: int | None = None
        self._kind: str | None = None
        self._closed = False
        self._changed = threading.Condition()

    def __enter__(self) -> "Requests":
        if self._client is not None:
            self._listener = threading.Thread(target=self._listen, name="requests", daemon=True)
            self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        # Python, when it exits, ends threads by an exception; one that is inside the service's
        # client then aborts the process.
        if self._client is not None:
            self._listener.join()

    def make(self, kind: str) -> None:
        """Ask all hosts for `kind`; callable from any thread."""
        with self._changed:
            if kind in self._wanted:
                return
            self._wanted.append(kind)
        self._post()

    def agreed(self, step: int, last: bool) -> str | None:
        """The request that all hosts follow after `step`, if there is one.

        At the `last` step all hosts wait for each other: none must leave the loop while another
        still waits for its answer.

        Raises:
            PreemptedError: a host did not answer in time.
        """
        if self._client is None:
            return self._wanted.pop(0) if self._wanted else None
        with self._changed:
            if self._known and not self._changed.wait_for(
                lambda: self._follow_at is not None, self._timeout
            ):
                raise PreemptedError(
                    f"the hosts could not agree on a step to {self._kind} at: not all answered "
                    f"within {self._timeout:g} s"
                )
            self._passed = step
            # Later than that only if no host had finished a step of this start when it answered.
            kind = self._kind if self._follow_at is not None and step >= self._follow_at else None
            if kind is not None:
                if kind in self._wanted:
                    self._wanted.remove(kind)
                self._number, self._known, self._follow_at = self._number + 1, False, None
                self._changed.notify_all()
        if last:
            self._wait_for_all()
        return kind

    def _wait_for_all(self) -> None:
        try:
            self._client.wait_at_barrier(f"{_PREFIX}/last", int(1000 * self._timeout))
        except jax.errors.JaxRuntimeError as error:
            raise PreemptedError(f"not all hosts have come to the last step: {error}") from None

    def _post(self) -> None:
        with self._changed:
            number, kind = self._number, self._wanted[0] if self._wanted else None
        if self._client is not None and kind is not None:
            # Raises where another request has that number already: ours gets the next.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._client.key_value_set(f"{_PREFIX}/{number}/kind", kind)

    def _listen(self) -> None:
        """Receive requests, and answer them, in a thread."""
        while not self._closed:
            self._post()
            request = f"{_PREFIX}/{self._number}"
            try:
                kind = self._client.blocking_key_value_get(f"{request}/kind", _LISTEN_MS)
                with self._changed:
                    self._known, self._kind = True, kind
                    first = self._passed + 1
                self._client.key_value_set(f"{request}/step/{jax.process_index()}", str(first))
                self._follow(self._latest(f"{request}/step"))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    return  # the service is gone, and with it the job: the main thread will notice

    def _latest(self, key: str) -> int | None:
        """The latest of the steps that all hosts answer; None if the loop has ended."""
        pause = 0.005
        while not self._closed:
            answers = self._client.key_value_dir_get(key)
            if len(answers) == jax.process_count():
                return max(int(step) for _, step in answers)
            time.sleep(pause)
            pause = min(2 * pause, 1.0)
        return None

    def _follow(self, step: int | None) -> None:
        with self._changed:
            number, self._follow_at = self._number, step
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._number != number or self._closed)
