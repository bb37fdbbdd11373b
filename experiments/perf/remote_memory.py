"""Memory of all processes while a corpus is loaded from a bucket: must not grow.

    python experiments/perf/remote_memory.py --minutes 20

The training process, its workers and its prefetcher load from a simulated bucket that answers after
150 ms (`simulated_bucket.py`), 400 GB of tars with an index, through a cache of 1.2 GiB, which is
filled and emptied all the time. Batches are small, since the order needs a cache of some 0.3 GiB
for each row of so small ones. Every ten seconds the proportional set size of each process (shared
pages counted once) is noted. A slope is fitted to the second half of the samples; its interval is
from blocks of them, left out in turn, since neighbours are alike.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from simulated_bucket import SimulatedTars, Simulation, register, write_table

SHARDS, LATENCY, BATCH, WORKERS = 1000, 0.15, 4, 2
CACHE_GIB = 1.2
BLOCKS = 10


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=1 / 30, help="of a step, at least")
    arguments = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    from flaxclip.data.config import DataConfig
    from flaxclip.data.loader import load_batches
    from flaxclip.models.variants import VARIANTS
    from flaxclip.sharding import MeshConfig, make_mesh

    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/index"
        simulation = Simulation(SHARDS, LATENCY, f"{folder}/table")
        register(simulation)
        write_table(simulation)
        config = DataConfig(workers=WORKERS, cache_dir=f"{folder}/cache", cache_gib=CACHE_GIB)
        batches = load_batches(
            config,
            VARIANTS["ViT-B-32"],
            SimulatedTars.open(simulation),
            make_mesh(MeshConfig()),
            batch_size=BATCH,
            seed=0,
            start_step=0,
            stop_step=10**6,
        )
        names, samples = sample(batches, arguments.minutes * 60, arguments.seconds)
        batches.close()
    report(names, samples)


def sample(batches, seconds: float, seconds_a_step: float) -> tuple[list[str], np.ndarray]:
    """Names of the processes, and [samples, 1 + processes]: seconds, MB of each."""
    next(batches)
    processes = {"training process": os.getpid()} | {
        _name(process): process for process in _children()
    }
    samples, start, steps = [], time.monotonic(), 0
    while (now := time.monotonic() - start) < seconds:
        reads = next(batches).reads
        steps += 1
        if now >= 10 * len(samples):
            samples.append([now, *map(_megabytes, processes.values())])
            print(
                f"{now:6.0f} s, {BATCH * steps:8,} images, {reads.requests:8,.0f} requests, "
                f"{reads.bytes / 1e6:8,.0f} MB:",
                *(f"{size:6.1f}" for size in samples[-1][1:]),
                flush=True,
            )
        time.sleep(max(0.0, steps * seconds_a_step - (time.monotonic() - start)))
    return list(processes), np.array(samples)


def report(names: list[str], samples: np.ndarray) -> None:
    """Print a slope for each process, and for all of them."""
    later = samples[samples[:, 0] >= samples[-1, 0] / 2]
    columns = [*later.T[1:], later[:, 1:].sum(axis=1)]
    for name, sizes in zip([*names, "all"], columns, strict=True):
        hours = later[:, 0] / 3600
        slope = np.polyfit(hours, sizes, 1)[0]
        # Jackknife over blocks.
        blocks = np.arange(len(hours)) * BLOCKS // len(hours)
        left_out = [
            np.polyfit(hours[blocks != block], sizes[blocks != block], 1)[0]
            for block in range(BLOCKS)
        ]
        error = np.sqrt((BLOCKS - 1) * np.var(left_out))
        print(
            f"{name:18} {sizes.mean():6.1f} MB, {sizes.min():.1f} to {sizes.max():.1f}; "
            f"{slope:+.1f} MB an hour, give or take {1.96 * error:.1f} (95%)"
        )


def _children() -> list[int]:
    own = os.getpid()
    return [
        int(process) for process in Path(f"/proc/{own}/task/{own}/children").read_text().split()
    ]


def _name(process: int) -> str:
    words = Path(f"/proc/{process}/cmdline").read_text().split("\0")
    place = next(number for number, word in enumerate(words) if "flaxclip" in word)
    return f"{words[place].rpartition('.')[2]} {words[place + 1]}"


def _megabytes(process: int) -> float:
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    return int(text.split("Pss:")[1].split()[0]) * 1024 / 1e6


if __name__ == "__main__":
    main()
