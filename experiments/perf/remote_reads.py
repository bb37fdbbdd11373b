"""Pairs a second and worker from a bucket, against the same tars on disk.

    python experiments/perf/remote_reads.py

JPEGs of 256 x 256 pixels in real tars are loaded by one worker process, from disk and by ranged
requests that are answered after 0, 40 and 150 ms: as many at once as training has in flight, and
one after the other. The bucket is a file system of this script's, which sleeps and then reads from
disk: what a real client of object storage costs in CPU time, and limits of bandwidth, are missing.
"""

import argparse
import io
import os
import tarfile
import tempfile
import time
from pathlib import Path

import fsspec
import numpy as np
import PIL.Image
from fsspec.implementations.local import LocalFileSystem

from flaxclip.data.examples import ExampleLoader
from flaxclip.data.images.eval_transform import SizedTransform
from flaxclip.data.images.train_transform import AugmentConfig
from flaxclip.data.order import OrderConfig, draw_order
from flaxclip.data.sources.source import reads_remotely
from flaxclip.data.sources.tars.webdataset import WebDatasetSource
from flaxclip.data.tokenizers.load import load_tokenizer
from flaxclip.data.workers.pool import WorkerPool
from flaxclip.data.workers.shared_batches import BatchShape
from flaxclip.models.inputs import TokenizerConfig

SIZE, ROWS = 224, 256
SHARDS, EXAMPLES = 2, 1024  # in a shard
LATENCIES = (0.0, 0.04, 0.15)


class Bucket(LocalFileSystem):
    """Files on disk, by requests that take a while."""

    protocol = "bucket"
    latency = 0.0

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("bucket://"))

    def info(self, path, **kwargs):
        """As on disk, after the latency."""
        time.sleep(self.latency)
        return super().info(path, **kwargs)

    def cat_file(self, path, start=None, end=None, **kwargs):
        """The bytes, after the latency."""
        time.sleep(self.latency)
        return super().cat_file(path, start, end, **kwargs)


class BucketTars(WebDatasetSource):
    """Tars of the bucket; it takes the latency and the file system to the worker process."""

    latency = 0.0

    def __getstate__(self):
        """With the latency."""
        return super().__getstate__() | {"latency": self.latency}

    def __setstate__(self, state):
        """Register the file system with this process."""
        register(state["latency"])
        super().__setstate__(state)


class OneByOne(BucketTars):
    """As if it were on disk: each request is waited for before the next one."""

    reads_remotely = False


def register(latency: float) -> None:
    """Make `bucket://` known to this process."""
    Bucket.latency = latency
    fsspec.register_implementation("bucket", Bucket, clobber=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    arguments = parser.parse_args()
    register(0.0)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # the tars' index
        write_shards(Path(folder))
        for latency in LATENCIES:
            # Anew each time: other processes may come and go.
            disk = rate(WebDatasetSource(f"{folder}/*.tar"), arguments.seconds)
            print(f"{'from disk':24} {disk:7.0f} pairs/s")
            for kind, name in ((OneByOne, "one by one"), (BucketTars, "many at once")):
                source = kind(f"bucket://{folder}/*.tar")
                source.latency = latency
                found = rate(source, arguments.seconds)
                title = f"{1000 * latency:.0f} ms, {name}"
                print(f"{title:24} {found:7.0f} pairs/s, {found / disk:.3f} of disk", flush=True)


def rate(source: WebDatasetSource, seconds: float) -> float:
    """Pairs a second of one worker process, once it is running."""
    load = ExampleLoader(
        source,
        draw_order(source, OrderConfig(), 0),
        load_tokenizer(TokenizerConfig(), 77),
        SizedTransform(SIZE),
        AugmentConfig(),
        0,
    )
    rows = 16 if isinstance(source, OneByOne) else ROWS  # a batch takes seconds otherwise
    pool = WorkerPool(
        load,
        load.name,
        BatchShape(rows, SIZE, 77),
        range(10**6),
        lambda step: range(step * rows, step * rows + rows),
        workers=1,
        slots=4096 // rows,
        stall_seconds=60.0,
        read_ahead=load.read_ahead if reads_remotely(source) else None,
    )
    batches = iter(pool)
    next(batches)
    pairs, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        assert not next(batches).replaced
        pairs += rows
    elapsed = time.perf_counter() - start
    pool.close()
    return pairs / elapsed


def write_shards(folder: Path) -> None:
    """Smooth colours with a little noise: about as many bytes as photographs of that size."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(32):
        coarse = PIL.Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))
        pixels = np.asarray(coarse.resize((256, 256), PIL.Image.Resampling.BICUBIC), np.float32)
        noisy = (pixels + rng.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        PIL.Image.fromarray(noisy).save(file, "JPEG", quality=85)
        files.append(file.getvalue())
    print(f"JPEGs of {np.mean([len(file) for file in files]) / 1000:.0f} kB")
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number in range(EXAMPLES):
                caption = f"image {number} of shard {shard}".encode()
                for suffix, data in ((".jpg", files[number % len(files)]), (".txt", caption)):
                    member = tarfile.TarInfo(f"{shard}{number:05}{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    # Pickle names classes by their module, which must not be `__main__`.
    import remote_reads

    remote_reads.main()
