"""Make the index of some shards, or complete it, and publish it."""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from flaxclip.data.on_beam import importing_beam
from flaxclip.data.sources.empty_shards import check_empty_shards
from flaxclip.data.sources.shard_paths import expand_shards
from flaxclip.data.sources.tars.index.build_index import INDEX_FOLDER, complete_table
from flaxclip.data.sources.tars.index.copied_shards import add_copies
from flaxclip.data.sources.tars.index.index_folder import IndexFolder
from flaxclip.data.sources.tars.index.index_lookup import KnownShards
from flaxclip.data.sources.tars.index.index_storage import common_folder, join_path, write_whole
from flaxclip.data.sources.tars.index.index_table import Table, join_tables
from flaxclip.data.sources.tars.index.shard_versions import versions_of_all
from flaxclip.data.storage.file_systems import Version, is_remote
from flaxclip.errors import InputError

_README = b"""Index of the tars beside this folder, or of others: which image and which caption is
where. Made by `python -m flaxclip.data.index`, which makes it again if it is deleted.
"""


class MadeIndex(NamedTuple):
    """What was done."""

    folder: str
    shards: int
    scanned: int
    """Shards that had to be read; the others were known."""
    pairs: int
    """In all of the shards."""

    def summary(self) -> str:
        """A line for people."""
        return (
            f"{self.pairs:,} pairs in {self.shards:,} shards, {self.scanned:,} of which were read: "
            f"{self.folder}"
        )


def make_index(
    shards: Sequence[str],
    out: str | None,
    workers: int,
    copied: bool = False,
    report: Callable[[int, int], None] = lambda done, of: None,
    beam_options: Sequence[str] = (),
) -> MadeIndex:
    """Index shards, except for those that the index at `out` has in their present state.

    Args:
        shards: paths, brace patterns and globs.
        out: folder or URL. If None, beside the shards.
        workers: processes that read shards.
        copied: accept shards of the same size and with the same headers, see `copied_shards`.
        report: called with the number of shards read, and of those to read.
        beam_options: options of Apache Beam, which reads the shards if there are any.

    Raises:
        InputError: shards that are missing, are no tars, are broken or have no pairs; or the index
            cannot be written.
    """
    paths = expand_shards(shards)
    versions = versions_of_all(paths)
    root = common_folder(paths)
    path = join_path(root, INDEX_FOLDER) if out is None else out
    folder = IndexFolder(path if is_remote(path) else os.path.abspath(path))
    scanned = 0

    def count(done: int, of: int) -> None:
        nonlocal scanned
        scanned = done
        report(done, of)

    try:
        write_whole(folder.place("README"), _README)  # or it is known now that nothing can be
        on_beam = 0
        if beam_options:
            known = KnownShards([folder], paths, versions)
            if copied:
                add_copies(known)
            unknown = [(paths[place], versions[place]) for place in known.unknown]
            _scan_on_beam(folder, root, unknown, workers, beam_options)
            on_beam = len(unknown)
        table = complete_table([folder], paths, versions, folder, root, copied, workers, count)
        if not table.shards["pairs"].any():
            empty = [(path, version.size) for path, version in zip(paths, versions, strict=True)]
            check_empty_shards(empty, len(paths), allowed=False)
        all_known = table
        if (published := folder.read_published()) is not None:
            # Beside the shards, it moves with them.
            all_known = _with_others(table, published, root if out is None else published.root)
        folder.publish(all_known, root)
    except OSError as error:
        raise InputError(
            f"cannot write the index to {folder.path}: {error.strerror or error}\n"
            "name a folder or URL that can be written with --out"
        ) from None
    pairs = int(table.shards["pairs"].sum(dtype=np.int64))
    return MadeIndex(folder.path, len(paths), on_beam or scanned, pairs)


def _with_others(table: Table, published: Table, root: str) -> Table:
    """Add shards of the published table, whose names count from `root`, that were not named now."""
    names = [join_path(root, name) for name in published.names]
    known = set(table.names)
    others = [row for row, name in enumerate(names) if name not in known]
    rows = [*((0, row) for row in range(len(table.names))), *((1, row) for row in others)]
    return join_tables(
        [table, published],
        np.array(rows, np.int64).reshape(-1, 2),
        [*table.names, *(names[row] for row in others)],
    )


def _scan_on_beam(
    folder: IndexFolder,
    root: str,
    shards: Sequence[tuple[str, Version]],
    workers: int,
    options: Sequence[str],
) -> None:
    with importing_beam("; without options after -- it is not needed"):
        from flaxclip.data.index.beam import scan_on_beam
    scan_on_beam(folder, root, shards, workers, options)
