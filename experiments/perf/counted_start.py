"""Seconds to the first batch of tars in a bucket: by an index, by stated counts, by neither.

    python experiments/perf/counted_start.py
    python experiments/perf/counted_start.py --tars 2000 --batch-sizes 32

The bucket is a web server in a process of its own, which answers after 40 ms, of the fastest that
connections to one's own machine are: without a limit of bandwidth, reading a tar through costs
least. Tars have 20 MB in four runs, and are links to a few real ones. A batch is drawn from sixteen
runs for each of its first 32 rows, and as many for every 32 rows from 1,024 on: how many tars that
are decides what counts are worth. Two worker processes load; their start is included.
"""

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import tyro

from flaxclip.data.config import DataConfig
from flaxclip.data.index.make_index import make_index
from flaxclip.data.loader import load_batches, open_source
from flaxclip.models.variants import VARIANTS
from flaxclip.sharding import MeshConfig, make_mesh

ROOT = Path(__file__).parents[2]
REAL = 4  # tars
PAIRS = 500  # in a tar
IMAGE_BYTES = 40_000
SPEC = VARIANTS["ViT-B-32"]


@dataclasses.dataclass(frozen=True)
class Trial:
    """Sizes of the trial."""

    tars: int = 200
    batch_sizes: tuple[int, ...] = (4, 16)
    latency: float = 0.04
    """Seconds that the bucket takes to answer."""


def write_tars(folder: Path, tars: int) -> None:
    """JPEGs of noise, of the size of photographs."""
    rng, file = np.random.default_rng(0), io.BytesIO()
    PIL.Image.fromarray(rng.integers(0, 256, (160, 200, 3), np.uint8)).save(file, "JPEG")
    image = file.getvalue().ljust(IMAGE_BYTES, b"\0")
    for number in range(tars):
        path = folder / f"{number:05}.tar"
        if number >= REAL:
            path.symlink_to(folder / f"{number % REAL:05}.tar")
            continue
        with tarfile.open(path, "w") as tar:
            for pair in range(PAIRS):
                for suffix, data in (("jpg", image), ("txt", b"noise %d" % pair)):
                    member = tarfile.TarInfo(f"{number:05}{pair:04}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    (folder / "sizes.json").write_text(
        json.dumps({f"{number:05}.tar": PAIRS for number in range(tars)})
    )


@contextlib.contextmanager
def bucket(folder: Path, latency: float) -> Iterator[str]:
    """Its address."""
    command = [sys.executable, "-m", "tests.helpers.faulty_store", str(folder)]
    command.append(json.dumps({"latency": latency}))
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.kill()


def first_batch(config: DataConfig, batch_size: int, cache: Path) -> tuple[float, int]:
    """Seconds to the first batch with an empty cache, and how many tars were then scanned."""
    os.environ["XDG_CACHE_HOME"] = str(cache)
    began = time.perf_counter()
    source = open_source(config, SPEC.model.vision.image_size)
    batches = load_batches(
        config, SPEC, source, make_mesh(MeshConfig()), batch_size=batch_size, seed=0, start_step=0,
        stop_step=1,
    )  # fmt: skip
    with contextlib.closing(batches):
        next(iter(batches))
        seconds = time.perf_counter() - began
        return seconds, sum(1 for path in cache.rglob("shards/*/*") if path.suffix != ".lock")


def main(trial: Trial) -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "tars").mkdir()
        write_tars(root / "tars", trial.tars)
        with bucket(root / "tars", trial.latency) as address:
            path = f"{address}/{{00000..{trial.tars - 1:05}}}.tar"
            os.environ["XDG_CACHE_HOME"] = str(root / "other")
            make_index([path], str(root / "index"), workers=4)
            for batch_size in trial.batch_sizes:
                for name, counts, index in (
                    ("an index", None, str(root / "index")),
                    ("counts", "auto", None),
                    ("neither", None, None),
                ):
                    config = DataConfig((path,), counts=counts, index=index, workers=2)
                    cache = root / f"{batch_size} {name}"
                    seconds, scanned = first_batch(config, batch_size, cache)
                    tars = f", {scanned} tars scanned by then" if counts else ""
                    print(f"batch of {batch_size}, {name}: {seconds:.1f} s{tars}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Trial))
