"""ArrayRecord against Bagz as the format of prepared corpora.

    pip install bagz==0.3.8
    python experiments/perf/prepared_formats.py

Records as large as encoded images, of random bytes, are written by both libraries and read from
disk: one by one in random order, one by one in order, and a hundred neighbours at a time. Then from
a store that answers each request after 40 ms: requests and bytes until the first record, for a
thousand random records, and for ten runs of a hundred neighbours. ArrayRecord is read as training
does; Bagz, whose own remote reading is for gs:// alone, by the ranges that its format needs: the
limits of all records once, then a request for each record or run. At last single bytes of records
are changed, to see which library notices.
"""

import argparse
import functools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import bagz
import fsspec
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from flaxclip.data.sources.extents import Extent, fetch
from fsspec.implementations.local import LocalFileSystem

from flaxclip.data.read_ahead import read_ahead
from flaxclip.data.sources.array_records.array_record import ArrayRecordSource, encode_record
from flaxclip.data.storage.file_systems import version_of

RUN = 100
REMOTE_RECORDS, REMOTE_RUNS = 1000, 10
FLIPS = 200
OPTIONS = "group_size:1,uncompressed"


class Store(LocalFileSystem):
    """Files on disk, by requests that take a while and are counted."""

    protocol = "store"
    latency, requests, bytes = 0.04, 0, 0
    _lock = threading.Lock()

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("store://"))

    def cat_file(self, path, start=None, end=None, **kwargs):
        """The bytes, after the latency."""
        with self._lock:
            Store.requests += 1
            Store.bytes += end - start
        time.sleep(self.latency)
        return super().cat_file(path, start, end, **kwargs)


class RemoteBagz:
    """Records of a Bagz file by ranged requests: its limits once, then each record."""

    def __init__(self, path: str) -> None:
        self.path, self.version = path, version_of(path)
        end = self.version.size
        start = int.from_bytes(self.read(end - 8, end), "little")  # its last limit
        limits = np.frombuffer(self.read(start, end), "<i8")
        self.bounds = np.append(0, limits).tolist()

    def read(self, start: int, end: int) -> bytes:
        """A part of the file."""
        return fetch(Extent(self.path, start, end, self.version))

    def records(self, first: int, last: int) -> list[bytes]:
        """Some neighbours, by one request."""
        start = self.bounds[first]
        data = self.read(start, self.bounds[last])
        return [
            data[self.bounds[n] - start : self.bounds[n + 1] - start] for n in range(first, last)
        ]


class RemoteArrayRecord:
    """The same, as training reads it."""

    def __init__(self, path: str) -> None:
        self.source = ArrayRecordSource(path)
        self.source.extents(0, 1)  # fetches the footer

    def records(self, first: int, last: int) -> list:
        """Some neighbours, by one request."""
        data = [fetch(extent) for extent in self.source.extents(first, last)]
        return self.source.decode(first, last, data)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=4000)
    parser.add_argument("--bytes", type=int, default=40_000, help="of a record, on average")
    arguments = parser.parse_args()
    fsspec.register_implementation("store", Store, clobber=True)
    rng = np.random.default_rng(0)
    sizes = rng.integers(arguments.bytes // 2, arguments.bytes * 3 // 2, arguments.records)
    records = [
        encode_record(str(number), rng.bytes(int(size)), {"txt": f"caption {number}"})
        for number, size in enumerate(sizes)
    ]
    total = sum(map(len, records))
    print(f"{len(records):,} records, {total / 1e6:.0f} MB")
    with tempfile.TemporaryDirectory() as folder:
        paths = {
            "ArrayRecord": f"{folder}/a.array_record",
            "Bagz": f"{folder}/a.bag",
        }
        for name, path in paths.items():
            seconds = timed(functools.partial(WRITERS[name], path, records))
            size = os.path.getsize(path)
            print(f"\n{name}: {size / total - 1:+.2%} of the records' bytes")
            print(f"  written at {total / seconds / 1e6:6.0f} MB/s")
            measure_disk(READERS[name](path), len(records), rng)
            measure_remote(REMOTE[name], f"store://{path}", len(records), rng)
            measure_flips(READERS[name], path, records, rng)


def write_array_record(path: str, records: list[bytes]) -> None:
    """As `data.prepare` does."""
    writer = ArrayRecordWriter(path, OPTIONS)
    for record in records:
        writer.write(record)
    writer.close()


def write_bagz(path: str, records: list[bytes]) -> None:
    """Not compressed, as its extension says."""
    with bagz.Writer(path) as writer:
        for record in records:
            writer.write(record)


Read = Callable[[int, int], list[bytes]]


def array_record_reader(path: str) -> Read:
    """Reads neighbours from disk."""
    options = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 32768}
    return ArrayRecordReader(path, **options).read


