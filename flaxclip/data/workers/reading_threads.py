"""Threads that wait for remote storage."""

import functools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from flaxclip.data.storage.file_systems import REQUESTS_AT_ONCE

_Result = TypeVar("_Result")


def call_in_thread(function: Callable[..., _Result], *arguments: Any) -> Future[_Result]:
    """Begin a call, or queue it behind the `REQUESTS_AT_ONCE` that run; calls begin in order.

    The first one of a process runs alone: some versions of s3fs make a client, which takes 0.2 s,
    for every request that comes before the first is answered.
    """
    future: Future[_Result] = Future()
    _threads().put((future, function, arguments))
    return future


@functools.cache
def _threads() -> queue.SimpleQueue:
    # Not ThreadPoolExecutor's, which a process waits for when it ends: a request may hang.
    calls: queue.SimpleQueue = queue.SimpleQueue()
    first_done = threading.Event()
    for number in range(REQUESTS_AT_ONCE):
        arguments = calls, first_done, number == 0
        threading.Thread(target=_serve, args=arguments, name="reads", daemon=True).start()
    return calls


def _serve(calls: queue.SimpleQueue, first_done: threading.Event, is_first: bool) -> None:
    if is_first:
        _call(*calls.get())
        first_done.set()
    first_done.wait()
    while True:
        _call(*calls.get())


def _call(future: Future, function: Callable[..., Any], arguments: tuple) -> None:
    try:
        future.set_result(function(*arguments))
    except BaseException as error:
        future.set_exception(error)
