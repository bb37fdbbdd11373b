"""Standard output and error, which may lose their reader, or have no room, before a run ends.

With `python -m flaxclip.train 2>&1 | tee log`, Ctrl-C ends `tee` at once, while the run still has
to save. That nobody hears what it says must change neither what a run does nor its exit code.
"""

import contextlib
import os
import sys
from typing import Protocol, runtime_checkable


@runtime_checkable
class TextStream(Protocol):
    """What `sys.stdout` and `sys.stderr` are, or what notebooks and tests put in their place."""

    def write(self, text: str, /) -> object:
        """Write some text."""

    def flush(self) -> object:
        """Write what is buffered."""


def say(text: str, stream: TextStream | None) -> None:
    """Print a line immediately; it is lost if it cannot be written, or if there is no stream."""
    if stream is None:  # closed by whoever started this process
        return
    with contextlib.suppress(OSError):
        # In one piece: `print` would write the line's end apart, and other threads in between.
        print(f"{text}\n", end="", file=stream, flush=True)


def drop_what_cannot_be_written() -> None:
    """To be called before exiting: Python would exit with 120 if it could not write the rest."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
