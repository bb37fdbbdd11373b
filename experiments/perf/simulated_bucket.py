"""`simulated://corpus/NNNNNN.tar`: a bucket of tars of a billion pairs, and the index beside them.

What is simulated: the answers, after a latency. A listing costs a request for every thousand files,
and is parsed from the JSON that Google Cloud Storage sends, with all that it says of a file. The
table of the index is a real one, on disk. Entries and keys, 73 GB at full size, and the tars,
51 TB, are made where they are read, from the pair's number. Limits of bandwidth are missing, and so
is the CPU time of a real client, some 0.8 s a GB.
"""

import dataclasses
import datetime
import functools
import io
import json
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import PIL.Image

from flaxclip.data.sources.tars.index.index_table import SHARD, Piece, Table
from flaxclip.data.sources.tars.tar_scan import ENTRY
from flaxclip.data.sources.tars.webdataset import WebDatasetSource
from flaxclip.data.storage.file_systems import version_in

PAIRS = 10_000  # in a shard, as img2dataset writes them
PAIR_BYTES = 40_000
TEXT_BYTES = 60
IN_PIECE = 100  # shards
KEY_BYTES = 9
SHARD_BYTES = PAIRS * PAIR_BYTES
PIECE_BYTES = IN_PIECE * PAIRS * (ENTRY.itemsize + KEY_BYTES)
ROOT = "simulated://corpus"

_IN_PAGE = 1000
_LISTED = (
    '{{"kind": "storage#object", "id": "corpus/{name}/{generation}", '
    '"selfLink": "https://www.googleapis.com/storage/v1/b/corpus/o/{name}", '
    '"mediaLink": "https://storage.googleapis.com/download/storage/v1/b/corpus/o/{name}'
    '?generation={generation}&alt=media", "name": "{name}", "bucket": "corpus", '
    '"generation": "{generation}", "metageneration": "1", "contentType": "application/x-tar", '
    '"storageClass": "STANDARD", "size": "{size}", "md5Hash": "{generation}AAAAAAAA==", '
    '"crc32c": "{generation}==", "etag": "CJ{generation}EAE=", '
    '"timeCreated": "2026-06-01T00:00:00.000Z", "updated": "2026-06-01T00:00:00.001Z", '
    '"timeStorageClassUpdated": "2026-06-01T00:00:00.002Z", '
    '"timeFinalized": "2026-06-01T00:00:00.003Z"}}'
)


@dataclasses.dataclass(frozen=True)
class Simulation:
    """What is in the bucket, and how it answers."""

    shards: int
    latency: float
    """Seconds."""
    table: str
    """Path of the index's table."""


