"""The index of a billion pairs: how soon a pair is found; and how many hosts divide its making.

    python experiments/perf/index_at_scale.py
    python experiments/perf/index_at_scale.py --shards 1000 --latency 0.15 --hosts 4

The first corpus is simulated (`simulated_bucket.py`); how soon a run over it has its first batch,
and in what memory, tells `start_at_scale.py`. Then so many hosts, a process each, index real tars
together, four each, and the bytes that each reads are counted.
"""

import dataclasses
import io
import multiprocessing
import os
import random
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import tyro
from fsspec.implementations.local import LocalFileSystem
from simulated_bucket import SimulatedBucket, SimulatedTars, Simulation, register, write_table

from flaxclip.data.order import OrderConfig, draw_order
from flaxclip.data.sources.tars.index.build_index import build_index
from flaxclip.data.sources.tars.index.index_sharing import IndexSharing

SPREAD = 1024  # names that are looked up all over the corpus
SHARDS_A_HOST = 4


@dataclasses.dataclass(frozen=True)
class Trial:
    """Size of the trial."""

    shards: int = 128_000
    latency: float = 0.04
    """Seconds that the bucket takes to answer."""
    hosts: int = 64
    """That index together."""


def find_pairs(trial: Trial, folder: str) -> None:
    """Open the corpus, and look at pairs."""
    simulation = Simulation(trial.shards, trial.latency, f"{folder}/simulated_table")
    register(simulation)
    write_table(simulation)
    for opening in ("first opening", "second opening"):
        SimulatedBucket.requests, start = 0, time.perf_counter()
        source = SimulatedTars.open(simulation)
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
    rng, steps = random.Random(0), 3000
    positions = [rng.randrange(10**12) for _ in range(steps)]
    for title, window in {"the order for object storage": "auto", "a whole shuffle": None}.items():
        order = draw_order(source, OrderConfig(window=window), 0, 32_768)
        start = time.perf_counter()
        for position in positions:
            order[position]
        seconds = (time.perf_counter() - start) / steps
        print(f"position -> pair's number, in {title}: {1e6 * seconds:.0f} us, at any of 10^12")
    start = time.perf_counter()
    for number in range(steps):
        source._index.entry(number % 1000)
    seconds = (time.perf_counter() - start) / steps
    print(f"pair's number -> its entry, of a block that is there: {1e6 * seconds:.0f} us")


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


def index_together(hosts: int, folder: str) -> None:
    """Count what each of some processes reads."""
    fsspec.register_implementation("counted", CountedBucket, clobber=True)
    for kind, (image_bytes, pairs) in enumerate(((40_000, 25), (1_000_000, 4))):
        corpus = Path(folder, str(kind))
        corpus.mkdir()
        for shard in range(SHARDS_A_HOST * hosts):
            with tarfile.open(corpus / f"{shard:05}.tar", "w") as tar:
                for number in range(pairs):
                    for suffix, size in (("jpg", image_bytes), ("txt", 60)):
                        info = tarfile.TarInfo(f"{shard:05}{number:05}.{suffix}")
                        info.size = size
                        tar.addfile(info, io.BytesIO(bytes(size)))
        total = sum(path.stat().st_size for path in corpus.glob("*.tar"))
        with multiprocessing.get_context("fork").Pool(hosts) as pool:
            calls = [(str(corpus), host, hosts) for host in range(hosts)]
            read = pool.starmap(_index_as_host, calls, chunksize=1)
        shares = [count / total * hosts for count in read]
        print(
            f"{hosts} hosts, {total / 1e6:.0f} MB of images of {image_bytes / 1e3:.0f} kB: each "
            f"reads {min(shares):.3f} to {max(shares):.3f} of a share of 1/{hosts}"
        )


def _index_as_host(corpus: str, host: int, hosts: int) -> int:
    """Index what is this host's part, and take in the others'; returns bytes read of tars."""
    os.environ["XDG_CACHE_HOME"] = f"{corpus}/cache/{host}"
    CountedBucket.bytes_read = 0
    paths = sorted(f"counted://{path}" for path in Path(corpus).glob("*.tar"))
    index = build_index(paths, sharing=IndexSharing(f"{corpus}/work", host, hosts))
    assert len(index.shards) == len(paths)
    return CountedBucket.bytes_read


def main(trial: Trial) -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        index_together(trial.hosts, folder)
        os.environ["XDG_CACHE_HOME"] = folder
        find_pairs(trial, folder)


if __name__ == "__main__":
    main(tyro.cli(Trial, description=__doc__))
