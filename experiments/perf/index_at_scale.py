"""A corpus of a billion pairs whose index is there: how soon a run has its pairs, in what memory.

    python experiments/perf/index_at_scale.py
    python experiments/perf/index_at_scale.py --shards 1000 --latency 0.15

What is simulated: the bucket, a file system of this script's that answers after a latency. Its
listing of the shards costs a request for every thousand. The table of the index is real, and is
read and copied as in a run; entries and keys, 73 GB at full size, are made where they are read,
from the pair's number. What a real client costs in CPU time, and limits of bandwidth, are missing.

It then has four processes index 16 real tars together, and counts the bytes that each reads.
"""

import dataclasses
import io
import os
import random
import resource
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import tyro
from fsspec.implementations.local import LocalFileSystem

from flaxclip.data.order import OrderConfig, draw_order
from flaxclip.data.sources.corpus import CorpusConfig, open_corpus
from flaxclip.data.sources.tars.index.index_table import SHARD, Piece, Table
from flaxclip.data.sources.tars.tar_scan import ENTRY
from flaxclip.data.storage.file_systems import version_in

PAIRS = 10_000  # in a shard, as img2dataset writes them
PAIR_BYTES = 40_000
IN_PIECE = 100  # shards
KEY_BYTES = 9
SHARD_BYTES = PAIRS * PAIR_BYTES
PIECE_BYTES = IN_PIECE * PAIRS * (ENTRY.itemsize + KEY_BYTES)
SPREAD = 1024  # names that a run looks at when it starts


@dataclasses.dataclass(frozen=True)
class Trial:
    """Size of the trial."""

    shards: int = 128_000
    latency: float = 0.04
    """Seconds that the bucket takes to answer."""


