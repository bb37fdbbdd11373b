"""Shards without an example: refused by name, or, on request, counted and reported.

A downloader leaves one when every download of a shard has failed.
"""

import logging
from collections.abc import Sequence

from flaxclip.data.sources.shard_paths import shown
from flaxclip.errors import InputError

_NAMED = 10

_logger = logging.getLogger(__name__)


def check_empty_shards(
    empty: Sequence[tuple[str, int]], total: int, allowed: bool, doubt: str = ""
) -> None:
    """Warn of empty shards, or refuse them.

    Args:
        empty: path and size, in bytes, of each.
        total: number of shards, these included.
        allowed: `CorpusConfig.allow_empty_shards`.
        doubt: another explanation for such a file, for the message.

    Raises:
        InputError: there are some and they are not allowed; or all are empty.
    """
    if not empty:
        return
    named = [f"{shown(path)} ({size:,} bytes)" for path, size in empty[:_NAMED]]
    more = f", and {len(empty) - _NAMED:,} more" if len(empty) > _NAMED else ""
    listed = f"{', '.join(named)}{more}"
    if len(empty) == total:
        found = "the only shard is empty" if total == 1 else f"all {total:,} shards are empty"
        raise InputError(f"{found}\n{listed}\n{doubt}fetch or make what should be there again")
    found = f"{len(empty):,} of {total:,} shards are empty"
    if not allowed:
        raise InputError(
            f"{found}\n{listed}\n"
            f"a downloader leaves a shard so when all of its downloads fail; {doubt}fetch or make "
            "them again, or leave them out\n"
            "to go on without them: --data.allow-empty-shards True in training, "
            "--allow-empty-shards in flaxclip.data.inspect and prepare"
        )
    _logger.warning("%s: %s%s", found, listed, f"; {doubt.rstrip(': ')}" if doubt else "")