def bagz_reader(path: str) -> Read:
    """Reads neighbours from disk."""
    reader = bagz.Reader(path)
    return lambda first, last: reader[first:last].read() if last - first > 1 else [reader[first]]


WRITERS = {"ArrayRecord": write_array_record, "Bagz": write_bagz}
READERS = {"ArrayRecord": array_record_reader, "Bagz": bagz_reader}
REMOTE = {"ArrayRecord": RemoteArrayRecord, "Bagz": RemoteBagz}


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure_disk(read: Read, count: int, rng: np.random.Generator) -> None:
    """Rates of reading from the page cache."""

    def read_all(starts: Iterator[int] | list[int], length: int) -> Callable[[], None]:
        def call() -> None:
            for first in starts:
                read(first, min(first + length, count))

        return call

    orders = {
        "random": (rng.permutation(count).tolist(), 1),
        "in order": (list(range(count)), 1),
        f"{RUN} neighbours at a time": (list(range(0, count, RUN)), RUN),
    }
    read_all(*orders["in order"])()
    for name, order in orders.items():
        print(f"  {name}: {count / timed(read_all(*order)):,.0f} records/s")


def measure_remote(open_remote: type, path: str, count: int, rng: np.random.Generator) -> None:
    """Requests, bytes and seconds at the latency, with 64 requests in flight."""
    held: list = []
    count_requests("until the first record can be read", lambda: held.append(open_remote(path)))
    (remote,) = held
    numbers = rng.integers(0, count, REMOTE_RECORDS).tolist()
    runs = rng.integers(0, count - RUN, REMOTE_RUNS).tolist()
    for title, starts, length in (
        (f"{REMOTE_RECORDS:,} random records", numbers, 1),
        (f"{REMOTE_RUNS} runs of {RUN}", runs, RUN),
    ):
        reads = read_ahead(lambda first: remote.records(first, first + length), starts, True)  # noqa: B023
        count_requests(title, lambda: [read() for read in reads])  # noqa: B023


def count_requests(title: str, call: Callable[[], object]) -> None:
    """Print what a call costs."""
    Store.requests = Store.bytes = 0
    seconds = timed(call)
    print(f"  {title}: {Store.requests} requests, {Store.bytes / 1e6:.2f} MB, {seconds:.2f} s")


def measure_flips(
    open_reader: Callable[[str], Read], path: str, records: list[bytes], rng: np.random.Generator
) -> None:
    """How often a byte of a record that has changed is noticed."""
    data = Path(path).read_bytes()
    copy = f"{path}.flipped.{path.rpartition('.')[2]}"
    noticed = 0
    numbers = rng.choice(len(records), FLIPS, replace=False).tolist()
    changed = bytearray(data)
    for number in numbers:
        place = data.find(records[number][:40]) + 30  # in the image, before a block's header
        changed[place] ^= 1
    Path(copy).write_bytes(changed)
    read = open_reader(copy)
    for number in numbers:
        try:
            assert read(number, number + 1)[0] != records[number]
        except RuntimeError:
            noticed += 1
    print(f"  changed bytes noticed: {noticed} of {FLIPS}")


if __name__ == "__main__":
    main()