class SimulatedBucket(fsspec.AbstractFileSystem):
    """`simulated://corpus/NNNNNN.tar`, and their index, whose table is on disk."""

    protocol = "simulated"
    cachable = False
    shards, latency, table = 0, 0.0, b""
    requests = 0
    _lock = threading.Lock()

    def _request(self, number: int = 1) -> None:
        with self._lock:
            SimulatedBucket.requests += number
        time.sleep(number * self.latency)

    def info(self, path, **kwargs):
        """Of one shard."""
        self._request()
        return shard_info(int(path.rpartition("/")[2].removesuffix(".tar")))

    def ls(self, path, detail=True, **kwargs):
        """By the thousand, one after the other."""
        folder = path.rstrip("/").rpartition("/")[2]
        if folder == "corpus":
            found = [shard_info(number) for number in range(self.shards)]
        elif folder == "pieces":
            found = [
                {"name": f"{number:032x}", "size": PIECE_BYTES} for number in pieces(self.shards)
            ]
        else:
            found = [{"name": "table", "size": len(self.table)}]
        self._request(-(-len(found) // 1000))
        return found

    def cat_file(self, path, start=None, end=None, **kwargs):
        """The table; or what a piece holds."""
        self._request()
        name = path.rpartition("/")[2]
        if name == "table":
            return self.table
        piece = int(name, 16)
        keys_at = IN_PIECE * PAIRS * ENTRY.itemsize
        if start < keys_at:
            first, last = start // ENTRY.itemsize, -(-min(end, keys_at) // ENTRY.itemsize)
            data = entries(first, last).tobytes()[start - first * ENTRY.itemsize :]
            data += b"" if end <= keys_at else self.cat_file(path, keys_at, end)
            return data[: end - start]
        first, last = (start - keys_at) // KEY_BYTES, -(-(end - keys_at) // KEY_BYTES)
        begin = piece * IN_PIECE * PAIRS
        data = b"".join(b"%09d" % ((begin + number) % 10**9) for number in range(first, last))
        return data[start - keys_at - first * KEY_BYTES :][: end - start]


def shard_info(number: int) -> dict:
    return {"name": f"corpus/{number:06}.tar", "size": SHARD_BYTES, "generation": number + 1}


def pieces(shards: int) -> range:
    return range(-(-shards // IN_PIECE))


def entries(first: int, last: int) -> np.ndarray:
    """Those at some places of any piece: all shards are laid out alike."""
    number = np.arange(first, last) % PAIRS
    rows = np.zeros(len(number), ENTRY)
    rows["image_offset"] = number * PAIR_BYTES + 512
    rows["image_size"] = PAIR_BYTES - 2048
    rows["txt_offset"] = (number + 1) * PAIR_BYTES - 512
    rows["txt_size"] = 60
    rows["key_end"] = (number + 1) * KEY_BYTES
    return rows


def simulate(trial: Trial) -> None:
    """Register the bucket, with the table of its index."""
    number = np.arange(trial.shards)
    shards = np.zeros(trial.shards, SHARD)
    shards["size"] = SHARD_BYTES
    shards["mtime_ns"] = [version_in(shard_info(n)).mtime_ns for n in range(trial.shards)]
    shards["pairs"], shards["piece"] = PAIRS, number // IN_PIECE
    place = number % IN_PIECE
    shards["entries_at"] = place * PAIRS * ENTRY.itemsize
    shards["keys_size"] = PAIRS * KEY_BYTES
    shards["keys_at"] = PAIRS * (IN_PIECE * ENTRY.itemsize + place * KEY_BYTES)
    names = tuple(f"{n:06}.tar" for n in range(trial.shards))
    there = tuple(Piece(f"{n:032x}", PIECE_BYTES) for n in pieces(trial.shards))
    SimulatedBucket.table = Table(shards, there, names, "simulated://corpus").to_bytes()
    SimulatedBucket.shards, SimulatedBucket.latency = trial.shards, trial.latency
    fsspec.register_implementation("simulated", SimulatedBucket, clobber=True)


def resident() -> float:
    """Memory of this process in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1000


def open_at_scale(trial: Trial) -> None:
    """Open the corpus, and look at pairs."""
    simulate(trial)
    table, before = len(SimulatedBucket.table), resident()
    last = f"{trial.shards - 1:06}"
    for opening in ("first opening", "second opening"):
        SimulatedBucket.requests, start = 0, time.perf_counter()
        path = f"simulated://corpus/{{000000..{last}}}.tar"
        source = open_corpus(CorpusConfig((path,)), 224)
        seconds = time.perf_counter() - start
        source.name(len(source) // 3)
        first = time.perf_counter() - start
        print(
            f"{opening}: {len(source):,} pairs in {trial.shards:,} shards after {seconds:.1f} s, "
            f"name of the first pair after {first:.1f} s, {SimulatedBucket.requests:,} requests"
        )
    start = time.perf_counter()
    with ThreadPoolExecutor(64) as pool:
        spread = [n * len(source) // SPREAD for n in range(SPREAD)]
        list(pool.map(source.name, spread))
    print(f"names of {SPREAD:,} pairs all over it: {time.perf_counter() - start:.1f} s")
    print(f"table {table / 1e6:.0f} MB; memory {before:.0f} MB before, {resident():.0f} MB now")
    order = draw_order(source, OrderConfig(), 0)
    rng, steps = random.Random(0), 3000
    source._index.entry(0)
    for title, look in {
        "position -> pair's number": lambda position: order[position].example,
        "... -> its shard": lambda position: source._index.shard_of(order[position].example),
    }.items():
        positions = [rng.randrange(10**12) for _ in range(steps)]
        start = time.perf_counter()
        for position in positions:
            look(position)
        seconds = (time.perf_counter() - start) / steps
        print(f"{title}: {1e6 * seconds:.0f} us, at any of the first 10^12 positions")
    pairs = [rng.randrange(1000) for _ in range(steps)]
    start = time.perf_counter()
    for pair in pairs:
        source._index.entry(pair)
    seconds = (time.perf_counter() - start) / steps
    print(f"pair's number -> its entry, of a block that is there: {1e6 * seconds:.0f} us")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(f"memory {resident():.0f} MB, at most {peak:.0f} MB, imports of JAX and all included")


class CountedBucket(LocalFileSystem):
    """Files on disk, whose bytes are counted."""

    protocol = "counted"
    bytes_read = 0

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(os.fspath(path).removeprefix("counted://"))

    def cat_file(self, path, start=None, end=None, **kwargs):
        """The bytes."""
        data = super().cat_file(path, start, end, **kwargs)
        CountedBucket.bytes_read += len(data) * path.endswith(".tar")
        return data


_HOST = """
import sys
from flaxclip.data.sources.tars.index.index_sharing import IndexSharing
from flaxclip.data.sources.tars.webdataset import WebDatasetSource
from index_at_scale import CountedBucket
import fsspec
fsspec.register_implementation("counted", CountedBucket)
folder, host, hosts = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
WebDatasetSource(f"counted://{folder}/*.tar", sharing=IndexSharing(f"{folder}/work", host, hosts))
print(CountedBucket.bytes_read)
"""


def index_together(hosts: int = 4, shards: int = 16) -> None:
    """Count what each of some processes reads."""
    for image_bytes, pairs in ((40_000, 200), (4_000_000, 20)):
        with tempfile.TemporaryDirectory() as folder:
            for shard in range(shards):
                with tarfile.open(f"{folder}/{shard:02}.tar", "w") as tar:
                    for number in range(pairs):
                        for suffix, size in (("jpg", image_bytes), ("txt", 60)):
                            info = tarfile.TarInfo(f"{shard:04}{number:05}.{suffix}")
                            info.size = size
                            tar.addfile(info, io.BytesIO(bytes(size)))
            total = sum(path.stat().st_size for path in Path(folder).glob("*.tar"))
            paths = os.pathsep.join((*sys.path, str(Path(__file__).parent)))
            running = [
                subprocess.Popen(
                    [sys.executable, "-c", _HOST, folder, str(host), str(hosts)],
                    stdout=subprocess.PIPE,
                    text=True,
                    env=os.environ | {"PYTHONPATH": paths, "XDG_CACHE_HOME": f"{folder}/{host}"},
                )
                for host in range(hosts)
            ]
            read = [int(process.communicate()[0]) for process in running]
            shares = ", ".join(f"{count / total * hosts:.3f}" for count in read)
            print(
                f"{hosts} processes, {total / 1e6:.0f} MB of images of {image_bytes / 1e3:.0f} kB: "
                f"each reads {shares} of a share of 1/{hosts}"
            )


def main(trial: Trial) -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        open_at_scale(trial)
    index_together()


if __name__ == "__main__":
    main(tyro.cli(Trial, description=__doc__))
