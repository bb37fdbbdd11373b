"""A second request where the first is slow: whichever is answered first counts.

Object storage answers some requests in a thousand after seconds, without a reason that would also
hold for the next one (Dean & Barroso 2013, "The Tail at Scale"). What is read ahead hides that only
as far as it is ahead, which are a few seconds where steps are short; and nothing is ahead of the
first batch, for which all hosts wait.
"""

import asyncio
import collections
import threading
import time
from typing import Any

import fsspec
import fsspec.asyn

from flaxclip.data.storage.repeated_requests import COUNTER, call

_TIMES = 2.0  # as long as 95 of a hundred requests of about that size: then a second one is made
_LEAST_SECONDS = 0.2
_REMEMBERED, _FEWEST = 200, 30  # requests of about the same size
_MOST_EXTRA = 0.05  # of all requests: storage that is slow altogether must not get twice as many
_POLL_SECONDS = 0.1


def read_range(
    fs: fsspec.AbstractFileSystem, path: str, start: int, end: int, seconds: float, **arguments: Any
) -> bytes:
    """What `cat_file` of a client returns, by one request, or two if the first is slow.

    Clients that are not asynchronous are asked once. Raises what `cat_file` does, and
    `TimeoutError` after `seconds`.
    """
    arguments |= {"start": start, "end": end}
    if not getattr(fs, "async_impl", False):
        return call(fs, "cat_file", seconds, path, **arguments)
    return fsspec.asyn.sync(fs.loop, _first_answer, fs, path, arguments, timeout=seconds)


async def _first_answer(fs: Any, path: str, arguments: dict[str, Any]) -> bytes:
    begin, size = time.monotonic(), arguments["end"] - arguments["start"]
    waiting = {asyncio.ensure_future(fs._cat_file(path, **arguments))}
    requests = 1
    try:
        while True:
            left = _RECENT.patience(size) - (time.monotonic() - begin)
            answered, waiting = await asyncio.wait(
                waiting,
                timeout=None if requests == 2 else min(max(left, 0.0), _POLL_SECONDS),
                return_when=asyncio.FIRST_COMPLETED,
            )
            good = [request for request in answered if not request.exception()]
            if good or not waiting:
                data = (good or list(answered))[0].result()
                _RECENT.add(size, time.monotonic() - begin)
                return data
            late = time.monotonic() - begin > _RECENT.patience(size)
            if requests == 1 and late and _RECENT.allows_another():
                COUNTER.add(requests=1, hedged=1)
                requests = 2
                waiting.add(asyncio.ensure_future(fs._cat_file(path, **arguments)))
    finally:
        for request in waiting:
            request.cancel()


class _Recent:
    """How long requests have taken lately, and how many were made twice."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By the number of bits of their size.
        self._seconds: dict[int, collections.deque[float]] = collections.defaultdict(
            lambda: collections.deque(maxlen=_REMEMBERED)
        )
        self._all = self._extra = 0

    def add(self, size: int, seconds: float) -> None:
        """Note a request that was answered."""
        with self._lock:
            self._all += 1
            self._seconds[size.bit_length()].append(seconds)

    def patience(self, size: int) -> float:
        """Seconds after which a request counts as slow; without end, as long as few are known."""
        with self._lock:
            known = sorted(self._seconds[size.bit_length()])
        if len(known) < _FEWEST:
            return float("inf")
        return max(_LEAST_SECONDS, _TIMES * known[int(0.95 * len(known))])

    def allows_another(self) -> bool:
        """True if there have not been too many; counts one more."""
        with self._lock:
            if self._extra + 1 > _MOST_EXTRA * self._all:
                return False
            self._extra += 1
            return True


_RECENT = _Recent()
