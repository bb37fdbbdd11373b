"""Seconds that `flaxclip.data.inspect` takes for a corpus in a bucket, beside the same on disk.

    python experiments/perf/remote_inspect.py

A thousand samples of four thousand photographs of 384 x 320 pixels, from tars and from ArrayRecord
shards, in a store that answers each request after 40 ms. Opening is timed apart: tars are indexed
then, which reads all of them where no index is there. What is left of the second figure, the
disk's taken off, is waiting for the store.
"""

import argparse
import io
import os
import tarfile
import tempfile
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import PIL.Image
from array_record.python.array_record_module import ArrayRecordWriter
from fsspec.implementations.local import LocalFileSystem

from flaxclip.data.inspect.inspection import inspect_source
from flaxclip.data.sources.array_records.array_record import encode_record
from flaxclip.data.sources.corpus import CorpusConfig, open_corpus

EXAMPLES, SHARDS = 4000, 4


class Store(LocalFileSystem):
    """Files on disk, by requests that take a while and are counted."""

    protocol = "store"
    latency, requests = 0.04, 0
    _lock = threading.Lock()

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("store://"))

    def unstrip_protocol(self, name):
        """As a URL."""
        return f"store://{self._strip_protocol(name)}"

    def info(self, path, **kwargs):
        """As on disk, after the latency."""
        self._wait()
        return super().info(path, **kwargs)

    def cat_file(self, path, start=None, end=None, **kwargs):
        """The bytes, after the latency."""
        self._wait()
        return super().cat_file(path, start, end, **kwargs)

    def _wait(self):
        with self._lock:
            Store.requests += 1
        time.sleep(self.latency)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, default=1000)
    parser.add_argument("--latency", type=float, default=0.04, help="seconds")
    arguments = parser.parse_args()
    Store.latency = arguments.latency
    fsspec.register_implementation("store", Store, clobber=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        write_corpora(Path(folder))
        for pattern in ("*.tar", "*.array_record"):
            for place in (folder, f"store://{folder}"):
                Store.requests = 0
                start = time.perf_counter()
                source = open_corpus(CorpusConfig((f"{place}/{pattern}",)), 224)
                opened = time.perf_counter()
                inspection = inspect_source(source, arguments.sample, 10, seed=0)
                seconds = time.perf_counter() - opened
                assert not inspection.broken
                name = pattern.removeprefix("*.") + (" in the store" if place != folder else "")
                print(
                    f"{name:26} opened in {opened - start:5.2f} s, {arguments.sample:,} samples in "
                    f"{seconds:5.2f} s, {Store.requests:,} requests",
                    flush=True,
                )


def write_corpora(folder: Path) -> None:
    """Smooth colours with a little noise: about as many bytes as photographs of that size."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(32):
        coarse = PIL.Image.fromarray(rng.integers(0, 256, (24, 20, 3), np.uint8))
        pixels = np.asarray(coarse.resize((384, 320), PIL.Image.Resampling.BICUBIC), np.float32)
        noisy = (pixels + rng.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        PIL.Image.fromarray(noisy).save(file, "JPEG", quality=85)
        files.append(file.getvalue())
    print(f"JPEGs of {np.mean([len(file) for file in files]) / 1000:.0f} kB")
    for shard in range(SHARDS):
        writer = ArrayRecordWriter(f"{folder}/{shard}.array_record", "group_size:1,uncompressed")
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number in range(shard, EXAMPLES, SHARDS):
                image, caption = files[number % len(files)], f"image {number}"
                writer.write(encode_record(str(number), image, {"txt": caption}))
                for suffix, data in ((".jpg", image), (".txt", caption.encode())):
                    member = tarfile.TarInfo(f"{number:06}{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        writer.close()


if __name__ == "__main__":
    main()
