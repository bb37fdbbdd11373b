"""How much of a copy is done, on a terminal."""

import sys
import threading
from typing import Any

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def described_size(size: float) -> str:
    """`6.3 GB`: thousands of bytes, as disks and the Hub count."""
    for unit in _UNITS[:-1]:
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 99.5 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} {_UNITS[-1]}"


class Progress:
    """A bar with bytes, speed and time left; nothing where standard error is no terminal."""

    def __init__(self, total: int, title: str = "", before: int = 0):
        """Of `total` bytes, `before` are there already: their speed is not that of a copy."""
        self._total, self._title, self._before = total, title, before
        self._bar: Any = None
        self._lock = threading.Lock()

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.DownloadColumn(),
                progress.TransferSpeedColumn(),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=self._total, completed=self._before)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def add(self, size: int) -> None:
        """Count some more bytes; from any thread."""
        with self._lock:
            if self._bar is not None:
                self._bar.advance(self._task, size)
