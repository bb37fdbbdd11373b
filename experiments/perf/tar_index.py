"""A million records in tars: how fast they are indexed, opened and found, and what memory it takes.

python experiments/perf/tar_index.py
python experiments/perf/tar_index.py --records 100000

Named alternative: Python's `tarfile` walking the same headers in one process, which is what a
reader without an index of its own would do.
"""

import dataclasses
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import tyro

from flaxclip.data.order import OrderConfig, batch_names
from flaxclip.data.sources.tars.tar_scan import ENTRY
from flaxclip.data.sources.tars.webdataset import WebDatasetSource

_PER_SHARD = 10_000
_CHILD = """
import sys, time
import numpy as np
from flaxclip.data.sources.tars.webdataset import WebDatasetSource

def resident(kind):
    return sum(
        int(line.split()[1]) * 1024
        for line in open("/proc/self/status")
        if line.split(":")[0] in kind
    )
before = [resident(("RssAnon",)), resident(("RssFile",))]
start = time.perf_counter()
source = WebDatasetSource(sys.argv[1])
opened = time.perf_counter() - start
for index in range(0, len(source), 50):
    source.name(index)  # a page of the index each, or more
checksum = int(source._index.entries(0, len(source))["image_offset"].sum())
after = [resident(("RssAnon",)), resident(("RssFile",))]
print(opened, len(source), after[0] - before[0], after[1] - before[1])
"""


@dataclasses.dataclass(frozen=True)
class Trial:
    """Size of the trial."""

    records: int = 1_000_000


def write_shard(path: Path, first: int) -> None:
    """Images and texts of 400 and 40 bytes: only headers are read."""
    block = bytearray()
    for number in range(first, first + _PER_SHARD):
        for suffix, size in (("jpg", 400), ("txt", 40)):
            info = tarfile.TarInfo(f"{number:09d}.{suffix}")
            info.size = size
            block += info.tobuf(tarfile.USTAR_FORMAT) + b"x" * size + bytes(512 - size)
    path.write_bytes(block + bytes(1024))


def walk_with_tarfile(path: Path) -> float:
    """Records a second."""
    start = time.perf_counter()
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes()), mode="r:") as tar:
        members = sum(1 for _ in tar)
    return members / 2 / (time.perf_counter() - start)


def main(trial: Trial) -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["XDG_CACHE_HOME"] = str(root / "cache")
        for number, first in enumerate(range(0, trial.records, _PER_SHARD)):
            write_shard(root / f"{number:05d}.tar", first)
        pattern = str(root / "*.tar")
        alone = walk_with_tarfile(root / "00000.tar")
        start = time.perf_counter()
        source = WebDatasetSource(pattern)
        rate = len(source) / (time.perf_counter() - start)
        print(f"{len(source):,} records in {trial.records // _PER_SHARD:,} tars")
        print(
            f"indexed at {rate:,.0f} records/s with {os.cpu_count()} cores, "
            f"{rate / alone:.1f} times tarfile's {alone:,.0f}"
        )
        command = [sys.executable, "-c", _CHILD, pattern]
        words = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        opened, records, own, mapped = (float(word) for word in words)
        print(
            f"opened in {opened:.2f} s; with all of the index looked at, {own / records:.1f} bytes "
            f"a record of a process's own and {mapped / records:.1f} mapped, shared by all "
            f"(on disk {ENTRY.itemsize} and the key)"
        )
        for step in (0, 10**3, 10**6, 10**9):
            start = time.perf_counter()
            for _ in range(20):
                batch_names(source, OrderConfig(), 0, 64, step)
            seconds = (time.perf_counter() - start) / 20
            print(f"names of the batch of 64 at step {step:,}: {seconds * 1e3:.1f} ms")


if __name__ == "__main__":
    main(tyro.cli(Trial))
