"""Scan shards on Apache Beam: workers write pieces into the folder of the index."""

from collections.abc import Sequence

import apache_beam as beam

from flaxclip.data.prepare.beam import Runner, errors_of_workers
from flaxclip.data.sources.tars.index.index_folder import IndexFolder
from flaxclip.data.sources.tars.index.shard_scans import scan_each, write_pieces
from flaxclip.data.storage.file_systems import Version
from flaxclip.errors import InputError

_TOGETHER = 64  # shards that a worker is given at once, and writes a piece of


class ScanShards(beam.DoFn):
    """Some shards -> a piece of the index, in its folder."""

    def __init__(self, folder: IndexFolder, root: str) -> None:
        self.folder, self.root = folder, root

    def process(self, shards: Sequence[tuple[str, Version]]) -> None:
        paths, versions = zip(*shards, strict=True)
        try:
            write_pieces(
                self.folder, paths, versions, scan_each(paths, versions, processes=1), self.root
            )
        except InputError:
            return  # those that are broken are still unknown, and named by who scans them next


def scan_on_beam(
    folder: IndexFolder,
    root: str,
    shards: Sequence[tuple[str, Version]],
    workers: int,
    options: Sequence[str],
) -> None:
    """Write pieces of shards that can be used; each is given with the state that it is in.

    Ends the process, with a message, if a worker on this machine dies.

    Raises:
        InputError: Beam cannot be run with these options.
    """
    groups = [shards[start : start + _TOGETHER] for start in range(0, len(shards), _TOGETHER)]
    runner = Runner(tuple(options), workers)
    with errors_of_workers("flaxclip.data.index"), runner.pipeline() as pipeline:
        _ = (
            pipeline
            | "Shards" >> beam.Create(groups)
            | "Spread" >> beam.Reshuffle()
            | "Scan" >> beam.ParDo(ScanShards(folder, root))
        )
