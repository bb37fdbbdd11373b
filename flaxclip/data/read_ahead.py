"""Examples in a given order, where reading one may mean waiting for a network."""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from flaxclip.data.storage.file_systems import REQUESTS_AT_ONCE
from flaxclip.data.workers.reading_threads import call_in_thread

_Result = TypeVar("_Result")


def read_ahead(
    read: Callable[[int], _Result], numbers: Iterable[int], remotely: bool
) -> Iterator[Callable[[], _Result]]:
    """Calls of `read`, one for each of `numbers`, in their order.

    Each is given as a function that returns what `read` does and raises what it raises, so that the
    error of an example stays with that example.

        for number, take in zip(numbers, read_ahead(source.__getitem__, numbers, True)):
            pair = take()

    Args:
        read: reads one example; called in several threads at once if `remotely`.
        numbers: of the examples.
        remotely: `reads_remotely` of the source. If True, `REQUESTS_AT_ONCE` of the calls that come
            next are being made while the caller works on one; if False, each is made when taken.
    """
    if not remotely:
        yield from (functools.partial(read, number) for number in numbers)
        return
    begun: collections.deque[Future[_Result]] = collections.deque()
    for number in numbers:
        begun.append(call_in_thread(read, number))
        if len(begun) > REQUESTS_AT_ONCE:
            yield begun.popleft().result
    while begun:
        yield begun.popleft().result
