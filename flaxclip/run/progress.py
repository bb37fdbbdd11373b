"""A run on the terminal: one line a report and, on a terminal that allows it, a live bar below."""

import contextlib
import sys
from collections.abc import Mapping

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.text import Text

from flaxclip.standard_streams import say


class ProgressReport:
    """Context manager around the training loop; silent on all processes but the first."""

    def __init__(self, start_step: int, steps: int):
        self._steps = steps
        self._speaks = jax.process_index() == 0
        self._console = Console()
        # A log file is no place for a bar that redraws itself, even where colors are wanted.
        on_terminal = self._console.is_terminal and sys.stdout.isatty()
        self._bar = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TimeRemainingColumn(),
            console=self._console,
            # Each redrawing is a message to a notebook's page, and work beside the training.
            refresh_per_second=2,
            disable=not (self._speaks and on_terminal),
        )
        self._task = self._bar.add_task("", total=steps, completed=start_step)

    def __enter__(self) -> "ProgressReport":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone
            self._bar.stop()

    def advance(self, step: int) -> None:
        """Move the bar: `step` updates have been dispatched."""
        self._bar.update(self._task, completed=step)

    def report(self, step: int, scalars: Mapping[str, float | None], seconds_left: float) -> None:
        """Print one line of `scalars`, as the training loop names them."""
        mfu, padding = scalars["mfu"], scalars.get("padding_share")
        width = len(str(self._steps))
        self.say(
            f"step {step:{width}}/{self._steps}  loss {scalars['loss']:.3f}  "
            f"acc i→t {scalars['image_to_text_accuracy']:.1%} "
            f"t→i {scalars['text_to_image_accuracy']:.1%}  "
            f"{scalars['images_per_second']:,.0f} img/s  "
            f"mfu {'unknown' if mfu is None else f'{mfu:.1%}'}  "
            + ("" if padding is None else f"padding {padding:.1%}  ")
            + f"data wait {scalars['data_wait']:.1%}  eta {_duration(seconds_left)}"
        )

    def say(self, text: str) -> None:
        """Print a line of its own, above the bar if there is one."""
        if self._speaks:
            self._print(text)

    def warn(self, text: str) -> None:
        """Like `say`, but on every process: errors of a host must not get lost."""
        host = f"[host {jax.process_index()}] " if jax.process_count() > 1 else ""
        self._print(host + text)

    def _print(self, text: str) -> None:
        if self._bar.disable:
            say(text, sys.stdout)
            return
        try:
            # Text, not str: brackets in a file's name are not markup.
            self._console.print(Text(text), soft_wrap=True)
        except OSError:
            self._console.quiet = True  # the terminal is gone


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
