"""Numbers of pairs in tar shards, as the programs that wrote or listed the shards have stated them.

    00000_stats.json    {"count": 10000, "successes": 8722, ...}    img2dataset, beside each shard
    sizes.json          {"00000.tar": 8722, ...}                    webdataset, open_clip
    index.json          {"wids_version": 1, "shardlist": [{"url": "00000.tar", "nsamples": 8722}]}

They may be wrong: shards were filtered or packed again, or hold samples that are no pairs. Who uses
them compares them with what is in the shards.
"""

import contextlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from flaxclip.data.sources.shard_paths import shown
from flaxclip.data.sources.tars.index.index_storage import (
    common_folder,
    join_path,
    read_whole,
    relative_to,
    resolve,
)
from flaxclip.data.storage.file_systems import REQUESTS_AT_ONCE
from flaxclip.errors import InputError

AUTO = "auto"
"""Counts beside the shards."""
_SIZES = "sizes.json"
_STATS = "_stats.json"
_EXPECTED = (
    'expected {"00000.tar": 10000, ...} as in sizes.json, or the index of wids, '
    '{"wids_version": 1, "shardlist": [{"url": "00000.tar", "nsamples": 10000}, ...]}'
)
_INSTEAD = "leave data.counts out, and shards are indexed before training starts"


_logger = logging.getLogger(__name__)


class StatedCount(NamedTuple):
    """The number of pairs that a file states for a shard."""

    pairs: int
    file: str


def read_counts(paths: Sequence[str], counts: str) -> list[StatedCount]:
    """The number of pairs that is stated for each shard.

    Args:
        paths: of the shards.
        counts: `AUTO`, for `sizes.json` beside the shards or else img2dataset's statistics of each;
            or the path of a file for all, in the form of `sizes.json` or of wids' index.

    Raises:
        InputError: there is none for some shards, or a file cannot be used.
    """
    if counts != AUTO:
        stated = _read_json(counts)
        if stated is None:
            raise InputError(f"no file of counts: {counts}\n{_EXPECTED}")
        found = _match(paths, _counts_of_shards(stated, counts), counts)
        looked_in = counts
    else:
        folders = list(dict.fromkeys(map(os.path.dirname, paths)))
        files = [join_path(folder, _SIZES) for folder in folders]
        found = {}
        for file, stated in zip(files, _read_all(files), strict=True):
            if stated is not None:
                found |= _match(paths, _counts_of_shards(stated, file), file)
        rest = [path for path in paths if path not in found]
        files = [path.removesuffix(".tar") + _STATS for path in rest]
        for path, file, stated in zip(rest, files, _read_all(files), strict=True):
            if stated is not None:
                found[path] = StatedCount(_count(stated, "successes", file), file)
        looked_in = (
            f"{_SIZES} beside it and {os.path.basename(paths[0]).removesuffix('.tar')}{_STATS}"
        )
    missing = [path for path in paths if path not in found]
    if missing:
        raise InputError(
            f"{len(missing):,} of {len(paths):,} shards are without a count of pairs: first "
            f"{shown(missing[0])}\nlooked for in {looked_in}; complete that, or {_INSTEAD}"
        )
    return [found[path] for path in paths]


def advise_counts(path: str) -> None:
    """Log what would spare a run the indexing of its shards, if it lies beside this one."""
    files = join_path(os.path.dirname(path), _SIZES), path.removesuffix(".tar") + _STATS
    with contextlib.suppress(InputError):
        there = (file for file, stated in zip(files, _read_all(files), strict=True) if stated)
        if (file := next(there, None)) is not None:
            _logger.info(
                "if the numbers of pairs in %s and its like are right, training need not wait for "
                "this: --data.counts auto",
                file,
            )


def _read_all(files: Sequence[str]) -> list[Any]:
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return list(pool.map(_read_json, files))


def _read_json(file: str) -> Any:
    """What a file holds; None if there is no file."""
    try:
        return json.loads(read_whole(file))
    except FileNotFoundError:
        return None
    except InputError:
        raise
    except Exception as error:  # clients of object storage have errors of their own
        raise InputError(
            f"cannot read counts of pairs from {shown(file)}: {type(error).__name__}: {error}\n"
            f"{_EXPECTED}, or {_INSTEAD}"
        ) from None


def _counts_of_shards(stated: Any, file: str) -> dict[str, int]:
    """Counts by the names that a file gives to shards."""
    if isinstance(stated, dict) and "shardlist" in stated:
        shards = stated["shardlist"]
        if isinstance(shards, list) and all(
            isinstance(shard, dict) and isinstance(shard.get("url"), str) for shard in shards
        ):
            return {shard["url"]: _count(shard, "nsamples", file) for shard in shards}
    elif isinstance(stated, dict) and all(name.endswith(".tar") for name in stated):
        return {name: _count(stated, name, file) for name in stated}
    raise InputError(f"no counts of shards in {shown(file)}\n{_EXPECTED}")


def _count(stated: Any, field: str, file: str) -> int:
    count = stated.get(field) if isinstance(stated, dict) else None
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise InputError(
            f"{field} is {count!r:.40} in {shown(file)}\nexpected a number of samples; {_INSTEAD}"
        )
    return count


def _match(paths: Sequence[str], counts: Mapping[str, int], file: str) -> dict[str, StatedCount]:
    """The counts of the paths that a file names: whole, relative to its folder, or by base name."""
    beside = os.path.dirname(file)
    resolved = {resolve(beside, name.removeprefix("./")): n for name, n in counts.items()}
    by_path = {path: resolved[path] for path in paths if path in resolved}
    if not by_path:  # of a corpus that was elsewhere, or a file that is
        root = common_folder(paths)
        by_path = {
            path: counts[name] for path in paths if (name := relative_to(root, path)) in counts
        }
    if not by_path and len(set(map(os.path.basename, paths))) == len(paths):
        bases = {os.path.basename(name): count for name, count in counts.items()}
        if len(bases) == len(counts):
            named = ((path, os.path.basename(path)) for path in paths)
            by_path = {path: bases[name] for path, name in named if name in bases}
    return {path: StatedCount(count, file) for path, count in by_path.items()}
