"""Scan many shards: in order, in several processes, with the errors of all of them."""

import logging
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence

from flaxclip.data.sources.tars.index.index_folder import IndexFolder, ScannedShard
from flaxclip.data.sources.tars.index.index_table import Table
from flaxclip.data.sources.tars.scan_processes import scan_in_processes
from flaxclip.data.sources.tars.tar_scan import ShardScan, scan_shard
from flaxclip.data.storage.file_systems import Version, is_remote
from flaxclip.errors import InputError

PARALLEL_FROM = 8
"""Shards: starting processes takes as long as scanning a few."""

_PIECE_BYTES = 2**26  # kept in memory until they are written
_PIECE_SECONDS = 60.0  # of work that is lost at most, if the process is killed
_SECONDS_BETWEEN_LINES = 30.0

_logger = logging.getLogger(__name__)


def write_pieces(
    folder: IndexFolder,
    paths: Sequence[str],
    versions: Sequence[Version],
    results: Iterator[ShardScan | InputError],
    root: str = "",
    report: Callable[[int], None] = lambda done: None,
) -> list[Table]:
    """Write what is in shards, piece by piece; returns the tables of the pieces.

    Args:
        folder: where pieces are written.
        paths: of the shards.
        versions: the states that they are in.
        results: of scanning them, see `scan_each`.
        root: names are written relative to it, where shards lie below it.
        report: called with the number of shards done, after each.

    Raises:
        InputError: some shards cannot be used; those that can are in the folder nevertheless.
        OSError: the folder cannot be written.
    """
    tables: list[Table] = []
    waiting: list[ScannedShard] = []
    waiting_bytes, since = 0, time.monotonic()
    last_line = since
    problems = []
    for number, (path, version, result) in enumerate(zip(paths, versions, results, strict=True), 1):
        if isinstance(result, InputError):
            problems.append(str(result))
        else:
            waiting.append(ScannedShard(path, version, result))
            waiting_bytes += result.entries.nbytes + len(result.keys)
        report(number)
        if time.monotonic() - last_line >= _SECONDS_BETWEEN_LINES:
            last_line = time.monotonic()
            _logger.info("%s of %s shards are indexed", f"{number:,}", f"{len(paths):,}")
        full = waiting_bytes >= _PIECE_BYTES or time.monotonic() - since >= _PIECE_SECONDS
        if waiting and (full or number == len(paths)):
            tables.append(folder.write_piece(waiting, root))
            waiting, waiting_bytes, since = [], 0, time.monotonic()
    _check_no_problems(problems, len(paths))
    return tables


def _check_no_problems(problems: Sequence[str], shards: int) -> None:
    """All broken shards are reported at once."""
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        firsts = [problem.splitlines()[0] for problem in problems]
        more = [f"and {len(firsts) - 10:,} more"] if len(firsts) > 10 else []
        lines = [f"{len(firsts):,} of {shards:,} shards cannot be used", *firsts[:10], *more]
        raise InputError("\n".join([*lines, "", "the first one in full:", problems[0]]))


def scan_each(
    paths: Sequence[str], versions: Sequence[Version], processes: int | None = None
) -> Generator[ShardScan | InputError, None, None]:
    """`scan_shard` of each, in order.

    Args:
        paths: of the shards.
        versions: the states that they are in.
        processes: that scan. If None, one for each core; for shards at URLs, which are waited for,
            four, but no more than 64 if there are not as many cores.

    Raises:
        InputError: a process was killed or has crashed.
    """
    cores = os.cpu_count() or 1
    if processes is None:
        processes = max(cores, min(4 * cores, 64)) if any(map(is_remote, paths)) else cores
    processes = min(processes, len(paths))
    if len(paths) < PARALLEL_FROM or processes == 1:
        yield from map(scan_shard, paths, versions)
    else:
        yield from scan_in_processes(paths, processes, versions)
