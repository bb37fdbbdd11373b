"""Requests to storage, repeated while what goes wrong may pass, for a bounded time.

By themselves, gcsfs would try a request 6 times, over some 35 s, and s3fs up to 25 times, without a
word: those that are called from here do not (`file_systems.file_system`), so that all is counted.
"""

import errno
import logging
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import fsspec
import fsspec.asyn

from flaxclip.exit_codes import PreemptedError

STALL_SECONDS = 20.0
"""Without a byte from a server, whereupon the connection is given up and the request repeated."""
AWAY_SECONDS = 75.0
"""Failures are borne for so long, with requests repeated. Shorter than `data.stall_seconds`, whose
message could not say what is wrong."""

_SLOWEST = 2**17  # bytes a second: a request that is slower has stalled
_FIRST_WAIT, _LONGEST_WAIT = 0.2, 8.0  # seconds between two requests at most
_SECONDS_BETWEEN_WARNINGS = 30.0

_TRANSIENT_STATUS = (408, 425, 429)
_UNAUTHORIZED = 401
_EXPIRED = ("ExpiredToken", "TokenRefreshRequired")  # by S3, with 400 and 403
_TRANSIENT_ERRNO = (errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH)
# Errors of clients that no builtin class is a base of: module and name.
_TRANSIENT_CLASSES = (
    ("aiohttp", "ClientConnectionError"),
    ("aiohttp", "ClientPayloadError"),
    ("botocore.exceptions", "ConnectionError"),
    ("botocore.exceptions", "HTTPClientError"),
    ("botocore.exceptions", "IncompleteReadError"),
    ("botocore.parsers", "ResponseParserError"),
    ("google.auth.exceptions", "TransportError"),
    ("google.auth.exceptions", "RefreshError"),
    ("requests.exceptions", "ConnectionError"),
    ("requests.exceptions", "Timeout"),
    ("requests.exceptions", "ChunkedEncodingError"),
    ("http.client", "IncompleteRead"),
    ("httpx", "TransportError"),
    ("httpx2", "TransportError"),
)

_logger = logging.getLogger(__name__)
_RANDOM = random.Random()

_Answer = TypeVar("_Answer")


class StorageAwayError(PreemptedError):
    """Storage does not answer, or does not accept the credentials any more; says what it did.

    This tells nothing about the example that was to be read, which must not be replaced by another.
    """


class TransientError(Exception):
    """An answer that is not what was asked for, and may be so when asked again."""


class Counts(NamedTuple):
    """What a process has asked of remote storage."""

    requests: int = 0
    bytes: int = 0
    retries: int = 0
    """Requests that repeat one that failed."""
    seconds: float = 0.0
    """In which threads waited: for answers, and between two requests. The sum over all threads."""
    hedged: int = 0
    """Requests made because another for the same bytes was slow (`hedged_requests.py`)."""

    def since(self, before: "Counts") -> "Counts":
        """What has come since `before`."""
        return Counts(
            self.requests - before.requests,
            self.bytes - before.bytes,
            self.retries - before.retries,
            self.seconds - before.seconds,
            self.hedged - before.hedged,
        )


_Tally = TypeVar("_Tally")  # a NamedTuple


class Counter(Generic[_Tally]):
    """Counts of all threads of a process."""

    def __init__(self, zeros: _Tally) -> None:
        self._lock, self._counts = threading.Lock(), zeros

    def add(self, **counts: float) -> None:
        """Add to the counts of these names."""
        with self._lock:
            old: Any = self._counts
            new = {name: getattr(old, name) + count for name, count in counts.items()}
            self._counts = old._replace(**new)

    def snapshot(self) -> _Tally:
        """The counts since the process began."""
        with self._lock:
            return self._counts


COUNTER = Counter(Counts())


def request(path: str, send: Callable[[float], _Answer], size: int = 0) -> _Answer:
    """What `send` returns, called again while its errors may pass.

    Args:
        path: a URL, for messages; also tells whose credentials have been accepted before.
        send: makes the request, in the seconds that it is given.
        size: bytes of the answer, which need time of their own.

    Raises:
        StorageAwayError: errors that should pass have come for `AWAY_SECONDS`.
        Exception: whatever else `send` raises.
    """
    begin, repeats = time.monotonic(), 0
    try:
        while True:
            left = AWAY_SECONDS + size / _SLOWEST - (time.monotonic() - begin)
            COUNTER.add(requests=1, retries=min(repeats, 1))
            try:
                answer = send(max(left, 1.0))
            except Exception as error:
                if not _may_pass(error, path):
                    raise
                _wait(path, error, begin, repeats)
                repeats += 1
            else:
                _accepted.add(_bucket(path))
                return answer
    finally:
        COUNTER.add(seconds=time.monotonic() - begin)


