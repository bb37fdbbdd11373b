"""The present states of many shards: one by one, or from listings of their folders."""

import collections
import contextlib
import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from flaxclip.data.sources.shard_paths import shown
from flaxclip.data.sources.tars.index.index_storage import can_list, list_files
from flaxclip.data.storage.file_systems import Version, is_remote, version_in, version_of
from flaxclip.errors import InputError

_LISTED_FROM = 64  # shards in a folder; a page of a listing describes a thousand


def versions_of_all(paths: Sequence[str]) -> list[Version]:
    """The state of each shard.

    Raises:
        InputError: some do not exist, or cannot be opened.
    """
    missing = []
    listed = _listed_versions(paths)

    def look(path: str) -> Version:
        if path in listed:
            return listed[path]
        try:
            return version_of(path)
        except FileNotFoundError:
            missing.append(path)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"cannot open shard {shown(path)}: {reason}") from None
        return Version(0, 0)

    # In object storage each is a request.
    with ThreadPoolExecutor(32) as pool:
        versions = list(pool.map(look, paths))
    if missing:
        raise InputError(
            f"{len(missing):,} of {len(paths):,} shards do not exist\n"
            f"first: {shown(min(missing))}\n"
            "check the pattern, or finish the download"
        )
    return versions


def _listed_versions(paths: Sequence[str]) -> dict[str, Version]:
    """Those of shards in folders of object storage with many; where listings say what is needed."""
    folders = collections.defaultdict(list)
    for path in filter(is_remote, paths):
        if can_list(path):
            folders[posixpath.dirname(path)].append(path)
    versions: dict[str, Version] = {}
    for folder, inside in folders.items():
        if len(inside) < _LISTED_FROM:
            continue
        with contextlib.suppress(Exception):  # may be forbidden, though the files may be read
            found = list_files(folder)
            here = {}
            for path in inside:
                info = found.get(posixpath.basename(path))
                if info is not None and info.get("size") is not None:
                    here[path] = version_in(info)
            # Not every client describes a file in both cases alike.
            if here and version_of(first := next(iter(here))) == here[first]:
                versions |= here
    return versions
