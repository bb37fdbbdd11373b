"""Whether code leaves descriptors open, or processes behind.

In a process in which what earlier tests have begun may go on: their threads end, their processes
are reaped, and connections to their servers are closed, or made once more for a request that is
repeated. So what goes is nobody's fault, and connections by TCP, which nothing that is tested with
this makes, are left out.
"""

import contextlib
import gc
import os
import pathlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def nothing_left_open() -> Iterator[None]:
    """Fail if this process has descriptors or children afterwards that it did not have before."""
    gc.collect()  # what earlier tests have left
    before = _descriptors(), _children()
    yield
    gc.collect()
    after = _descriptors(), _children()
    left = after[0] - before[0], after[1] - before[1]
    assert left == (set(), set()), f"before: {before}\nafter: {after}"


def _descriptors() -> set[tuple[str, str]]:
    """Their numbers, and what they are of."""
    found = set()
    for link in pathlib.Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists the folder, or closed meanwhile
            target = str(link.readlink())
            if "/fd" not in target and not _is_tcp(int(link.name), target):
                found.add((link.name, target))
    return found


def _is_tcp(descriptor: int, target: str) -> bool:
    if not target.startswith("socket:"):
        return False
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        return connection.family in (socket.AF_INET, socket.AF_INET6)


def _children() -> set[str]:
    children = set()
    for path in pathlib.Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended
            children.update(path.read_text().split())
    return children
