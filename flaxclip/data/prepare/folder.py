"""The folder that `data.prepare` writes, from its beginning to its end.

`DST/_preparing/` holds all parts until all are done; a part appears there under its name when it is
complete, so a restart does only the missing parts. At the end the shards are moved up and numbered,
`datasheet.json` is written last, and `_preparing` is removed.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from etils import epath

from flaxclip.data.prepare.scan import ROW, Dropped, Scan, Size
from flaxclip.data.prepare.write_shards import ShardReport, cannot_write
from flaxclip.storage import whole_file

DATASHEET, DROPPED = "datasheet.json", "dropped.jsonl"
_MOST_RANGES, _SHORTEST_RANGE, _LONGEST_RANGE = 1_000, 64, 100_000
_TOLD_SECONDS = 2.0


class NewShard:
    """A shard that is being written to `path`, on this machine."""

    def __init__(self, path: pathlib.Path, progress: epath.Path):
        self.path = path
        self.report: ShardReport | None = None
        self._progress, self._crops, self._told = progress, 0, 0.0

    def encoded(self, crops: int) -> None:
        """Tell, every few seconds, that teachers have embedded `crops` more."""
        self._crops += crops
        if time.monotonic() - self._told > _TOLD_SECONDS:
            write_whole(self._progress, str(self._crops).encode())
            self._told = time.monotonic()


@dataclasses.dataclass(frozen=True)
class PreparationFolder:
    """Parts of a preparation, for its workers; each is written whole or not at all.

    All paths may be in object storage.
    """

    dst: str
    examples: int
    """Number of examples of the corpus."""

    @property
    def work(self) -> epath.Path:
        return epath.Path(self.dst) / "_preparing"

    @property
    def _range_length(self) -> int:
        wanted = -(-self.examples // _MOST_RANGES)
        return min(max(wanted, _SHORTEST_RANGE), _LONGEST_RANGE)

    @property
    def ranges(self) -> int:
        """Number of the ranges of examples that are scanned one by one."""
        return -(-self.examples // self._range_length)

    def range(self, number: int) -> range:
        """The examples of a range."""
        start = number * self._range_length
        return range(start, min(start + self._range_length, self.examples))

    def unscanned(self) -> list[int]:
        """Numbers of the ranges that have no scan yet."""
        found = {path.name for path in (self.work / "scans").glob("*.json")}
        return [number for number in range(self.ranges) if f"{number:06}.json" not in found]

    def write_scan(self, number: int, scan: Scan) -> None:
        """Keep the scan of a range."""
        stem = self.work / "scans" / f"{number:06}"
        write_whole(stem.with_suffix(".rows"), scan.rows.tobytes())
        write_whole(stem.with_suffix(".dropped"), _lines(scan.dropped))
        write_whole(stem.with_suffix(".json"), json.dumps(scan.sizes).encode())

    def read_rows(self, number: int) -> np.ndarray:
        """[kept] of `ROW`: the examples of a range that its scan keeps."""
        return np.frombuffer((self.work / "scans" / f"{number:06}.rows").read_bytes(), ROW)

    def read_sizes(self) -> Iterator[Size]:
        """Sizes of all scans, one after the other."""
        for number in range(self.ranges):
            sizes = json.loads((self.work / "scans" / f"{number:06}.json").read_text())
            yield from (Size(*size) for size in sizes)

    def written(self) -> set[tuple[str, int]]:
        """Split and number of the shards that are done."""
        stems = (path.stem for path in (self.work / "shards").glob("*.json"))
        return {(split, int(number)) for split, number in (stem.split("-") for stem in stems)}

    def encoded(self) -> int:
        """Crops that teachers have embedded for the shards that are being written, or are done."""
        return sum(int(path.read_text() or 0) for path in (self.work / "progress").glob("*-*[0-9]"))

    @contextlib.contextmanager
    def new_shard(self, split: str, number: int) -> Iterator[NewShard]:
        """A temporary place to write a shard; kept if a report of it is given before the end."""
        stem = self.work / "shards" / f"{split}-{number:06}"
        # To where it is going, if that is on this machine: a move within a file system is atomic.
        remote = "://" in self.dst
        with tempfile.TemporaryDirectory(dir=None if remote else self.work / "shards") as folder:
            name = f"{stem.name}.array_record"
            new = NewShard(pathlib.Path(folder, name), self.work / "progress" / stem.name)
            yield new
            if new.report is not None:
                if remote:
                    epath.Path(new.path).copy(stem.with_suffix(".array_record"), overwrite=True)
                else:
                    os.replace(new.path, stem.with_suffix(".array_record"))
                write_whole(stem.with_suffix(".json"), json.dumps(new.report._asdict()).encode())

    def read_reports(self, split: str, shards: int) -> Iterator[tuple[epath.Path, ShardReport]]:
        """Paths and reports of a split's shards, except for shards that got no examples."""
        for number in range(shards):
            path = self.work / "shards" / f"{split}-{number:06}.json"
            if path.exists():
                report = ShardReport(**json.loads(path.read_text()))
                dropped = [Dropped(*fields) for fields in report.dropped]
                yield path.with_suffix(".array_record"), report._replace(dropped=dropped)

    def read_dropped(self, shards: Mapping[str, int]) -> Iterator[Dropped]:
        """All examples that are left out: those of the scans, then those of the shards."""
        for number in range(self.ranges):
            lines = (self.work / "scans" / f"{number:06}.dropped").read_text().splitlines()
            yield from (Dropped(**json.loads(line)) for line in lines)
        for split, count in shards.items():
            for _, report in self.read_reports(split, count):
                yield from report.dropped


def write_whole(path: epath.Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            partial.write_bytes(data)
    except OSError as error:
        raise cannot_write(path, error) from None


def _lines(dropped: Iterable[Dropped]) -> bytes:
    return "".join(json.dumps(one._asdict()) + "\n" for one in dropped).encode()
