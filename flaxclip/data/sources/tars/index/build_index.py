"""From the paths of tar shards to their index: found, completed, or built.

What is known of shards is looked for in the user's cache folder (`$XDG_CACHE_HOME` or `~/.cache`,
in `flaxclip/tar_index`), in the index that `data.index` names, and in a folder `flaxclip_index`
beside the shards, as `flaxclip.data.index` makes it. A shard counts as known if it has the size and
the modification time, or the generation or tag in object storage, that it had when it was indexed.
The others are scanned, into the cache: folders of data are often read-only, shared or covered by a
checksum. An index in the cache that is no longer used can be deleted.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from flaxclip.data.sources.empty_shards import check_empty_shards
from flaxclip.data.sources.shard_paths import shown
from flaxclip.data.sources.tars.index.copied_shards import add_copies
from flaxclip.data.sources.tars.index.counted_index import CountedIndex, count_shards
from flaxclip.data.sources.tars.index.index_folder import IndexFolder
from flaxclip.data.sources.tars.index.index_lookup import KnownShards
from flaxclip.data.sources.tars.index.index_sharing import IndexSharing, share_table
from flaxclip.data.sources.tars.index.index_storage import (
    common_folder,
    join_path,
)
from flaxclip.data.sources.tars.index.index_table import FORMAT, Table
from flaxclip.data.sources.tars.index.kept_scans import KeptScans
from flaxclip.data.sources.tars.index.shard_scans import scan_each, write_pieces
from flaxclip.data.sources.tars.index.shard_versions import versions_of_all
from flaxclip.data.sources.tars.index.stated_counts import advise_counts, read_counts
from flaxclip.data.sources.tars.index.tar_index import PIECES, PairIndex, TarIndex
from flaxclip.data.storage.file_systems import Version, is_remote
from flaxclip.data.storage.files import cache_folder
from flaxclip.errors import InputError

INDEX_FOLDER = "flaxclip_index"
"""Beside the shards."""
_COPIED_BYTES = 2**28  # of an index in object storage; a larger one is read by ranges

_logger = logging.getLogger(__name__)


def build_index(
    paths: Sequence[str],
    stored: str | None = None,
    sharing: IndexSharing | None = None,
    counts: str | None = None,
) -> PairIndex:
    """The index of these shards; those that no index has in their present state are scanned.

    Args:
        paths: absolute paths, or URLs, of tar files.
        stored: folder of an index that `flaxclip.data.index` has made. If None, the one beside the
            shards, if there is one.
        sharing: hosts that all call this, and scan a part of the shards each if these are at URLs.
            If None, or if shards are on disk, where each host may have copies of its own, this one
            scans all.
        counts: as for `read_counts`. Shards at URLs that no index has are then not scanned: the
            index is a `CountedIndex`.

    Raises:
        InputError: a shard is missing, cannot be read, is no tar, is truncated or holds no pairs,
            although it has members; all are empty; the index cannot be written; or `counts` cannot
            be used.
    """
    if not all(map(is_remote, paths)):
        sharing = counts = None
    versions = versions_of_all(paths)
    home = IndexFolder(str(cache_folder("tar_index") / _hash(common_folder(paths))))
    name = f"{_hash(FORMAT, *zip(paths, versions, strict=True))}.table"
    elsewhere = _stored_indexes(paths, stored)
    if counts is not None:
        known = KnownShards([*elsewhere, home], paths, versions)
        # What is in this host's cache, other hosts may not have: its numbers must be those stated.
        if known.unknown or (
            sharing is not None and KnownShards(elsewhere, paths, versions).unknown
        ):
            return _count(paths, versions, known, home, counts, sharing)
    if sharing is not None:
        # Whether or not this host has an index, the others may wait for its part.
        table = share_table(elsewhere, paths, versions, home, sharing)
    try:
        if (index := _open_table(home.place(name))) is not None:
            return index
        if sharing is None:
            if counts is None and is_remote(paths[0]):
                advise_counts(paths[0])
            table = complete_table([home, *elsewhere], paths, versions, home)
        if not table.shards["pairs"].any():
            empty = [(path, version.size) for path, version in zip(paths, versions, strict=True)]
            check_empty_shards(empty, len(paths), allowed=False)
        return TarIndex(home.publish(_with_copies(table, home), "", name))
    except OSError as error:
        raise InputError(
            f"cannot write the index of the shards to {home.path}: {error.strerror or error}\n"
            "make room there, or set XDG_CACHE_HOME to a folder that can be written"
        ) from None


def _count(
    paths: Sequence[str],
    versions: Sequence[Version],
    known: KnownShards,
    home: IndexFolder,
    counts: str,
    sharing: IndexSharing | None,
) -> CountedIndex:
    """The index of shards of which some are only counted."""
    unknown = set(known.unknown)
    places = [place for place in range(len(paths)) if place not in unknown]
    shared = None if sharing is None else join_path(sharing.folder, "shards")
    scans = KeptScans(home.place("shards"), shared)
    indexed = places, known.table(places)
    return count_shards(paths, versions, read_counts(paths, counts), indexed, scans)


def _open_table(path: str) -> TarIndex | None:
    if not os.path.exists(path):
        return None
    try:
        index = TarIndex(path)
        index.check_remote_pieces()
        return index
    except (OSError, ValueError) as error:
        _logger.warning("index is built again: %s", error)
        return None


def complete_table(
    folders: Sequence[IndexFolder],
    paths: Sequence[str],
    versions: Sequence[Version],
    out: IndexFolder,
    root: str = "",
    copied: bool = False,
    processes: int | None = None,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> Table:
    """The table of all shards: from the indexes in `folders`, and for the rest by scanning.

    Args:
        folders: where to look.
        paths: of the shards.
        versions: their present states.
        out: where pieces of scanned shards are written.
        root: folder of the corpus, for the names in these pieces.
        copied: shards that are copies of those indexed are known, see `copied_shards`.
        processes: see `scan_each`.
        report: called with the number of shards scanned, and of those to scan, after each.

    Raises:
        InputError: see `write_pieces`.
        OSError: `out` cannot be written.
    """
    known = KnownShards(folders, paths, versions)
    if copied:
        add_copies(known)
    announce(known)
    unknown = known.unknown
    to_scan, states = [paths[place] for place in unknown], [versions[place] for place in unknown]
    for table in write_pieces(
        out,
        to_scan,
        states,
        scan_each(to_scan, states, processes),
        root,
        lambda done: report(done, len(unknown)),
    ):
        known.add(table)
    return known.table()


def announce(known: KnownShards) -> None:
    """Log what is to be scanned, and why."""
    if known.changed:
        _logger.warning(
            "%s of %s shards are not in the state that they were indexed in: first %s; they are "
            "indexed again. If they were copied, see --copied of flaxclip.data.index",
            *(f"{len(known.changed):,}", f"{len(known.paths):,}"),
            shown(known.paths[known.changed[0]]),
        )
    if unknown := len(known.unknown):
        others = len(known.paths) - unknown
        _logger.info(
            "indexing %s shards%s",
            f"{unknown:,}",
            f"; {others:,} are known" if others else ", once",
        )


def _stored_indexes(paths: Sequence[str], stored: str | None) -> list[IndexFolder]:
    """The index that is named, or the one beside the shards, if there is one.

    Raises:
        InputError: there is none where one is named.
    """
    path = join_path(common_folder(paths), INDEX_FOLDER) if stored is None else stored
    folder = IndexFolder(path if is_remote(path) else os.path.abspath(path))
    try:
        found, reason = folder.holds_index(), "there is nothing of one"
    except InputError:
        raise
    except Exception as error:  # clients of object storage have errors of their own
        found, reason = False, f"{type(error).__name__}: {error}"
        if stored is None:
            _logger.warning("whether there is an index in %s cannot be seen: %s", path, reason)
    if not found and stored is not None:
        raise InputError(
            f"no index of shards in {stored}: {reason}\n"
            "make one with flaxclip.data.index SHARDS --out there, or leave data.index out"
        )
    return [folder] if found else []


def _with_copies(table: Table, home: IndexFolder) -> Table:
    """With copies of pieces that lie elsewhere, if these are small."""
    inside = home.place(PIECES, "")
    elsewhere = [piece for piece in table.pieces if not piece.path.startswith(inside)]
    if sum(piece.size for piece in elsewhere) > _COPIED_BYTES:
        return table
    with ThreadPoolExecutor(16) as pool:
        copies = dict(zip(elsewhere, pool.map(home.copy_piece, elsewhere), strict=True))
    return table._replace(pieces=tuple(copies.get(piece, piece) for piece in table.pieces))


def _hash(*parts: object) -> str:
    identity = hashlib.sha256()
    for part in parts:
        identity.update(b"\0" + os.fsencode(str(part)))
    return identity.hexdigest()[:32]