class SimulatedBucket(fsspec.AbstractFileSystem):
    """The bucket that this process has registered."""

    protocol = "simulated"
    cachable = False
    simulation: Simulation
    requests = 0
    _lock = threading.Lock()

    def _request(self) -> None:
        with self._lock:
            SimulatedBucket.requests += 1
        time.sleep(self.simulation.latency)

    def info(self, path, **kwargs):
        """Of one file."""
        self._request()
        name = self._strip_protocol(path).removeprefix("corpus/")
        return described(name, self._size(name))

    def _size(self, name: str) -> int:
        if name.endswith("/table"):
            return Path(self.simulation.table).stat().st_size
        return SHARD_BYTES if name.endswith(".tar") else PIECE_BYTES

    def ls(self, path, detail=True, **kwargs):
        """By pages, one after the other; kept, as clients do."""
        path = self._strip_protocol(path)
        if path not in self.dircache:
            self.dircache[path] = self._list(path, "")
        return self.dircache[path]

    def find(self, path, maxdepth=None, withdirs=False, detail=False, prefix="", **kwargs):
        """By pages, one after the other."""
        found = self._list(self._strip_protocol(path), prefix)
        return {info["name"]: info for info in found}

    def invalidate_cache(self, path=None):
        """Forget what was listed."""
        self.dircache.clear()

    def _list(self, path: str, prefix: str) -> list[dict]:
        folder = path.rstrip("/").removeprefix("corpus").lstrip("/")
        shards = self.simulation.shards
        if not folder:
            scale = 10 ** (6 - len(prefix))
            first = int(prefix or 0) * scale
            names = [f"{number:06}.tar" for number in range(first, min(first + scale, shards))]
        elif folder.endswith("pieces"):
            names = [f"{folder}/{number:032x}" for number in _pieces(shards)]
        else:
            names = [f"{folder}/table"]
        found = []
        for first in range(0, max(len(names), 1), _IN_PAGE):
            self._request()
            found += [described(name, self._size(name)) for name in names[first:][:_IN_PAGE]]
        return found

    def cat_file(self, path, start=None, end=None, **kwargs):
        """The table; or what a piece, or a shard, holds."""
        self._request()
        name = path.rpartition("/")[2]
        if name == "table":
            return Path(self.simulation.table).read_bytes()[start:end]
        if name.endswith(".tar"):
            skipped = start % PAIR_BYTES
            pairs = -(-(skipped + end - start) // PAIR_BYTES)
            return memoryview(_pair() * pairs)[skipped:][: end - start].tobytes()
        piece = int(name, 16)
        keys_at = IN_PIECE * PAIRS * ENTRY.itemsize
        if start < keys_at:
            first, last = start // ENTRY.itemsize, -(-min(end, keys_at) // ENTRY.itemsize)
            data = _entries(first, last).tobytes()[start - first * ENTRY.itemsize :]
            data += b"" if end <= keys_at else self.cat_file(path, keys_at, end)
            return data[: end - start]
        first, last = (start - keys_at) // KEY_BYTES, -(-(end - keys_at) // KEY_BYTES)
        begin = piece * IN_PIECE * PAIRS
        data = b"".join(b"%09d" % ((begin + number) % 10**9) for number in range(first, last))
        return data[start - keys_at - first * KEY_BYTES :][: end - start]


class SimulatedTars(WebDatasetSource):
    """Tars of the bucket; a copy brings the bucket to the process that it is sent to."""

    simulation: Simulation

    @classmethod
    def open(cls, simulation: Simulation) -> "SimulatedTars":
        """All of them."""
        register(simulation)
        source = cls(f"{ROOT}/{{000000..{simulation.shards - 1:06}}}.tar")
        source.simulation = simulation
        return source

    def __setstate__(self, state):
        """Register the bucket with this process."""
        register(state["simulation"])
        self.__dict__.update(state)


def register(simulation: Simulation) -> None:
    """Make `simulated://` known to this process."""
    SimulatedBucket.simulation = simulation
    fsspec.register_implementation("simulated", SimulatedBucket, clobber=True)


def write_table(simulation: Simulation) -> None:
    """Write the table of the index."""
    number = np.arange(simulation.shards)
    shards = np.zeros(simulation.shards, SHARD)
    names = tuple(f"{n:06}.tar" for n in range(simulation.shards))
    shards["size"] = SHARD_BYTES
    shards["mtime_ns"] = [version_in(described(name, SHARD_BYTES)).mtime_ns for name in names]
    shards["pairs"], shards["piece"] = PAIRS, number // IN_PIECE
    place = number % IN_PIECE
    shards["entries_at"] = place * PAIRS * ENTRY.itemsize
    shards["keys_size"] = PAIRS * KEY_BYTES
    shards["keys_at"] = PAIRS * (IN_PIECE * ENTRY.itemsize + place * KEY_BYTES)
    there = tuple(Piece(f"{n:032x}", PIECE_BYTES) for n in _pieces(simulation.shards))
    Path(simulation.table).write_bytes(Table(shards, there, names, ROOT).to_bytes())


def described(name: str, size: int) -> dict:
    """A file as gcsfs describes it."""
    number = int.from_bytes(name.encode()[-12:])
    text = _LISTED.format(name=name, generation=10**15 + number % 10**14, size=size)
    info = json.loads(text)
    times = {"mtime": info["updated"], "ctime": info["timeCreated"]}
    times = {key: datetime.datetime.fromisoformat(text) for key, text in times.items()}
    return info | {"size": size, "name": f"corpus/{name}", "type": "file"} | times


def _pieces(shards: int) -> range:
    return range(-(-shards // IN_PIECE))


def _entries(first: int, last: int) -> np.ndarray:
    """Those at some places of any piece: all shards are laid out alike."""
    number = np.arange(first, last) % PAIRS
    rows = np.zeros(len(number), ENTRY)
    rows["image_offset"] = number * PAIR_BYTES + 512
    rows["image_size"] = PAIR_BYTES - 2048
    rows["txt_offset"] = (number + 1) * PAIR_BYTES - 512
    rows["txt_size"] = TEXT_BYTES
    rows["key_end"] = (number + 1) * KEY_BYTES
    return rows


@functools.cache
def _pair() -> bytes:
    """The bytes of one pair: all are alike."""
    rng = np.random.default_rng(0)
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (30, 36, 3), np.uint8))
    pixels = np.asarray(coarse.resize((384, 320), PIL.Image.Resampling.BICUBIC), np.float32)
    noisy = (pixels + rng.normal(0, 9, pixels.shape)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(noisy).save(file, "JPEG", quality=80)
    image = file.getvalue()
    assert len(image) <= PAIR_BYTES - 2048
    text = b"a caption".ljust(TEXT_BYTES)
    return (bytes(512) + image).ljust(PAIR_BYTES - 512, b"\0") + text.ljust(512, b"\0")
