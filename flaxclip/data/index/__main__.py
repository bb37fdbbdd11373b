"""Index tar shards once, and store the index beside them, where training and all else finds it.

    python -m flaxclip.data.index 'shards/*.tar'
    python -m flaxclip.data.index 'gs://bucket/corpus/{00000..01242}.tar'
    python -m flaxclip.data.index 'gs://public/*.tar' --out gs://mine/index
    python -m flaxclip.data.index 'gs://bucket/*/*.tar' -- --runner=DataflowRunner ...

Options after `--` go to Apache Beam, which then reads the shards, on many machines.
The index goes to a folder `flaxclip_index` in the folder that the shards have in common. With one
elsewhere, say so in training: --data.index gs://mine/index. Shards that the index has already, in
their present state, are not read again: after a kill the same command goes on, and new shards are
added to those of before.
"""

import dataclasses
import os
import sys
import time
from typing import Annotated

import tyro

from flaxclip.data.index.make_index import make_index
from flaxclip.data.on_beam import check_workers, split_beam_options
from flaxclip.errors import exit_on_input_error
from flaxclip.exit_codes import exit_with_code

_SECONDS_BETWEEN_LINES = 10.0


@dataclasses.dataclass(frozen=True)
class Command:
    """Index tar shards. Options of Apache Beam follow after `--`."""

    shards: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SHARDS")]
    """Paths or URLs of tars, with braces or globs."""
    out: str | None = None
    """Folder or URL to write to. If None, `flaxclip_index` beside the shards."""
    workers: int | None = None
    """Processes. If None, one for each core."""
    copied: bool = False
    """The corpus was copied, which gives files other times, and objects other generations: take
    shards of the same name and size as those indexed, where some headers of each are where the
    index says."""

    def __post_init__(self) -> None:
        check_workers(self.workers)


class Progress:
    """Lines on standard error, one in ten seconds."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()

    def report(self, done: int, of: int) -> None:
        """To be called after each shard."""
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            left = (now - self._start) / done * (of - done)
            line = f"{done:,} of {of:,} shards, some {left / 60:,.0f} minutes left"
            print(line, file=sys.stderr, flush=True)


def main() -> None:
    """The command line."""
    args, beam_options = split_beam_options(sys.argv[1:])
    with exit_on_input_error("flaxclip.data.index"), exit_with_code("flaxclip.data.index"):
        command = tyro.cli(
            Command,
            args=args,
            prog="python -m flaxclip.data.index",
            description=__doc__,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        made = make_index(
            command.shards,
            command.out,
            command.workers or os.cpu_count() or 1,
            command.copied,
            Progress().report,
            beam_options,
        )
        print(made.summary())


if __name__ == "__main__":
    main()