def call(fs: fsspec.AbstractFileSystem, method: str, seconds: float, *args, **kwargs):
    """What a method of a client returns; raises `TimeoutError` if it takes longer.

    Only of asynchronous clients, which are those that speak to a network.
    """
    if getattr(fs, "async_impl", False):
        function = getattr(fs, f"_{method}")
        return fsspec.asyn.sync(fs.loop, function, *args, timeout=seconds, **kwargs)
    return getattr(fs, method)(*args, **kwargs)


_accepted: set[str] = set()  # buckets that have answered this process


def _bucket(path: str) -> str:
    scheme, _, rest = path.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def _wait(path: str, error: Exception, begin: float, repeats: int) -> None:
    # Full jitter: those who were refused together do not come back together.
    pause = _RANDOM.uniform(0, min(_LONGEST_WAIT, _FIRST_WAIT * 2**repeats))
    passed = time.monotonic() - begin
    if passed + pause > AWAY_SECONDS:
        advice = "the same command again continues the run; does the storage answer others?"
        if _unauthorized(error):
            advice = "the credentials have expired: renew them; the same command again continues"
        raise StorageAwayError(
            f"{path}: {described(error)}\n"
            f"asked {repeats + 1} times in {passed:.0f} s, and given up\n{advice}"
        ) from error
    _warn(path, error)
    time.sleep(pause)


_warned = -_SECONDS_BETWEEN_WARNINGS


def _warn(path: str, error: Exception) -> None:
    """Log one of many failures: when storage is away, all threads of all processes meet it."""
    global _warned
    now = time.monotonic()
    if now - _warned >= _SECONDS_BETWEEN_WARNINGS:
        _warned = now
        _logger.warning(
            "%s: %s; asked again, for at most %.0f s", path, described(error), AWAY_SECONDS
        )


def described(error: BaseException) -> str:
    """What happened, in a line: clients' errors often have no text, or wrap one that has."""
    texts = (str(one).strip() for one in causes(error))
    text = next((text.splitlines()[0] for text in texts if text), "")
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    status = status_of(error)
    return text if status is None or str(status) in text else f"{text} (HTTP status {status})"


def status_of(error: BaseException) -> int | None:
    """The HTTP status that the server answered; None if there was no answer, or no end of it."""
    for one in causes(error):
        if _is_of_network(one):  # may have a cause that calls itself 400
            return None
        if (status := _status(one)) is not None:
            return status
    return None


def _may_pass(error: Exception, path: str) -> bool:
    """True if the same request may succeed some time later."""
    if isinstance(error, StorageAwayError):
        return False  # a request that this one needs has been repeated for long enough
    if isinstance(error, TransientError):
        return True
    if _unauthorized(error):
        # Clients renew expired credentials; ones that have never been accepted stay wrong.
        return _bucket(path) in _accepted
    status = status_of(error)
    if status is not None:
        return status_may_pass(status)
    return any(map(_is_of_network, causes(error)))


def status_may_pass(status: int) -> bool:
    """True if a request that is answered so may succeed some time later."""
    return status in _TRANSIENT_STATUS or (status >= 500 and status != 501)


def _is_of_network(error: BaseException) -> bool:
    if isinstance(error, (TimeoutError, ConnectionError)):
        return True
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO:
        return True
    classes = (getattr(sys.modules.get(m), name, None) for m, name in _TRANSIENT_CLASSES)
    return isinstance(error, tuple(c for c in classes if c is not None))


def _unauthorized(error: BaseException) -> bool:
    for one in causes(error):
        response = getattr(one, "response", None)
        if isinstance(response, dict) and response.get("Error", {}).get("Code") in _EXPIRED:
            return True
    return status_of(error) == _UNAUTHORIZED


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def _status(error: BaseException) -> int | None:
    """Under the names that aiohttp, gcsfs, botocore and huggingface_hub give it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if isinstance(status := getattr(response, "status_code", None), int):
        return status
    status = getattr(error, "status", None)
    if status is None:
        status = getattr(error, "code", None)
    return int(status) if str(status).isdigit() else None  # type: ignore[arg-type]
