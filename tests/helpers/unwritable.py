"""Output that cannot be written: its reader is gone, or its disk is full."""

import contextlib
import os
from collections.abc import Iterator

import pytest

KINDS = ("no reader", "full disk")


@contextlib.contextmanager
def unwritable(kind: str) -> Iterator[int]:
    """A descriptor to give to a process as its standard output or error."""
    if kind == "no reader":
        reader, descriptor = os.pipe()
        os.close(reader)
    elif os.path.exists("/dev/full"):
        descriptor = os.open("/dev/full", os.O_WRONLY)
    else:
        pytest.skip("needs /dev/full (Linux)")
    try:
        yield descriptor
    finally:
        os.close(descriptor)
