"""The present states of many shards: one by one, or from listings of their folders."""

import collections
import contextlib
import inspect
import itertools
import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from flaxclip.data.sources.shard_paths import shown
from flaxclip.data.sources.tars.index.index_storage import can_list, list_files
from flaxclip.data.storage.file_systems import (
    Version,
    file_system_of,
    is_remote,
    version_in,
    version_of,
)
from flaxclip.errors import InputError

_LISTED_FROM = 64  # shards in a folder; a page of a listing describes a thousand
_IN_LISTING = 1000
_LISTINGS_AT_ONCE = 8


def versions_of_all(paths: Sequence[str]) -> list[Version]:
    """The state of each shard.

    Raises:
        InputError: some do not exist, or cannot be opened.
    """
    missing = []
    known = _listed_versions(paths)
    others = [path for path in paths if path not in known]

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
    with ThreadPoolExecutor(32) as pool:
        known.update(zip(others, pool.map(look, others), strict=True))
    if missing:
        raise InputError(
            f"{len(missing):,} of {len(paths):,} shards do not exist\n"
            f"first: {shown(min(missing))}\n"
            "check the pattern, or finish the download"
        )
    return [known[path] for path in paths]


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
            here = _versions_in(folder, inside)
            # Not every client describes a file in both cases alike.
            if here and version_of(first := min(here)) == here[first]:
                versions |= here
    return versions


def _versions_in(folder: str, paths: Sequence[str]) -> dict[str, Version]:
    """The versions of those of `paths` that a listing of their folder describes.

    Clients make some 5 kB of each file, and keep them: of a hundred thousand, half a GB. So files
    are listed a thousand at a time, in parts whose names begin alike, where the client can do that;
    several parts at once, where pages of one listing come one after the other.
    """
    fs = file_system_of(folder)
    can_divide = "prefix" in inspect.signature(getattr(fs, "_find", fs.find)).parameters
    names = {posixpath.basename(path): path for path in paths}

    def look(prefix: str) -> dict[str, Version]:
        if prefix:
            root = f"{fs._strip_protocol(folder)}/"
            listed = fs.find(folder, prefix=prefix, detail=True)  # also below folders
            found = {name.removeprefix(root): info for name, info in listed.items()}
        else:
            found = list_files(folder)
        return {
            names[name]: version_in(info)
            for name, info in found.items()
            if name in names and info.get("size") is not None
        }

    prefixes = _prefixes(sorted(names)) if can_divide else [""]
    versions: dict[str, Version] = {}
    with ThreadPoolExecutor(_LISTINGS_AT_ONCE) as pool:
        for part in pool.map(look, prefixes):
            versions |= part
    fs.invalidate_cache(folder)
    return versions


def _prefixes(names: Sequence[str]) -> list[str]:
    """Beginnings of these sorted names, so that each name has one of them; few names share one.

    If there are not many names, an empty one.
    """

    def longer(prefix: str, names: Sequence[str]) -> list[str]:
        if len(names) <= _IN_LISTING:
            return [prefix]
        groups = itertools.groupby(names, lambda name: name[: len(prefix) + 1])
        return [one for begin, group in groups for one in longer(begin, list(group))]

    return longer("", names)
