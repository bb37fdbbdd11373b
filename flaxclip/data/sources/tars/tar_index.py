"""Index of the image–caption pairs in tar shards: built once, kept on disk, read by mmap.

A tar has no table of contents, so the first opening reads all headers (never the data). The result
is stored as plain arrays, 48 bytes a pair and its key, in the user's cache folder
(`$XDG_CACHE_HOME` or `~/.cache`, in `flaxclip/tar_index`), not beside the shards: folders of data
are often read-only, shared or covered by a checksum. An index is named by a hash of every shard's
path, size and modification time, so an old index is never used for changed shards. Processes or
hosts that build at the same time write the same bytes: each writes to a folder of its own and
renames it when complete, and the first one is kept. An index that is no longer used can be deleted.
"""

import concurrent.futures
import hashlib
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np

from flaxclip.data.sources.empty_shards import check_empty_shards
from flaxclip.data.sources.left_out import MEMBER_REASONS
from flaxclip.data.sources.shard_paths import shown
from flaxclip.data.sources.storage import Version, cache_folder, version_of
from flaxclip.data.sources.tars.scan_processes import scan_in_processes
from flaxclip.data.sources.tars.tar_scan import COUNTS, ENTRY, ShardScan, scan_shard
from flaxclip.errors import InputError

SHARD = np.dtype(
    [
        ("size", "<u8"),  # bytes, when indexed
        ("mtime_ns", "<i8"),
        *((name, "<u4") for name in (*COUNTS, *MEMBER_REASONS)),
    ]
)
_FORMAT = 2  # to be raised with any change of what follows from the same shards
_PARALLEL_FROM = 8  # shards; starting processes takes as long as scanning a few shards
_ARRAYS = {"entries": ENTRY, "shards": SHARD, "keys": np.dtype(np.uint8)}
_FILES = {"entries": "records", "shards": "shards", "keys": "keys"}  # as earlier builds wrote

_logger = logging.getLogger(__name__)


class TarIndex:
    """Where the members of each pair are: in which shard, and at which of its bytes.

    Pairs are numbered shard by shard, in the order of their first members. A copy sent to another
    process carries the index's place, not its contents.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        """Open a folder that `build_index` has written.

        Raises:
            ValueError: its files do not fit together.
            OSError: they cannot be read.
        """
        self.folder = folder
        arrays = {}
        for name, dtype in _ARRAYS.items():
            # Mapped into memory: a copy of the index costs its readers nothing.
            arrays[name] = np.memmap(folder / _FILES[name], dtype, mode="r")
        self.shards: np.ndarray = arrays["shards"]
        """[shards] of `SHARD`."""
        self._entries, self._keys = arrays["entries"], arrays["keys"]
        pairs = int(self.shards["pairs"].sum(dtype=np.int64))
        if len(self._entries) != pairs or len(self._keys) != self._entries["key_end"][-1]:
            raise ValueError(
                f"{folder} is damaged: files do not have the lengths that belong together"
            )

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self, first: int, last: int) -> np.ndarray:
        """[last - first] of `ENTRY`: those of the pairs `first` up to `last`, which may lie in
        several shards.
        """
        return self._entries[first:last]

    def entry(self, number: int) -> np.void:
        """The `ENTRY` of one pair."""
        return self._entries[number]

    def key(self, number: int) -> str:
        """The key of one pair, with folders where the tar has them."""
        start = int(self._entries["key_end"][number - 1]) if number else 0
        end = int(self._entries["key_end"][number])
        return self._keys[start:end].tobytes().decode("utf-8", "replace")

    def __reduce__(self) -> tuple[type["TarIndex"], tuple[pathlib.Path]]:
        return TarIndex, (self.folder,)


def build_index(paths: Sequence[str]) -> TarIndex:
    """The index of these shards, built if there is none yet.

    Args:
        paths: absolute paths, or URLs, of tar files.

    Raises:
        InputError: a shard is missing, cannot be read, is no tar, is truncated or holds no pairs,
            although it has members; all are empty; or the index cannot be written.
    """
    versions = _versions_of_all(paths)
    identity = hashlib.sha256(f"{_FORMAT}".encode())
    for path, version in zip(paths, versions, strict=True):
        identity.update(os.fsencode(f"\0{path}\0{version.size}\0{version.mtime_ns}"))
    folder = cache_folder("tar_index") / identity.hexdigest()[:32]
    if folder.exists():
        try:
            return TarIndex(folder)
        except (OSError, ValueError) as error:
            _logger.warning("index is built again: %s", error)
            shutil.rmtree(folder, ignore_errors=True)
    _logger.info("indexing %s shards, once", f"{len(paths):,}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = pathlib.Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise InputError(
            f"cannot write the index of the shards to {folder.parent}: {error.strerror}\n"
            "set XDG_CACHE_HOME to a folder that can be written"
        ) from None
    try:
        _write(partial, versions, _scan_all(paths))
        # Fails if another process was first: a folder that is not empty is never replaced.
        partial.rename(folder)
    except OSError as error:
        if not folder.exists():
            raise InputError(
                f"cannot write the index of the shards to {folder}: {error.strerror}\n"
                "make room there, or set XDG_CACHE_HOME to another folder"
            ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return TarIndex(folder)


def _write(folder: pathlib.Path, versions: Sequence[Version], scans: Iterator[ShardScan]) -> None:
    shards = np.zeros(len(versions), SHARD)
    with (folder / "records").open("wb") as entries, (folder / "keys").open("wb") as keys:
        for number, (version, scan) in enumerate(zip(versions, scans, strict=True)):
            scan.entries["shard"] = number
            scan.entries["key_end"] += keys.tell()
            entries.write(scan.entries.tobytes())
            keys.write(scan.keys)
            shards[number]["size"], shards[number]["mtime_ns"] = version
            for name, count in scan.counts.items():
                shards[number][name] = count
    shards.tofile(folder / "shards")


def _versions_of_all(paths: Sequence[str]) -> list[Version]:
    missing = []

    def look(path: str) -> Version:
        try:
            return version_of(path)
        except FileNotFoundError:
            missing.append(path)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"cannot open shard {shown(path)}: {reason}") from None
        return Version(0, 0)

    # In object storage each is a request.
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        versions = list(pool.map(look, paths))
    if missing:
        raise InputError(
            f"{len(missing):,} of {len(paths):,} shards do not exist\n"
            f"first: {shown(min(missing))}\n"
            "check the pattern, or finish the download"
        )
    return versions


def _scan_all(paths: Sequence[str]) -> Iterator[ShardScan]:
    """Scan in order; errors are collected, so that all broken shards are reported at once."""
    problems, pairs = [], 0
    for result in _map(paths):
        if isinstance(result, InputError):
            problems.append(str(result))
        else:
            pairs += len(result.entries)
            yield result
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        firsts = [problem.splitlines()[0] for problem in problems]
        more = [f"and {len(firsts) - 10:,} more"] if len(firsts) > 10 else []
        lines = [f"{len(firsts):,} of {len(paths):,} shards cannot be used", *firsts[:10], *more]
        raise InputError("\n".join([*lines, "", "the first one in full:", problems[0]]))
    if not pairs:
        empty = [(path, version_of(path).size) for path in paths]
        check_empty_shards(empty, len(paths), allowed=False)


def _map(paths: Sequence[str]) -> Iterator[ShardScan | InputError]:
    workers = min(os.cpu_count() or 1, len(paths))
    if len(paths) < _PARALLEL_FROM or workers == 1:
        yield from map(scan_shard, paths)
    else:
        yield from scan_in_processes(paths, workers)
