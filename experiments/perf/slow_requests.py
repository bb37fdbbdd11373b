"""Requests of which some take long, as in object storage: how long steps wait for their batches.

    python experiments/perf/slow_requests.py

A bucket answers after 40 ms; one request in a hundred takes 2 s, one in a thousand 20 s. A loop
takes batches of 64 as a training step would, every 0.15 or 0.5 s, with and without second requests
in place of slow ones; images are small, and runs of 8, so that the processors have little to do. A
window lasts 64 steps, which the requests for the next one have.
"""

import argparse
import asyncio
import contextlib
import io
import itertools
import os
import random
import tarfile
import tempfile
import time
from pathlib import Path

import fsspec
import numpy as np
import PIL.Image
from fsspec.asyn import AsyncFileSystem

from flaxclip.data.examples import ExampleLoader
from flaxclip.data.images.eval_transform import SizedTransform
from flaxclip.data.images.train_transform import AugmentConfig
from flaxclip.data.order import HostRows, OrderConfig, draw_order
from flaxclip.data.prefetch import Prefetch
from flaxclip.data.remote_reading import read_through_cache
from flaxclip.data.sources.tars.webdataset import WebDatasetSource
from flaxclip.data.storage import hedged_requests
from flaxclip.data.tokenizers.load import load_tokenizer
from flaxclip.data.workers.batch_shapes import BatchShape
from flaxclip.data.workers.pool import WorkerPool
from flaxclip.models.inputs import TokenizerConfig

SIZE, BATCH, RUN, WORKERS = 32, 64, 8, 2
SHARDS, EXAMPLES = 5, 8000
LATENCY = 0.04
TAIL = ((0.001, 20.0), (0.01, 2.0))  # share of requests, and seconds that they take


class TailBucket(AsyncFileSystem):
    """Files on disk, by requests of which some take long."""

    protocol = "tail"
    cachable = False

    async def _info(self, path, **kwargs):
        await asyncio.sleep(LATENCY)
        size = os.path.getsize(self._strip_protocol(path))
        return {"name": path, "size": size, "type": "file"}

    async def _cat_file(self, path, start=None, end=None, **kwargs):
        drawn, seconds = random.random(), LATENCY
        for share, longer in reversed(TAIL):
            if drawn < share:
                seconds = longer
        await asyncio.sleep(seconds)
        with open(self._strip_protocol(path), "rb") as file:
            return os.pread(file.fileno(), end - start, start)


class TailTars(WebDatasetSource):
    """Tars of the bucket, of which a copy registers it with the process that it is sent to."""

    run_length = RUN
    hedging = True

    def __setstate__(self, state):
        """Register the bucket."""
        register()
        if not state["hedging"]:
            hedged_requests._MOST_EXTRA = 0.0
        self.__dict__.update(state)


def register() -> None:
    """Make `tail://` known to this process."""
    fsspec.register_implementation("tail", TailBucket, clobber=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.15, 0.5], help="of a step")
    arguments = parser.parse_args()
    register()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/index"
        write_shards(Path(folder))
        source = TailTars([f"tail://{path}" for path in sorted(Path(folder).glob("*.tar"))])
        for seconds, source.hedging in itertools.product(arguments.seconds, (False, True)):
            waits, reads = load(source, folder, arguments.steps, seconds)
            late = waits[waits > 0.1]
            print("second requests" if source.hedging else "one request each", end=", ")
            print(
                f"steps of {seconds:g} s: {len(late)} of {len(waits)} waited, {late.sum():.1f} s "
                f"together, {waits.max():.1f} at most; "
                f"{seconds * len(waits) / (seconds * len(waits) + waits.sum()):.3f} of the speed; "
                f"{reads}",
                flush=True,
            )


def load(source: TailTars, folder: str, steps: int, seconds: float):
    """What each step waited for its batch, from the second on; and what was asked of the bucket."""
    rows = HostRows(BATCH, 0, 1)
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        reading = read_through_cache(source, OrderConfig(), rows, cache, 64.0)
        order = draw_order(source, OrderConfig(), 0, BATCH)
        load = ExampleLoader(
            source,
            order,
            load_tokenizer(TokenizerConfig(), 77),
            SizedTransform(SIZE),
            AugmentConfig(),
            0,
        )
        pool = WorkerPool(
            load,
            load.name,
            BatchShape(BATCH, (SIZE, SIZE, 3), 77),
            range(steps),
            rows.of_step,
            workers=WORKERS,
            slots=4,
            stall_seconds=60.0,
            read_ahead=load.read_ahead,
            ahead=[
                Prefetch(
                    source, order, reading.cache, range(steps), rows.of_step, reading.steps_ahead
                )
            ],
        )
        waits = []
        with contextlib.closing(pool):
            batches, reads = iter(pool), None
            while True:
                start = time.perf_counter()
                batch = next(batches, None)
                if batch is None:
                    return np.array(waits[1:]), reads
                waits.append(time.perf_counter() - start)
                reads = batch.reads
                time.sleep(seconds)


def write_shards(folder: Path) -> None:
    """Small images."""
    rng = np.random.default_rng(0)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            file = io.BytesIO()
            PIL.Image.fromarray(rng.integers(0, 256, (48, 48, 3), np.uint8)).save(file, "JPEG")
            for number in range(EXAMPLES):
                for suffix, data in ((".jpg", file.getvalue()), (".txt", b"noise")):
                    member = tarfile.TarInfo(f"{shard}{number:05}{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    # Pickle names classes by their module, which must not be `__main__`.
    import slow_requests

    slow_requests.main()
