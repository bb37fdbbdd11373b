"""Loading from a bucket, against the same tars on disk: pairs a second, requests, bytes.

    python experiments/perf/remote_reads.py

Two worker processes load an epoch of JPEGs of 384 x 320 pixels from real tars: from disk, where any
pair is as near as any other; and from a bucket that answers each request after 40 or 150 ms, in
which neighbours are fetched together, ahead of need. The bucket is a file system of this script's,
which sleeps and then reads from disk: the CPU time of a real client, about 0.8 s a GB, is missing.
"""

import argparse
import contextlib
import io
import os
import shutil
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
from flaxclip.data.order import HostRows, OrderConfig, draw_order
from flaxclip.data.prefetch import Prefetch
from flaxclip.data.remote_reading import read_through_cache
from flaxclip.data.sources.source import reads_remotely
from flaxclip.data.sources.tars.webdataset import WebDatasetSource
from flaxclip.data.tokenizers.load import load_tokenizer
from flaxclip.data.workers.batch_shapes import BatchShape
from flaxclip.data.workers.pool import WorkerPool
from flaxclip.models.inputs import TokenizerConfig

SIZE, BATCH, WORKERS = 224, 256, 2
SHARDS, EXAMPLES = 5, 8000  # in a shard
LATENCIES = (0.04, 0.15)


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
    """Tars of the bucket; it takes the latency and the file system to other processes."""

    latency = 0.0

    def __setstate__(self, state):
        """Register the file system with this process."""
        register(state["latency"])
        self.__dict__.update(state)


def register(latency: float) -> None:
    """Make `bucket://` known to this process."""
    Bucket.latency = latency
    fsspec.register_implementation("bucket", Bucket, clobber=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    register(0.0)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/index"
        write_shards(Path(folder))
        for _ in range(arguments.rounds):
            disk = epoch(WebDatasetSource(f"{folder}/*.tar"), folder)
            print(f"{'from disk':16} {disk:7.0f} pairs/s", flush=True)
            for latency in LATENCIES:
                source = BucketTars(f"bucket://{folder}/*.tar")
                source.latency = latency
                register(latency)
                found = epoch(source, folder)
                register(0.0)
                share = f"{found / disk:.2f} of disk"
                print(
                    f"{1000 * latency:<5.0f} ms         {found:7.0f} pairs/s, {share}", flush=True
                )


def epoch(source: WebDatasetSource, folder: str) -> float:
    """Pairs a second in the first epoch, from the first batch on."""
    rows = HostRows(BATCH, 0, 1)
    steps = range(len(source) // BATCH)
    began = time.perf_counter()
    reading = read_through_cache(source, OrderConfig(), rows, f"{folder}/cache", None)
    order = draw_order(source, OrderConfig(), 0, BATCH)
    load = ExampleLoader(
        source,
        order,
        load_tokenizer(TokenizerConfig(), 77),
        SizedTransform(SIZE),
        AugmentConfig(),
        0,
    )
    prefetch = None
    if reading is not None:
        prefetch = Prefetch(source, order, reading.cache, steps, rows.of_step, reading.steps_ahead)
    pool = WorkerPool(
        load,
        load.name,
        BatchShape(BATCH, (SIZE, SIZE, 3), 77),
        steps,
        rows.of_step,
        workers=WORKERS,
        slots=4,
        stall_seconds=60.0,
        read_ahead=load.read_ahead if reads_remotely(source) else None,
        ahead=[prefetch] if prefetch else [],
    )
    with contextlib.closing(pool):
        batches = iter(pool)
        next(batches)
        first = time.perf_counter()
        for batch in batches:
            assert not batch.replaced
            reads = batch.reads
        seconds = time.perf_counter() - first
    pairs = (len(steps) - 1) * BATCH
    if reading is not None:
        size = int(source.shards["size"].sum())
        print(
            f"first batch after {first - began:.1f} s; {reads.requests:,.0f} requests, "
            f"{1000 * reads.requests / len(source):.1f} for 1,000 pairs; "
            f"{reads.bytes / reads.requests / 2**20:.2f} MiB a request, "
            f"{reads.bytes / size:.3f} of the corpus"
        )
        shutil.rmtree(f"{folder}/cache")
    return pairs / seconds


def write_shards(folder: Path) -> None:
    """Smooth colours with a little noise: about as many bytes as photographs of that size."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(64):
        coarse = PIL.Image.fromarray(rng.integers(0, 256, (30, 36, 3), np.uint8))
        pixels = np.asarray(coarse.resize((384, 320), PIL.Image.Resampling.BICUBIC), np.float32)
        noisy = (pixels + rng.normal(0, 9, pixels.shape)).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        PIL.Image.fromarray(noisy).save(file, "JPEG", quality=80)
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
